package move

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/postern-mta/postern/rules"
)

// What a file may hold. simscanmk reads lines of at most 3999 bytes.
const (
	maxText   = 256 << 10 // bytes of a text
	maxBinary = 4 << 20   // bytes of a database
	maxLine   = 4000      // bytes of a line
	maxShown  = 300       // bytes of a line in a comment
)

// file is a file that was read, and what is made of it.
type file struct {
	path   string
	format *Format
	lines  []*line
	// body is the configuration, made the names of its filters.
	body           page
	made           []string
	noEqual, notes int
	// about are notes about the file as a whole.
	about []string
}

// line is a line of a file, or a record of a database.
type line struct {
	no   int
	text string // without its end
	// parts are the lines behind it that it was put together with.
	parts []part
	first string // itself, then
	// odd is why it cannot be parsed, "" if it can.
	odd string
	// remarks stand below it.
	remarks []string
}

// part is a line that became part of another.
type part struct {
	no   int
	text string
}

// lineText is a line, and what was made of it.
type lineText struct {
	line *line
	text string
}

// readFile reads a file that is there, regular, and not too long.
func readFile(path string, format *Format) (*file, error) {
	fail := func(err error) (*file, error) {
		return nil, fmt.Errorf("%s cannot be read: %w", show(path), err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return fail(cause(err))
	}
	if !info.Mode().IsRegular() {
		return fail(errors.New("it is no regular file"))
	}
	h, err := os.Open(path)
	if err != nil {
		return fail(cause(err))
	}
	defer h.Close()
	f := &file{path: path, format: format}
	if f.isBinary() {
		f.lines, err = readRecords(h, info.Size())
	} else {
		f.lines, err = readLines(h)
	}
	if err != nil {
		return fail(cause(err))
	}
	return f, nil
}

// isBinary reports whether it is a database.
func (f *file) isBinary() bool {
	return f.format.binary != "" && strings.HasSuffix(f.path, f.format.binary)
}

// cause is an error without the path that is told anyway.
func cause(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

// readLines reads a text. Blanks and carriage returns at the end of a line do not
// count, and a line may lack its end at the end of the file.
func readLines(r io.Reader) ([]*line, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxText+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxText {
		return nil, fmt.Errorf("it has more than %d bytes", maxText)
	}
	var all []*line
	text := string(b)
	for no := 1; text != ""; no++ {
		one, rest, _ := strings.Cut(text, "\n")
		all = append(all, &line{no: no, text: strings.TrimRight(one, " \t\r")})
		text = rest
	}
	return all, nil
}

// readRecords reads the records of a database as lines of its source.
func readRecords(at io.ReaderAt, size int64) ([]*line, error) {
	if size > maxBinary {
		return nil, fmt.Errorf("it has more than %d bytes", maxBinary)
	}
	db, err := rules.OpenCDB(at, size)
	if err != nil {
		return nil, err
	}
	var all []*line
	total := 0
	for r, err := range db.All() {
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", len(all)+1, err)
		}
		if total += len(r.Key) + len(r.Value) + 2; total > maxText {
			return nil, fmt.Errorf("its records have more than %d bytes", maxText)
		}
		l := &line{no: len(all) + 1, text: r.Key + ":" + r.Value}
		if strings.Contains(r.Key, ":") {
			l.odd = "its key holds a colon"
		}
		all = append(all, l)
	}
	return all, nil
}

// own is the line as it stands in the file.
func (l *line) own() string {
	if len(l.parts) > 0 {
		return l.first
	}
	return l.text
}

// isComment reports whether a line says nothing.
func (l *line) isComment() bool {
	return l.text == "" || l.text[0] == '#'
}

// unfit is why a line cannot be parsed, "" if it can.
func (l *line) unfit() string {
	if l.odd != "" {
		return l.odd
	}
	if len(l.text) > maxLine {
		return fmt.Sprintf("it has %d bytes, more than the %d that are read of a line", len(l.text), maxLine)
	}
	return safe(l.text)
}

// safe is why a text cannot stand in a configuration, "" if it can.
func safe(s string) string {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return fmt.Sprintf("it holds the control byte %#02x", c)
		}
	}
	if !utf8.ValidString(s) {
		return "it holds bytes that are no UTF-8"
	}
	return ""
}

// parsed are the lines that say something and can be parsed; the others are
// remarked on.
func (f *file) parsed() []*line {
	var all []*line
	for _, l := range f.lines {
		if l.isComment() {
			continue
		}
		if why := l.unfit(); why != "" {
			f.none(l, "this line cannot be carried over: %s. Instead: mend it and import the file again.", why)
			continue
		}
		all = append(all, l)
	}
	return all
}

// none says that a line, or a part of it, has no equal: what it did, why, and what
// to do instead.
func (f *file) none(l *line, format string, args ...any) {
	f.noEqual++
	l.remarks = append(l.remarks, "NO EQUAL: "+fmt.Sprintf(format, args...))
}

// note says that something is done in another way.
func (f *file) note(l *line, format string, args ...any) {
	f.notes++
	l.remarks = append(l.remarks, "NOTE: "+fmt.Sprintf(format, args...))
}

// remark says something about the file as a whole.
func (f *file) remark(format string, args ...any) {
	f.notes++
	f.about = append(f.about, "NOTE: "+fmt.Sprintf(format, args...))
}

// missing says that the file as a whole has no equal.
func (f *file) missing(format string, args ...any) {
	f.noEqual++
	f.about = append(f.about, "NO EQUAL: "+fmt.Sprintf(format, args...))
}
