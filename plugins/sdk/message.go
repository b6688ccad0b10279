package sdk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/postern-mta/postern/plugins/wire"
)

// Message is a message with its envelope. It is for the time of the call only, and
// its methods are for one goroutine; what Body gives may be read by several. Lines
// end in LF.
type Message struct {
	*Transaction
	// HeadSize and BodySize are in bytes, and known whatever the plugin needs.
	HeadSize, BodySize int64

	needs  Needs
	head   string
	fields []Field
	parsed bool
	body   *body
}

// Field is one field of a head.
type Field struct {
	// Name is as written, "" for a line that is no field.
	Name string
	// Value is what follows the colon, unfolded (RFC 5322 §2.2.3) and without blanks
	// at its ends.
	Value string
	// Raw is the whole field with its line ends.
	Raw string
}

// Head is the head's text without the empty line. Like all that reads the head it
// panics if Plugin.Needs says that the head is not needed; a panic is an error of
// the call.
func (m *Message) Head() string {
	if m.needs != NeedsHead && m.needs != NeedsBody {
		panic("the plugin's Needs say that it needs no head")
	}
	return m.head
}

// Fields are the head's fields from the top.
func (m *Message) Fields() []Field {
	if head := m.Head(); !m.parsed {
		m.fields, m.parsed = parseFields(head), true
	}
	return m.fields
}

// Get is the value of the first field of a name, "" if there is none. The case of
// letters does not count.
func (m *Message) Get(name string) string {
	for _, f := range m.Fields() {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

// Values are the values of all fields of a name, from the top.
func (m *Message) Values(name string) (all []string) {
	for _, f := range m.Fields() {
		if strings.EqualFold(f.Name, name) {
			all = append(all, f.Value)
		}
	}
	return all
}

// Text is Get with its encoded words decoded (RFC 2047) as far as they are in
// UTF-8, ISO 8859-1 or ASCII; a value with others is as written.
func (m *Message) Text(name string) string {
	value := m.Get(name)
	if decoded, err := new(mime.WordDecoder).DecodeHeader(value); err == nil {
		return decoded
	}
	return value
}

// Subject is the decoded subject.
func (m *Message) Subject() string { return m.Text("Subject") }

// Body reads the body, which is in memory or in a file. Its errors are those of
// the file; of a plugin that does not need the body, that it does not.
func (m *Message) Body() *io.SectionReader { return io.NewSectionReader(m.body, 0, m.BodySize) }

// Whole reads the whole message: head, empty line, body.
func (m *Message) Whole() io.Reader {
	return io.MultiReader(strings.NewReader(m.Head()), strings.NewReader("\n"), m.Body())
}

// TempFile makes a file for a new body; see Verdict.SetBodyFile. It is removed
// after the call unless the verdict has it.
func (m *Message) TempFile() (*os.File, error) { return m.body.create() }

// parseFields splits a head into its fields.
func parseFields(head string) (all []Field) {
	for len(head) > 0 {
		end := 0
		for {
			n := strings.IndexByte(head[end:], '\n')
			if n < 0 {
				end = len(head)
				break
			}
			if end += n + 1; end == len(head) || head[end] != ' ' && head[end] != '\t' {
				break
			}
		}
		all = append(all, parseField(head[:end]))
		head = head[end:]
	}
	return all
}

func parseField(raw string) Field {
	name, value, found := strings.Cut(raw, ":")
	name = strings.TrimRight(name, " \t")
	if !found || name == "" || strings.ContainsAny(name, " \t\n") {
		return Field{Raw: raw}
	}
	value = strings.NewReplacer("\r\n", "", "\n", "").Replace(value)
	return Field{Name: name, Value: strings.Trim(value, " \t\r"), Raw: raw}
}

// body is what Body reads, and the files that a call has made.
type body struct {
	needed bool
	inline []byte
	from   *wire.File
	places []string // directories for a new body

	mu     sync.Mutex
	file   *os.File
	err    error
	closed bool
	made   []*os.File
}

var (
	errNotNeeded = errors.New("the plugin's Needs say that it needs no body")
	errOver      = errors.New("the message is there until the call is over")
	errNoPlace   = errors.New("there is no directory for a new body: give the plugin one, with user and state directory, or keep the body under 16 KiB")
)

// ReadAt implements io.ReaderAt over the body.
func (b *body) ReadAt(p []byte, off int64) (int, error) {
	if !b.needed {
		return 0, errNotNeeded
	}
	if b.from == nil {
		if off >= int64(len(b.inline)) {
			return 0, io.EOF
		}
		n := copy(p, b.inline[off:])
		if n < len(p) {
			return n, io.EOF
		}
		return n, nil
	}
	f, err := b.open()
	if err != nil {
		return 0, err
	}
	n, err := f.ReadAt(p, b.from.Offset+off)
	if errors.Is(err, io.EOF) && off+int64(n) < b.from.Size {
		// Half a body must never pass for all of it.
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *body) open() (*os.File, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return nil, errOver
	case b.file == nil && b.err == nil:
		b.file, b.err = os.Open(b.from.Path)
	}
	return b.file, b.err
}

// create makes a file in the first of the places where that is possible, which
// Postern can read.
func (b *body) create() (*os.File, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errOver
	}
	err := errNoPlace
	for _, dir := range b.places {
		if dir == "" {
			continue
		}
		var f *os.File
		if f, err = os.CreateTemp(dir, "body"); err == nil {
			b.made = append(b.made, f)
			return f, f.Chmod(0o644)
		}
	}
	return nil, err
}

// close ends the call. The files that were made are removed, but for those that
// the answer names.
func (b *body) close(keep []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if b.file != nil {
		_ = b.file.Close()
	}
	for _, f := range b.made {
		_ = f.Close()
		gone := true
		for _, name := range keep {
			gone = gone && name != f.Name()
		}
		if gone {
			_ = os.Remove(f.Name())
		}
	}
}

func readMessage(w *wire.Message, tx *Transaction, needs Needs, stateDir string) (*Message, error) {
	m := &Message{Transaction: tx, HeadSize: w.GetHeadSize(), BodySize: w.GetBodySize(), needs: needs, head: string(w.GetHead())}
	m.body = &body{needed: needs == NeedsBody}
	if m.HeadSize < 0 || m.BodySize < 0 {
		return nil, errors.New("a message has a negative size")
	}
	if m.body.needed {
		m.body.inline, m.body.from = w.GetInline(), w.GetFile()
		if f := m.body.from; f != nil {
			if f.Path == "" || f.Offset < 0 || f.Size != m.BodySize {
				return nil, fmt.Errorf("the body of %d bytes is said to be %d bytes at %d of the file %q", m.BodySize, f.Size, f.Offset, f.Path)
			}
			m.body.places = append(m.body.places, filepath.Dir(f.Path))
		} else if int64(len(m.body.inline)) != m.BodySize {
			return nil, fmt.Errorf("the body of %d bytes came with %d", m.BodySize, len(m.body.inline))
		}
	}
	m.body.places = append(m.body.places, stateDir)
	return m, nil
}

// isFile reports whether a path names a file that is there.
func isFile(path string) bool {
	i, err := os.Stat(path)
	return err == nil && i.Mode()&fs.ModeType == 0
}
