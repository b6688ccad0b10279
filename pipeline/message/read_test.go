package message

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/postern-mta/postern/pipeline/reply"
)

// oddMessages are messages of every shape that a head may have, with what is
// made of them under Keep.
var oddMessages = []struct {
	name, in  string
	names     []string // of the fields
	separator string
	body      string
}{
	{"plain", "A: b\nC: d\n\nbody\n", []string{"A", "C"}, "\n", "body\n"},
	{"empty", "", nil, "", ""},
	{"blank line alone", "\n", nil, "\n", ""},
	{"CR LF alone", "\r\n", nil, "\r\n", ""},
	{"CR alone", "\r", nil, "", "\r"},
	{"NUL alone", "\x00", nil, "", "\x00"},
	{"header only", "A: b\n", []string{"A"}, "", ""},
	{"header and separator only", "A: b\n\n", []string{"A"}, "\n", ""},
	{"cut short in a value", "A: b\nC: d", []string{"A", "C"}, "", ""},
	{"cut short in a name", "A: b\nSubj", []string{"A"}, "", "Subj"},
	{"cut short after a colon", "A:", []string{"A"}, "", ""},
	{"cut short in a fold", "A: b\n ", []string{"A"}, "", ""},
	{"cut short after CR", "A: b\r\n\r", []string{"A"}, "", "\r"},
	{"no header", "hello\nA: b\n", nil, "", "hello\nA: b\n"},
	{"no header but a separator", "\nhello\n", nil, "\n", "hello\n"},
	{"no separator", "A: b\nhello there\nC: d\n", []string{"A"}, "", "hello there\nC: d\n"},
	{"two separators", "A: b\n\n\nbody", []string{"A"}, "\n", "\nbody"},
	{"folded", "A: b\n c\n\td\nE: f\n\n", []string{"A", "E"}, "\n", ""},
	{"folded with a blank line of blanks", "A: b\n \nE: f\n\n", []string{"A", "E"}, "\n", ""},
	{"folded first line", " b\n c\nA: d\n\nbody", []string{"", "A"}, "\n", "body"},
	{"mbox line", "From a@b Thu Jan  1 00:00:00 1970\nA: b\n\nbody", []string{"", "A"}, "\n", "body"},
	{"quoted mbox line", ">From a@b Thu Jan  1 00:00:00 1970\nA: b\n\nbody", []string{"", "A"}, "\n", "body"},
	{"mbox line not on top", "A: b\nFrom a@b\n\nbody", []string{"A"}, "", "From a@b\n\nbody"},
	{"blank before the colon", "From : x\nTo\t : y\n\nbody", []string{"From", "To"}, "\n", "body"},
	{"8-bit name", "S\xfcbject: x\n\u017fubject: y\n\nbody", []string{"S\xfcbject", "\u017fubject"}, "\n", "body"},
	{"name with a blank", "A: b\nC d: e\n\nbody", []string{"A"}, "", "C d: e\n\nbody"},
	{"name with a control byte", "A: b\nC\x01d: e\n\nbody", []string{"A"}, "", "C\x01d: e\n\nbody"},
	{"name with DEL", "A: b\nC\x7f: e\n\nbody", []string{"A"}, "", "C\x7f: e\n\nbody"},
	{"no name", "A: b\n: e\n\nbody", []string{"A"}, "", ": e\n\nbody"},
	{"__proto__", "__proto__: x\nconstructor: y\n\nbody", []string{"__proto__", "constructor"}, "\n", "body"},
	{"CR LF", "A: b\r\n c\r\nD: e\r\n\r\nbody\r\n", []string{"A", "D"}, "\r\n", "body\r\n"},
	{"CR LF, then LF", "A: b\r\n\nbody\r\n", []string{"A"}, "\n", "body\r\n"},
	{"bare CR for line ends", "A: b\r\rbody\r", []string{"A"}, "", ""},
	{"CR CR LF", "A: b\r\r\n\r\r\nbody", []string{"A"}, "", "\r\r\nbody"},
	{"NULs", "A: \x00b\nC\x00: d\n\n\x00", []string{"A"}, "", "C\x00: d\n\n\x00"},
	{"long line without a colon", "A: b\n" + strings.Repeat("x", 100_000) + ": y\n", []string{"A"}, "", strings.Repeat("x", 100_000) + ": y\n"},
	{"long line without a colon on top", strings.Repeat("x", 100_000), nil, "", strings.Repeat("x", 100_000)},
	{"long value", "A: " + strings.Repeat("b", 100_000) + "\n\nbody", []string{"A"}, "\n", "body"},
	{"longest name", strings.Repeat("n", 997) + ": x\n\n", []string{strings.Repeat("n", 997)}, "\n", ""},
	{"name too long", strings.Repeat("n", 998) + ": x\n\n", nil, "", strings.Repeat("n", 998) + ": x\n\n"},
}

// pieces are ways in which the same bytes may come.
var pieces = []struct {
	name string
	of   func(io.Reader) io.Reader
}{
	{"whole", func(r io.Reader) io.Reader { return r }},
	{"byte by byte", iotest.OneByteReader},
	{"half by half", iotest.HalfReader},
	{"with the error", iotest.DataErrReader},
}

func mustRead(t *testing.T, r io.Reader, o Options) Message {
	t.Helper()
	m, err := Read(r, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Body().Release() })
	return m
}

func fieldNames(h Head) []string {
	var names []string
	for i := range h.Len() {
		names = append(names, h.Field(i).Name())
	}
	return names
}

func content(t *testing.T, b *Body) string {
	t.Helper()
	all, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return string(all)
}

func TestReadKeepsOddMessages(t *testing.T) {
	for _, c := range oddMessages {
		for _, p := range pieces {
			t.Run(c.name+", "+p.name, func(t *testing.T) {
				m := mustRead(t, p.of(strings.NewReader(c.in)), Options{Lines: Keep})
				if got := string(m.Bytes()); got != c.in {
					t.Errorf("%.200q came out", got)
				}
				if got := fieldNames(m.Head()); fmt.Sprint(got) != fmt.Sprint(c.names) {
					t.Errorf("fields %.200q, want %.200q", got, c.names)
				}
				head := strings.TrimSuffix(c.in, c.body)
				if got := m.Head().String(); got != head || !strings.HasSuffix(head, c.separator) || m.Head().separator != c.separator {
					t.Errorf("head %.200q with separator %q", got, m.Head().separator)
				}
				if got := content(t, m.Body()); got != c.body {
					t.Errorf("body %.200q", got)
				}
				checkViews(t, m)
			})
		}
	}
}

// tester is *testing.T, *testing.F or *rapid.T.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
}

// checkViews compares what a message says of itself with what comes out of it.
func checkViews(t tester, m Message) {
	t.Helper()
	as := string(m.Bytes())
	if m.Size() != int64(len(as)) {
		t.Fatalf("Size %d of %d bytes", m.Size(), len(as))
	}
	wire, err := io.ReadAll(m.CRLF())
	if want := toCRLF(as); err != nil || string(wire) != want {
		t.Fatalf("CRLF view of %.200q is %.200q: %v", as, wire, err)
	}
	if m.WireSize() != int64(len(wire)) {
		t.Fatalf("WireSize %d of %d bytes in %.200q", m.WireSize(), len(wire), as)
	}
	if read, err := io.ReadAll(m.Reader()); err != nil || string(read) != as {
		t.Fatalf("%.200q read of %.200q: %v", read, as, err)
	}
}

// toCRLF is the CRLF view, the plain way.
func toCRLF(s string) string {
	const mark = "\x00CRLF\x00"
	s = strings.ReplaceAll(s, "\r\n", mark)
	s = strings.ReplaceAll(s, "\n", mark)
	return strings.ReplaceAll(s, mark, "\r\n")
}

// A first line that begins with a blank never continues a field that is put on
// top of it, in whatever pieces it comes.
func TestReadBlankFirstLine(t *testing.T) {
	for in, want := range map[string]string{
		" b\n c\nA: d\n\nbody\n":         "X: y\n\n b\n c\nA: d\n\nbody\n",
		"\tb\n":                          "X: y\n\n\tb\n",
		" \n\nbody\n":                    "X: y\n\n \n\nbody\n",
		" ":                              "X: y\n\n ",
		"\n b\n":                         "X: y\n\n b\n",
		"A: d\n b\n":                     "X: y\nA: d\n b\n",
		"":                               "X: y\n",
		" " + strings.Repeat("x", 2<<20): "X: y\n\n " + strings.Repeat("x", 2<<20),
	} {
		for _, r := range []io.Reader{strings.NewReader(in), iotest.OneByteReader(strings.NewReader(in))} {
			m, err := Read(r, Options{Lines: Keep, BlankIsBody: true})
			if err != nil {
				t.Fatal(err)
			}
			if got := string(m.Bytes()); got != in {
				t.Errorf("%.40q was read, %.40q came out", in, got)
			}
			h, err := m.Head().Edit(FieldEdit{Op: Add, Name: "X", Value: "y"})
			if got := string(m.WithHead(h).Bytes()); err != nil || got != want {
				t.Errorf("%.40q: %.60q, %v, want %.60q", in, got, err, want)
			}
			if err := m.Body().Release(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestReadRepairs(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"\x00", ""},
		{"\x00\x00\x00", ""},
		{"\r", "\n"},
		{"\n", "\n"},
		{"\r\n", "\n"},
		{"\n\r", "\n\n"},
		{"\r\r\n", "\n\n"},
		{"\r\x00\n", "\n\n"},
		{"\x00\r\n", "\n"},
		{"\r\x00", "\n"},
		{"a\x00", "a\n"},
		{"\x00a", "a\n"},
		{"a\n\x00", "a\n"},
		{"A: b", "A: b\n"},
		{"A: b\r\n\r\nbody", "A: b\n\nbody\n"},
		{"A: b\r\rbody", "A: b\n\nbody\n"},
		{"A: b\n\nbody\r\n.\r\n", "A: b\n\nbody\n.\n"},
		{"A: b\n\n\r\n\x00.\r\n", "A: b\n\n\n.\n"},
		{"A\x00: b\r\n\tc\x00\x00\r\n\r\n\x00", "A: b\n\tc\n\n"},
		{"A: b\n\nbody\n", "A: b\n\nbody\n"},
		{strings.Repeat("x", 32<<10-1) + "\r\n", strings.Repeat("x", 32<<10-1) + "\n"},
		{strings.Repeat("x", 32<<10-1) + "\r\ny", strings.Repeat("x", 32<<10-1) + "\ny\n"},
		{strings.Repeat("A: b\r\n", 20_000/2) + "\r\nbody", strings.Repeat("A: b\n", 20_000/2) + "\nbody\n"},
	} {
		for _, p := range pieces {
			m := mustRead(t, p.of(strings.NewReader(c.in)), Options{})
			if got := string(m.Bytes()); got != c.want {
				t.Errorf("%.100q %s: %.100q, want %.100q", c.in, p.name, got, c.want)
			}
			checkViews(t, m)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	for _, c := range []struct {
		in    string
		fails bool
	}{
		{"", false},
		{"A: b\n\nbody", false},
		{"A: b\n\nbody\xff\n", false},
		{"A: b\r\n\r\nbody\r\n", true},
		{"A: b\n\nbody\r", true},
		{"A: b\n\nbo\rdy\n", true},
		{"A: \x00b\n\nbody\n", true},
		{"A: b\n\nbody\n\x00", true},
		{"A: b\n\n" + strings.Repeat("x\n", 100_000) + "\r.\r\n", true},
	} {
		for _, p := range pieces {
			spool := newTestSpool(t)
			m, err := Read(p.of(strings.NewReader(c.in)), Options{Lines: Refuse, Spool: spool, Memory: 1})
			switch {
			case c.fails && (reply.Of(err) != reply.BadLines || m.Size() != 0):
				t.Errorf("%.100q %s: %v", c.in, p.name, err)
			case !c.fails && (err != nil || strings.TrimSuffix(string(m.Bytes()), "\n") != c.in && string(m.Bytes()) != c.in):
				t.Errorf("%.100q %s: %q %v", c.in, p.name, m.Bytes(), err)
			}
			m.Body().Release()
			spool.wantFiles(t, 0)
		}
	}
}

func TestReadLimits(t *testing.T) {
	const ten = "A: 4567890"
	fields := strings.Repeat("A: b\n", 10)
	for _, c := range []struct {
		name, in string
		o        Options
		want     reply.Reply
	}{
		{"size reached", "12345", Options{MaxSize: 5}, reply.OK},
		{"size exceeded", "123456", Options{MaxSize: 5}, reply.TooBig},
		{"size counts what comes", "1\r\n\r\n4", Options{MaxSize: 5}, reply.TooBig},
		{"fields reached", fields + "\n", Options{MaxFields: 10}, reply.OK},
		{"fields reached, then body", fields + "body", Options{MaxFields: 10}, reply.OK},
		{"fields exceeded", fields + "B: c\n\n", Options{MaxFields: 10}, reply.HeadTooBig},
		{"fields exceeded by a cut one", fields + "B: c", Options{MaxFields: 10, Lines: Keep}, reply.HeadTooBig},
		{"head reached", ten + "\n\nbody", Options{MaxHead: 11}, reply.OK},
		{"head reached, cut short", ten, Options{MaxHead: 10, Lines: Keep}, reply.OK},
		{"head exceeded", ten + "\n\nbody", Options{MaxHead: 10}, reply.HeadTooBig},
		{"head exceeded, cut short", ten + "1", Options{MaxHead: 10}, reply.HeadTooBig},
		{"head reached, CR LF", ten + "\r\n\r\nbody", Options{MaxHead: 12, Lines: Keep}, reply.OK},
		{"head reached, long line of body", ten + "\n" + strings.Repeat("x", 2000), Options{MaxHead: 11}, reply.OK},
		{"head reached, line of body with a late colon", ten + "\n" + strings.Repeat("x", 990) + " y: z\n", Options{MaxHead: 11}, reply.OK},
		{"head exceeded by a long value", "A: " + strings.Repeat("b", 2000), Options{MaxHead: 1000}, reply.HeadTooBig},
		{"head exceeded by a fold", "A: b\n " + strings.Repeat("b", 2000) + "\n\n", Options{MaxHead: 1000}, reply.HeadTooBig},
	} {
		for _, p := range pieces {
			spool := newTestSpool(t)
			c.o.Spool, c.o.Memory = spool, 1
			m, err := Read(p.of(strings.NewReader(c.in)), c.o)
			if got := reply.Of(err); got != c.want {
				t.Errorf("%s, %s: %v", c.name, p.name, err)
			}
			m.Body().Release()
			spool.wantFiles(t, 0)
		}
	}
}

func TestReadBoundsHostileHeads(t *testing.T) {
	for name, c := range map[string]struct {
		line string
		n    int
		want reply.Reply
	}{
		"10 MB line":                {"x", 10 << 20, reply.OK},
		"10 MB value":               {"A: x", 10 << 20 / 4, reply.HeadTooBig},
		"million fields":            {"A:\n", 1_000_000, reply.HeadTooBig},
		"million folds":             {" \n", 1_000_000, reply.HeadTooBig},
		"million encoded words":     {"A: =?x?", 1_000_000, reply.HeadTooBig},
		"address literal":           {"From: a@[", 1 << 18, reply.HeadTooBig},
		"million separators":        {"\n", 1_000_000, reply.OK},
		"million carriage returns":  {"\r", 1_000_000, reply.OK},
		"million NULs":              {"\x00", 1_000_000, reply.OK},
		"million mbox lines":        {"From a\n", 1_000_000, reply.OK},
		"million blanks of a line":  {" ", 2_000_000, reply.HeadTooBig},
		"million names without end": {"a ", 1_000_000, reply.OK},
	} {
		t.Run(name, func(t *testing.T) {
			counted := &countingReader{r: &repeater{line: c.line, left: c.n}}
			m, err := Read(counted, Options{Spool: newTestSpool(t)})
			if reply.Of(err) != c.want {
				t.Fatal(err)
			}
			if err != nil && counted.n > DefaultMaxHead+maxFieldName+64<<10 {
				t.Errorf("%d bytes were read before the answer", counted.n)
			}
			m.Body().Release()
		})
	}
}

// A field that comes byte by byte must not be searched again for each of them.
func TestReadOfSmallPiecesIsLinear(t *testing.T) {
	in := "A: " + strings.Repeat("b", DefaultMaxHead-100) + "\n\nbody\n"
	m := mustRead(t, iotest.OneByteReader(strings.NewReader(in)), Options{})
	if string(m.Bytes()) != in {
		t.Error("changed")
	}
}

type countingReader struct {
	r io.Reader
	n int
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// repeater gives line left times over.
type repeater struct {
	line string
	left int
	rest string
}

func (r *repeater) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if r.rest == "" {
			if r.left == 0 {
				break
			}
			r.rest, r.left = r.line, r.left-1
		}
		k := copy(p[n:], r.rest)
		r.rest, n = r.rest[k:], n+k
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func TestReadFailsWithItsReader(t *testing.T) {
	for _, c := range []struct {
		err  error
		want reply.Reply
	}{
		{errors.New("EIO"), reply.ReadError},
		{io.ErrUnexpectedEOF, reply.ReadError},
		{fmt.Errorf("connection lost: %w", io.EOF), reply.ReadError},
		{os.ErrDeadlineExceeded, reply.TimedOut},
		{fmt.Errorf("read: %w", context.DeadlineExceeded), reply.TimedOut},
		{reply.With(reply.BadLines, errors.New("bare LF")), reply.BadLines},
		{reply.With(reply.OK, errors.New("no success")), reply.Trouble},
	} {
		for _, sent := range []string{"", "A: b\n", "A: b\n\nbody", "A: b\n\n" + strings.Repeat("x\n", 50_000)} {
			spool := newTestSpool(t)
			r := io.MultiReader(strings.NewReader(sent), iotest.ErrReader(c.err))
			m, err := Read(r, Options{Spool: spool})
			if reply.Of(err) != c.want || !errors.Is(err, c.err) || m.Size() != 0 {
				t.Errorf("%v after %.20q: %v", c.err, sent, err)
			}
			spool.wantFiles(t, 0)
		}
	}
}

type idleReader struct{}

func (idleReader) Read([]byte) (int, error) { return 0, nil }

func TestReadGivesUpOnAnIdleReader(t *testing.T) {
	if _, err := Read(idleReader{}, Options{}); reply.Of(err) != reply.ReadError || !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

func TestParseHead(t *testing.T) {
	for _, c := range oddMessages {
		h, rest := ParseHead(c.in)
		if rest != c.body || h.String()+rest != c.in || fmt.Sprint(fieldNames(h)) != fmt.Sprint(c.names) {
			t.Errorf("%s: %.100q %.100q", c.name, h, rest)
		}
	}
	many := strings.Repeat("A: b\n", DefaultMaxFields+1)
	if h, rest := ParseHead(many + "\nrest"); h.Len() != DefaultMaxFields+1 || rest != "rest" {
		t.Errorf("%d fields, %.100q", h.Len(), rest)
	}
	long := "A: " + strings.Repeat("b", DefaultMaxHead)
	if h, rest := ParseHead(long); h.Len() != 1 || rest != "" {
		t.Errorf("%d fields, %.100q", h.Len(), rest)
	}
}

func TestWords(t *testing.T) {
	for l := Repair; l <= Keep; l++ {
		if got, ok := ParseLines(l.String()); !ok || got != l {
			t.Error(l)
		}
	}
	for o := Add; o <= Replace; o++ {
		if got, ok := ParseEditOp(o.String()); !ok || got != o {
			t.Error(o)
		}
	}
	_, lines := ParseLines("invalid")
	_, op := ParseEditOp("invalid")
	if lines || op || Lines(9).String() != "invalid" || EditOp(9).String() != "invalid" || Form(9).String() != "invalid" {
		t.Error("unknown words")
	}
	if SevenBit.String() != "7bit" || EightBit.String() != "8bit" || UTF8.String() != "utf8" {
		t.Error("forms")
	}
}
