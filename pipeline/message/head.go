package message

import (
	"errors"
	"fmt"
	"strings"

	"github.com/postern-mta/postern/pipeline/reply"
)

// Head is the fields of a message and the blank line that ends them. It is a
// value that never changes; an edit makes a new one. Fields that nobody edited
// keep their bytes, however odd they are.
type Head struct {
	fields []Field
	// separator is the blank line as it came: "\n", "\r\n", or "" if a line
	// that is no field, or the end, came first.
	separator string
	// apart is set where a blank line is wanted before a body although none
	// came: fields were edited, or another body was put in.
	apart bool
}

// Field is one header field with the lines that continue it.
type Field struct {
	text string
	// name is the length of the name; 0 for a line that has none (a folded
	// first line, an mbox "From " line).
	name int
}

// Name is the field's name as written, "" for a line without one.
func (f Field) Name() string { return f.text[:f.name] }

// Is compares the field's name, ASCII case folded (RFC 5322 §1.2.2).
func (f Field) Is(name string) bool {
	if f.name == 0 || f.name != len(name) {
		return false
	}
	for i := 0; i < len(name); i++ {
		if lower(f.text[i]) != lower(name[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// Text is the whole field with its line ends.
func (f Field) Text() string { return f.text }

// Value is what follows the colon, unfolded (RFC 5322 §2.2.3) and without
// blanks at its ends.
func (f Field) Value() string {
	v := f.text
	if f.name > 0 {
		v = v[strings.IndexByte(v[f.name:], ':')+f.name+1:]
	}
	if strings.IndexByte(v, '\n') >= len(v)-1 && strings.IndexByte(v, '\r') < 0 {
		return strings.Trim(v, " \t\n")
	}
	var b strings.Builder
	for line := range strings.Lines(v) {
		line, ended := strings.CutSuffix(line, "\n")
		if ended {
			line = strings.TrimSuffix(line, "\r")
		}
		b.WriteString(line)
	}
	return strings.Trim(b.String(), " \t")
}

// Len is the number of fields.
func (h Head) Len() int { return len(h.fields) }

// Field is the field at index i, counted from the top.
func (h Head) Field(i int) Field { return h.fields[i] }

// Get is the value of the first field of that name, "" if there is none.
func (h Head) Get(name string) string {
	for _, f := range h.fields {
		if f.Is(name) {
			return f.Value()
		}
	}
	return ""
}

// Values are the values of all fields of that name, from the top.
func (h Head) Values(name string) []string {
	var all []string
	for _, f := range h.fields {
		if f.Is(name) {
			all = append(all, f.Value())
		}
	}
	return all
}

// Hops counts the fields that a passing mail system added, as qmail-smtpd
// counts them: Received and Delivered-To.
func (h Head) Hops() int {
	n := 0
	for _, f := range h.fields {
		if f.Is("Received") || f.Is("Delivered-To") {
			n++
		}
	}
	return n
}

// String is the head's bytes with its separator as it came. What stands before
// a body may be more: see Message.HeadText.
func (h Head) String() string {
	var b strings.Builder
	for _, f := range h.fields {
		b.WriteString(f.text)
	}
	b.WriteString(h.separator)
	return b.String()
}

// separatorBefore is what stands between the fields and body: the blank line
// that came, or a new one where body would otherwise run into the head.
func (h Head) separatorBefore(body *Body) string {
	switch {
	case h.separator != "" || body.Size() == 0:
		return h.separator
	case !terminated(h.fields):
		return "\n\n"
	case h.apart:
		return "\n"
	}
	return ""
}

func (h Head) size(body *Body) int {
	n := len(h.separatorBefore(body))
	for _, f := range h.fields {
		n += len(f.text)
	}
	return n
}

func (h Head) append(b []byte, body *Body) []byte {
	for _, f := range h.fields {
		b = append(b, f.text...)
	}
	return append(b, h.separatorBefore(body)...)
}

// EditOp is what a FieldEdit does.
type EditOp uint8

// The operations on fields.
const (
	Add     EditOp = iota // a new field above all others, or below the first Nth
	Append                // a new field below all others
	Remove                // the fields of that name, or the Nth
	Replace               // like Remove, the first one's place taking the new value; Add if there was none
)

var editOps = [...]string{"add", "append", "remove", "replace"}

// String is the operation's word in configuration and traces.
func (o EditOp) String() string {
	if int(o) < len(editOps) {
		return editOps[o]
	}
	return "invalid"
}

// ParseEditOp is the inverse of String.
func ParseEditOp(s string) (EditOp, bool) {
	for i, name := range editOps {
		if s == name {
			return EditOp(i), true
		}
	}
	return 0, false
}

// FieldEdit is one change of a head.
type FieldEdit struct {
	Op   EditOp
	Name string
	// Value may be folded by its author: LF and a blank. A line of it may not
	// exceed 998 bytes (RFC 5322 §2.1.1) less the name, nor may one be blank.
	Value string
	// Nth is which field of that name Remove and Replace are about: 0 all of
	// them, 1 the first, -1 the last. For Add it is how many fields, of whatever
	// name, stay above the new one; where there are fewer, it comes behind them.
	Nth int
}

// String describes the edit for a trace.
func (e FieldEdit) String() string {
	s := e.Op.String() + " " + reply.Clean(e.Name, maxNameBytes)
	if e.Op == Remove {
		return s
	}
	return s + ": " + reply.Clean(e.Value, 200)
}

const (
	maxNameBytes  = 200
	maxValueBytes = 64 << 10
	maxLineBytes  = 998
)

// Check says whether the edit can be applied to any head: a name of RFC 5322
// §3.6.8 and a value that cannot break out of its field.
func (e FieldEdit) Check() error {
	if int(e.Op) >= len(editOps) {
		return errors.New("unknown edit of a header field")
	}
	if e.Name == "" || len(e.Name) > maxNameBytes {
		return fmt.Errorf("header field name of %d bytes", len(e.Name))
	}
	for i := 0; i < len(e.Name); i++ {
		if c := e.Name[i]; c <= ' ' || c > '~' || c == ':' {
			return fmt.Errorf("header field name %q holds a character that no name may hold", e.Name)
		}
	}
	if e.Op == Remove {
		return nil
	}
	return checkValue(e.Name, e.Value)
}

func checkValue(name, v string) error {
	if len(v) > maxValueBytes {
		return fmt.Errorf("value of header field %s has %d bytes", name, len(v))
	}
	for i := 0; i < len(v); i++ {
		if c := v[i]; c < ' ' && c != '\t' && c != '\n' || c == 0x7f {
			return fmt.Errorf("value of header field %s holds control byte %#02x", name, c)
		}
	}
	line, rest, folded := strings.Cut(v, "\n")
	length := len(name) + len(": ") + len(line)
	for {
		if length > maxLineBytes {
			return fmt.Errorf("value of header field %s has a line of more than %d bytes: fold it", name, maxLineBytes)
		}
		if !folded {
			return nil
		}
		line, rest, folded = strings.Cut(rest, "\n")
		if length = len(line); length == 0 || line[0] != ' ' && line[0] != '\t' {
			return fmt.Errorf("value of header field %s has a line that does not continue it", name)
		}
		// RFC 5322 §3.2.2 forbids it, and some readers end the head there.
		if strings.Trim(line, " \t") == "" {
			return fmt.Errorf("value of header field %s has a blank line", name)
		}
	}
}

// Edit is the head after all edits, in order. If one cannot be applied, Edit
// fails and the head is h: edits are all made or none. Edits that find nothing
// to change leave h as it is. A field that is added has its line end as LF.
func (h Head) Edit(edits ...FieldEdit) (Head, error) {
	fields := append(make([]Field, 0, len(h.fields)+len(edits)), h.fields...)
	changed := false
	for _, e := range edits {
		if err := e.Check(); err != nil {
			return h, err
		}
		n := len(fields)
		fields = e.apply(fields)
		changed = changed || e.Op != Remove || len(fields) != n
	}
	if !changed {
		return h, nil
	}
	return Head{fields: fields, separator: h.separator, apart: true}, nil
}

func (e FieldEdit) apply(fields []Field) []Field {
	field := Field{text: e.Name + ": " + e.Value + "\n", name: len(e.Name)}
	switch e.Op {
	case Add:
		return insert(fields, e.Nth, field)
	case Append:
		return append(terminate(fields), field)
	}
	out, count, placed := fields[:0:0], 0, false
	total := 0
	for _, f := range fields {
		if f.Is(e.Name) {
			total++
		}
	}
	for _, f := range fields {
		if f.Is(e.Name) {
			count++
			if e.Nth == 0 || e.Nth == count || e.Nth == count-total-1 {
				if e.Op == Replace && !placed {
					out, placed = append(out, field), true
				}
				continue
			}
		}
		out = append(out, f)
	}
	if e.Op == Replace && !placed {
		return insert(out, 0, field)
	}
	return out
}

// insert puts a field below the first at ones, and below a line without a name:
// a new field above a folded first line would take that line as its own.
func insert(fields []Field, at int, f Field) []Field {
	i := min(max(at, 0), len(fields))
	for i < len(fields) && fields[i].name == 0 {
		i++
	}
	if i == len(fields) {
		fields = terminate(fields)
	}
	fields = append(fields, Field{})
	copy(fields[i+1:], fields[i:])
	fields[i] = f
	return fields
}

// terminate gives the last field the line end that a head cut short lacks.
func terminate(fields []Field) []Field {
	if !terminated(fields) {
		fields[len(fields)-1].text += "\n"
	}
	return fields
}

func terminated(fields []Field) bool {
	n := len(fields)
	return n == 0 || strings.HasSuffix(fields[n-1].text, "\n")
}
