package tap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

// copyOf taps a message and is the copy's text.
func copyOf(t testing.TB, f *Filter, in string) string {
	t.Helper()
	return string(onlyCopy(t, run(t, envelope.To("s@t", "a@b"), message.FromString(in), f)).Message.Bytes())
}

// tapped says whether a message is copied, and gives the message itself as it goes on.
func tapped(t testing.TB, f *Filter, in string) (bool, string) {
	t.Helper()
	o := run(t, envelope.To("", "archive@y"), message.FromString(in), f)
	if len(o.Outgoing) == 0 {
		t.Fatalf("nothing goes on: %+v", o.Trace)
	}
	return len(o.Outgoing) == 2, string(o.Outgoing[0].Message.Bytes())
}

func everything(t testing.TB) *Filter {
	return newTap(t, Options{Rules: []string{"A::archive@y"}})
}

func TestMarkedCopyIsNotTappedAgain(t *testing.T) {
	f := everything(t)
	for _, in := range []string{
		text, "", "\n", "body without a head\n", "Subject: x\n", "Subject: x", "Subject: x\n\n", "Subject: x\n\n\n\n",
		" folded first line\nSubject: x\n\nb\n", "From x@y today\nSubject: x\n\nb\n", "A: b\r\nSubject: x\r\n\r\nbody\r\n",
		"Subject: x\n\nno newline at the end", "Subject: =?utf-8?q?=C3=A4?=\nFrom: \xe9 <a@b>\n\n\xff\xfe\n",
	} {
		c := copyOf(t, f, in)
		again, same := tapped(t, f, c)
		if again || same != c {
			t.Errorf("%q: the copy is tapped again: %q", in, c)
		}
		if o := run(t, envelope.To("", "archive@y"), message.FromString(c), f); o.Trace[0].Reason != "a tapped copy, not copied again" {
			t.Errorf("%+v", o.Trace)
		}
		// Every tap of the installation knows it, one in qmail's way too.
		compat := newTap(t, Options{Rules: []string{"A::other@y"}, Compat: true})
		if o := run(t, envelope.To("", "archive@y"), message.FromString(c), compat); len(o.Outgoing[0].Envelope.Recipients) != 1 {
			t.Errorf("%q: a recipient is added to a copy", in)
		}
	}
}

// What mail systems do to a message in transit.
var transports = []struct {
	name string
	do   func(string) string
}{
	{"Received", func(s string) string { return "Received: from x by y;\n Wed, 05 Aug 2026 12:00:00 +0000\n" + s }},
	{"Delivered-To", func(s string) string { return "Delivered-To: archive@y\n" + s }},
	{"Return-Path", func(s string) string { return "Return-Path: <>\n" + s }},
	{"fields below", below},
	{"CRLF", func(s string) string { return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\n", "\r\n") }},
	{"a final newline", func(s string) string { return s + "\n" }},
	{"no final newline", func(s string) string { return strings.TrimRight(s, "\n") }},
	{"blank lines at the end", func(s string) string { return s + strings.Repeat("\n", 1025) }},
	{"refolded mark", func(s string) string { return strings.Replace(s, "; r=", ";\n\tr=", 1) }},
	{"unfolded mark", func(s string) string { return strings.Replace(s, ";\n m=", "; m=", 1) }},
	{"refolded subject", func(s string) string { return strings.Replace(s, "hello world", "hello\n  world", 1) }},
	{"case of a name", func(s string) string { return strings.Replace(s, "\nPostern-Tapped", "\nPOSTERN-TAPPED", 1) }},
	{"a mark of another installation", nil},
}

// below puts a field below all others.
func below(s string) string {
	for _, separator := range []string{"\n\n", "\n\r\n"} {
		if head, body, ok := strings.Cut(s, separator); ok && message.FromString(s).HeadText() == head+separator {
			return head + "\nX-Below: z" + separator + body
		}
	}
	return s
}

func TestMarkWithstandsTransport(t *testing.T) {
	f := everything(t)
	const in = "Message-ID: <1@x>\nSubject: hello world\nFrom: a@b\n\nFirst.\n\nLast.\n"
	there, err := New(testEnv("there"), Options{Rules: []string{"A::archive@z"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range transports {
		if c.do == nil {
			c.do = func(s string) string { return copyOf(t, there, s) }
		}
		changed := c.do(copyOf(t, f, in))
		if again, _ := tapped(t, f, changed); again {
			t.Errorf("%s: tapped again: %q", c.name, changed)
		}
	}
}

// Two installations that copy to each other end it, because each leaves the
// other's mark alone.
func TestTwoInstallations(t *testing.T) {
	here := everything(t)
	there, err := New(testEnv("there"), Options{Rules: []string{"A::archive@here"}})
	if err != nil {
		t.Fatal(err)
	}
	first := copyOf(t, here, text)
	second := copyOf(t, there, first)
	if again, same := tapped(t, here, second); again || same != second {
		t.Errorf("here again: %q", same)
	}
	if again, same := tapped(t, there, second); again || same != second {
		t.Errorf("there again: %q", same)
	}
}

func TestMarkFitsOneMessage(t *testing.T) {
	f := everything(t)
	const in = "Message-ID: <1@x>\nDate: today\nFrom: a@b\nSubject: hello\nContent-Type: text/plain\nContent-Transfer-Encoding: 7bit\n\nFirst.\n\nLast.\n"
	c := copyOf(t, f, in)
	for _, change := range [][2]string{
		{"<1@x>", "<2@x>"},
		{"Date: today\n", "Date: tomorrow\n"},
		{"From: a@b", "From: b@b"},
		{"Subject: hello", "Subject: hellO"},
		{"Subject: hello\n", "Subject: hello\nSubject: hello\n"},
		{"Subject: hello\n", "Subject: hello\nsubject:\n"},
		{"Subject: hello\n", ""},
		{"text/plain", "text/html"},
		{"7bit", "base64"},
		{"First.", "first."},
		{"First.\n\n", "First.\n"},
		{"First.\n\n", "First.\n\n\n"},
		{"Last.\n", "Last.\n\n."},
		{"Last.\n", ""},
		{"\nLast", "\n Last"},
	} {
		forged := strings.Replace(c, change[0], change[1], 1)
		if forged == c {
			t.Fatalf("%q is not in the copy", change[0])
		}
		again, rest := tapped(t, f, forged)
		if !again || strings.Contains(rest, markField+":") {
			t.Errorf("%q to %q: tapped %v, and on goes %q", change[0], change[1], again, rest)
		}
	}
}

// Any one byte of the mark changed, or left out, makes it no mark of ours.
func TestMarkByteByByte(t *testing.T) {
	f := everything(t)
	c := copyOf(t, f, text)
	start := strings.Index(c, markField+":")
	end := start + strings.Index(c[start:], "m=") + len("m=") + macLength
	value := start + len(markField+":")
	for i := value; i < end; i++ {
		if c[i] == ' ' || c[i] == '\n' {
			continue
		}
		for _, b := range []byte{c[i] ^ 1, c[i] ^ 0x20, '0', 'A', ' ', 0x80, ';'} {
			if b == c[i] || b == '\n' || b == '\r' {
				continue
			}
			if again, _ := tapped(t, f, c[:i]+string([]byte{b})+c[i+1:]); !again {
				t.Errorf("byte %d of the mark as %q is believed", i-value, b)
			}
		}
		if again, _ := tapped(t, f, c[:i]+c[i+1:]); !again {
			t.Errorf("believed without byte %d", i-value)
		}
	}
}

func TestForgeriesAreRemoved(t *testing.T) {
	f := everything(t)
	k := f.marker
	ours := k.make([]string{"x@y"}, [32]byte{}).String()
	other := newMarker([]byte("another"), k.now).make([]string{"x@y"}, [32]byte{}).String()
	var notOurs []string
	for _, v := range []string{
		"", "yes", "v=1", ours, strings.ToUpper(ours), "v=1; " + ours, ours + ";", "(comment) " + ours,
		strings.Replace(ours, "v=1", "v=2", 1), strings.Replace(ours, "t=", "t=0", 1), strings.Replace(ours, "t=", "t=+", 1),
		strings.Replace(ours, " t=", "\n\n t=", 1), strings.Repeat("x", 10_000), ours + strings.Repeat(" ", maxMarkBytes),
	} {
		notOurs = append(notOurs, markField+": "+v+"\n")
	}
	for i, forged := range append(notOurs, strings.Join(notOurs[:11], ""), strings.Repeat(notOurs[1], 5000)) {
		again, rest := tapped(t, f, forged+text)
		if want := text; !again || i != 11 && rest != want {
			t.Errorf("%.100q: tapped %v, and on goes %.200q", forged, again, rest)
		}
		c := copyOf(t, f, forged+text)
		if n := strings.Count(c, markField+":"); i != 11 && n != 1 {
			t.Errorf("%.100q: %d marks on the copy", forged, n)
		}
		if again, _ := tapped(t, f, c); again {
			t.Errorf("%.100q: the copy is tapped again", forged)
		}
	}
	// Another installation's mark is left where forgeries go.
	foreign := markField + ": " + other + "\n"
	if again, rest := tapped(t, f, foreign+text); !again || rest != foreign+text {
		t.Errorf("another's mark: tapped %v, %q", again, rest)
	}
	if again, rest := tapped(t, f, notOurs[1]+foreign+notOurs[3]+text); !again || rest != foreign+text {
		t.Errorf("another's mark among forgeries: tapped %v, %q", again, rest)
	}
	// Ours counts though forgeries surround it, as long as it is looked at.
	c := copyOf(t, f, text)
	if again, rest := tapped(t, f, strings.Repeat(notOurs[1], maxMarks-1)+c); again || rest != c {
		t.Errorf("the tenth mark is ours: tapped %v, %q", again, rest)
	}
	if again, rest := tapped(t, f, strings.Repeat(notOurs[1], maxMarks)+c); !again || strings.Contains(rest, markField+":") {
		t.Errorf("the eleventh mark is ours: tapped %v, %q", again, rest)
	}
}

func TestMarkEnds(t *testing.T) {
	made := testEnv("here").Now()
	c := copyOf(t, everything(t), text)
	for _, at := range []struct {
		after time.Duration
		again bool
	}{{0, false}, {7 * 24 * time.Hour, false}, {lifetime, false}, {lifetime + time.Second, true}, {-time.Hour, false}, {-10 * lifetime, false}} {
		env := testEnv("here")
		env.Now = func() time.Time { return made.Add(at.after) }
		f, err := New(env, Options{Rules: []string{"A::archive@y"}})
		if err != nil {
			t.Fatal(err)
		}
		if again, _ := tapped(t, f, c); again != at.again {
			t.Errorf("after %v: tapped %v", at.after, again)
		}
	}
}

// The clock of the system is used where none is given.
func TestClock(t *testing.T) {
	env := testEnv("here")
	env.Now = nil
	f, err := New(env, Options{Rules: []string{"A::archive@y"}})
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := tapped(t, f, copyOf(t, f, text)); again {
		t.Error("tapped again")
	}
}

func TestMarksDifferByRecipients(t *testing.T) {
	k := everything(t).marker
	marks := map[string]bool{}
	for _, to := range [][]string{{"a@b"}, {"b@b"}, {"a@b", "b@b"}, {"a@bb@b"}, {"a@", "bb@b"}} {
		marks[k.make(to, [32]byte{}).String()] = true
	}
	if len(marks) != 5 || k.make([]string{"a@b", "b@b"}, [32]byte{}) != k.make([]string{"b@b", "a@b"}, [32]byte{}) {
		t.Errorf("%d marks of 5", len(marks))
	}
}

// failing is a body that cannot be read.
type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, io.ErrClosedPipe }

func TestUnreadableBody(t *testing.T) {
	f := everything(t)
	body := message.StoredBody{At: failing{}, Size: 10}.Open()
	head := message.FromString(markField + ": " + f.marker.make([]string{"x@y"}, [32]byte{}).String() + "\nSubject: x\n\n").Head()
	for name, h := range map[string]message.Head{"copy": {}, "mark": head} {
		o := run(t, envelope.To("s@t", "a@b"), message.New(h, body), f)
		if len(o.Outgoing) != 0 || o.Fates[0].Action != pipeline.Defer || !strings.Contains(o.Trace[0].Err, "closed pipe") {
			t.Errorf("%s: %+v", name, o)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := digestBody(ctx, body); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	short := message.StoredBody{At: strings.NewReader("half"), Size: 8}.Open()
	if _, err := digestBody(context.Background(), short); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

// A body is read only for a copy or for a mark that claims to be ours.
func TestBodyIsNotReadForNothing(t *testing.T) {
	f := newTap(t, Options{Rules: []string{"F:nobody:archive@y"}})
	other := newMarker([]byte("another"), f.marker.now).make([]string{"x@y"}, [32]byte{}).String()
	body := message.StoredBody{At: failing{}, Size: 10}.Open()
	for _, head := range []string{"Subject: x\n\n", markField + ": x\n\n", markField + ": " + other + "\n\n"} {
		o := run(t, envelope.To("s@t", "a@b"), message.New(message.FromString(head).Head(), body), f)
		if len(o.Outgoing) != 1 || o.Trace[0].Err != "" {
			t.Errorf("%q: %+v", head, o.Trace)
		}
	}
}

// The digest is the same for bodies in memory and in a file, and in whatever
// pieces it is read, and is what a repairing entrance would make of the body.
func TestCanonicalBody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := []byte(strings.Join(rapid.SliceOf(rapid.SampledFrom([]string{"a", "b", "\n", "\r", "\r\n", "\x00", "\xff", strings.Repeat("\n", 600), strings.Repeat("x", chunk-1)})).Draw(t, "body"), ""))
		at := rapid.IntRange(0, len(in)).Draw(t, "cut")
		digest := func(b *message.Body) string {
			sum, err := digestBody(context.Background(), b)
			if err != nil {
				t.Fatal(err)
			}
			return string(sum)
		}
		want := digest(message.BytesBody(in))
		stored := message.StoredBody{At: bytes.NewReader(in), Size: int64(len(in))}.Open()
		if digest(stored) != want {
			t.Fatal("a body in a file has another digest")
		}
		repaired, err := message.Read(io.MultiReader(strings.NewReader("A: b\n\n"), bytes.NewReader(in)), message.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if digest(repaired.Body()) != want {
			t.Fatal("the repaired body has another digest")
		}
		content, _ := repaired.Body().Memory()
		if text := bytes.TrimRight(content, "\n"); digest(message.BytesBody(text)) != want || bytes.IndexByte(text, '\r') >= 0 {
			t.Fatal("blank lines at the end count")
		}
		two := canonicalOf(in[:at], in[at:])
		if one := canonicalOf(in); one != two || one != strings.TrimRight(string(content), "\n") {
			t.Fatalf("%q in two pieces, %q in one, %q repaired", two, one, content)
		}
	})
}

// collector is a hash.Hash that keeps what is written.
type collector struct{ bytes.Buffer }

func (c *collector) Sum(b []byte) []byte { return append(b, c.Bytes()...) }
func (c *collector) Size() int           { return c.Len() }
func (c *collector) BlockSize() int      { return 1 }

func canonicalOf(pieces ...[]byte) string {
	var all collector
	c := canonical{to: &all}
	for _, p := range pieces {
		c.write(p)
	}
	return all.String()
}

// A mark that we made is known again after transport, and not on a message that
// differs in one byte of its body.
func TestMarkProperty(t *testing.T) {
	f := everything(t)
	line := rapid.StringMatching(`[ -~]{0,30}`)
	rapid.Check(t, func(r *rapid.T) {
		body := strings.Join(rapid.SliceOfN(line, 0, 20).Draw(r, "lines"), "\n")
		in := "Subject: " + line.Draw(r, "subject") + "\nFrom: " + line.Draw(r, "from") + "\n\n" + body
		c := copyOf(t, f, in)
		moved := c
		for _, i := range rapid.SliceOfN(rapid.IntRange(0, 7), 0, 5).Draw(r, "transports") {
			moved = transports[i].do(moved)
		}
		if again, _ := tapped(t, f, moved); again {
			r.Fatalf("tapped again: %q", moved)
		}
		text := strings.TrimRight(body, "\n")
		if text == "" {
			return
		}
		at := len(c) - len(body) + rapid.IntRange(0, len(text)-1).Draw(r, "at")
		b := rapid.SampledFrom([]byte("aZ~\x80\xff\t")).Draw(r, "byte")
		if c[at] == b {
			return
		}
		if again, _ := tapped(t, f, c[:at]+string([]byte{b})+c[at+1:]); !again {
			r.Fatalf("believed with byte %d of the body as %q", at, b)
		}
	})
}

func FuzzMark(f *testing.F) {
	k := newMarker([]byte("secret"), func() time.Time { return time.Unix(1785931200, 0) })
	genuine := k.make([]string{"x@y"}, [32]byte{1})
	f.Add(genuine.String())
	f.Add(strings.ReplaceAll(genuine.String(), "\n", ""))
	f.Add("v=1; k=; t=; r=; m=")
	f.Fuzz(func(t *testing.T, value string) {
		m, ok := parseMark(value)
		if !ok {
			if m != (mark{}) {
				t.Errorf("%+v of what is no mark", m)
			}
			return
		}
		unfolded := strings.ReplaceAll(m.String(), "\n", "")
		if again, ok := parseMark(unfolded); !ok || again != m {
			t.Errorf("%q becomes %q", value, unfolded)
		}
		without := func(s string) string { return strings.NewReplacer(" ", "", "\t", "").Replace(s) }
		if without(unfolded) != without(value) {
			t.Errorf("%q is read as %q", value, unfolded)
		}
		if err := (message.FieldEdit{Name: markField, Value: m.String()}).Check(); err != nil {
			t.Errorf("%q cannot be written: %v", value, err)
		}
		s := marked{taken: true, sum: [32]byte{1}}
		fits, err := k.fits(context.Background(), m, &s)
		if err != nil || fits != (m.mac == k.mac(m, s.sum) && k.now().Unix()-m.time <= int64(lifetime/time.Second)) {
			t.Errorf("%q fits: %v %v", value, fits, err)
		}
		if fits && m.recipients == genuine.recipients && m.time == genuine.time && m.mac != genuine.mac {
			t.Errorf("a forgery: %q", value)
		}
	})
}

func TestFindingsEdits(t *testing.T) {
	f := findings{removed: 1, kept: []mark{{key: "1"}, {key: "2"}}}
	var got []string
	for _, e := range f.edits() {
		got = append(got, fmt.Sprintf("%v %.10s", e.Field.Op, e.Field.Value))
	}
	if want := []string{"remove ", "add v=1; k=2; ", "add v=1; k=1; "}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
