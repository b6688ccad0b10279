package smtp_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/smtp"
)

// forms are the ends of data that some server or other has taken for one.
var forms = []string{
	"\n.\n", "\r.\r", "\r.\n", "\n.\r", "\n.\r\n", "\r\n.\n", "\r.\r\n", "\r\n.\r", "\r\n\x00.\r\n", "\r\n.\x00\r\n", "\r\n.\r\r\n",
	"\r\r\n.\r\r\n",
}

// dotted writes body in pieces of the sizes given, over and over.
func dotted(t testing.TB, body string, sizes ...int) string {
	var out bytes.Buffer
	w := bufio.NewWriterSize(&out, 16)
	d := smtp.NewDotWriter(w)
	for i := 0; len(body) > 0; i++ {
		n := len(body)
		if len(sizes) > 0 {
			n = min(n, sizes[i%len(sizes)])
		}
		if k, err := d.Write([]byte(body[:n])); k != n || err != nil {
			t.Fatal(k, err)
		}
		body = body[n:]
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// reference reads a message as RFC 5321 §4.5.2 says and nothing else: it finds
// the first CR LF . CR LF, and says whether what stands before is clean.
func reference(stream string) (body string, used int, clean, ended bool) {
	end := strings.Index("\r\n"+stream, "\r\n.\r\n")
	if end < 0 {
		return "", 0, false, false
	}
	clean = true
	var b strings.Builder
	for _, line := range strings.SplitAfter(stream[:end], "\r\n") {
		text := strings.TrimSuffix(line, "\r\n")
		clean = clean && !strings.ContainsAny(text, "\r\n\x00")
		b.WriteString(strings.TrimPrefix(text, "."))
		if text != line {
			b.WriteByte('\n')
		}
	}
	return b.String(), end + 3, clean, true
}

// repaired is a body as it may go out. A NUL between CR and LF makes two line
// ends of them.
func repaired(body string) string {
	body = strings.NewReplacer("\r\n", "\n", "\r", "\n", "\x00", "").Replace(body)
	if body != "" && !strings.HasSuffix(body, "\n") {
		body += "\n"
	}
	return body
}

func bodies() *rapid.Generator[string] {
	piece := rapid.OneOf(
		rapid.SampledFrom([]string{"\n", ".", "\r", "\x00", "\r\n", "..", "\n.\n", "\r\n.\r\n", "MAIL FROM:<evil@x>", "a"}),
		rapid.SampledFrom(forms), rapid.StringN(0, 20, 60))
	return rapid.Map(rapid.SliceOfN(piece, 0, 30), func(all []string) string { return strings.Join(all, "") })
}

// TestNothingSplitsAMessage: whatever a body holds, it goes over the wire as one
// message, without a bare byte, and comes back.
func TestNothingSplitsAMessage(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		body := bodies().Draw(rt, "body")
		wire := dotted(t, body, rapid.SliceOfN(rapid.IntRange(1, 40), 0, 5).Draw(rt, "sizes")...)
		back, used, clean, ended := reference(wire)
		if !ended || used != len(wire) || !clean {
			rt.Fatalf("%q: end at %d of %d, clean %v", wire, used, len(wire), clean)
		}
		if want := repaired(body); back != want {
			rt.Fatalf("%q came back as %q, want %q", body, back, want)
		}
		r := smtp.NewReader(iotest.HalfReader(strings.NewReader(wire)), 0)
		d := smtp.NewDotReader(r, false)
		got, err := io.ReadAll(d)
		if err != nil || string(got) != back || d.Bare() || r.Buffered() != 0 {
			rt.Fatalf("%q was read as %q: %v", wire, got, err)
		}
	})
}

func TestDotWriter(t *testing.T) {
	for in, want := range map[string]string{
		"":               ".\r\n",
		"a":              "a\r\n.\r\n",
		"a\n":            "a\r\n.\r\n",
		".":              "..\r\n.\r\n",
		".\n":            "..\r\n.\r\n",
		"..a\n":          "...a\r\n.\r\n",
		"a\n.\nMAIL\n":   "a\r\n..\r\nMAIL\r\n.\r\n",
		"a\r\n.\r\nb":    "a\r\n..\r\nb\r\n.\r\n",
		"a\r.\rb":        "a\r\n..\r\nb\r\n.\r\n",
		"a\r":            "a\r\n.\r\n",
		"\x00":           ".\r\n",
		"a\n\x00.\nb\n":  "a\r\n..\r\nb\r\n.\r\n",
		"a\n.\x00\nb\n":  "a\r\n..\r\nb\r\n.\r\n",
		"a\r\r\n.\r\r\n": "a\r\n\r\n..\r\n\r\n.\r\n",
		"\n":             "\r\n.\r\n",
	} {
		if got := dotted(t, in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
		if got := dotted(t, in, 1); got != want {
			t.Errorf("%q byte by byte: %q, want %q", in, got, want)
		}
	}
	d := smtp.NewDotWriter(bufio.NewWriter(io.Discard))
	fmt.Fprint(d, "a\rb\x00\r\n")
	if err := d.Close(); err != nil || d.Repaired() != 2 || d.Written() != 6 {
		t.Error(d.Repaired(), d.Written(), err)
	}
}

// TestFormsDoNotEndData feeds each form, and a second message behind it, to the
// server's reader: it must read on to the true end, and refuse or repair.
func TestFormsDoNotEndData(t *testing.T) {
	for _, form := range forms {
		stream := "first" + form + "MAIL FROM:<evil@x>\r\nRCPT TO:<a@b>\r\nDATA\r\nsecond\r\n.\r\nQUIT\r\n"
		for _, repair := range []bool{false, true} {
			bothWays(t, stream, func(t *testing.T, r *smtp.Reader) {
				d := smtp.NewDotReader(r, repair)
				got, err := io.ReadAll(d)
				if !d.Bare() || !d.Ended() || (err == nil) != repair || !repair && reply.Of(err) != reply.BadLines {
					t.Fatalf("%q: %v", form, err)
				}
				if !strings.HasPrefix(string(got), "first") || !strings.HasSuffix(string(got), "DATA\nsecond\n") || strings.ContainsAny(string(got), "\r\x00") {
					t.Errorf("%q: %q", form, got)
				}
				if line, err := r.Line(100); string(line) != "QUIT" || err != nil {
					t.Errorf("%q: then %q %v", form, line, err)
				}
				// And on its way out again it is one message.
				if _, used, clean, ended := reference(dotted(t, string(got))); !ended || !clean || used != len(dotted(t, string(got))) {
					t.Errorf("%q splits on its way out", form)
				}
			})
		}
	}
}

func TestDotReaderEndsEarly(t *testing.T) {
	for _, in := range []string{"", "a", "a\r\n", "a\r\n.", "a\r\n.\r", "a\r\n..\r\n"} {
		bothWays(t, in, func(t *testing.T, r *smtp.Reader) {
			d := smtp.NewDotReader(r, true)
			if _, err := io.ReadAll(d); !errors.Is(err, io.ErrUnexpectedEOF) || d.Ended() {
				t.Errorf("%q: %v", in, err)
			}
		})
	}
	if _, err := smtp.NewDotReader(smtp.NewReader(iotest.ErrReader(errors.New("reset")), 0), true).Read(make([]byte, 9)); err == nil || err.Error() != "reset" {
		t.Error(err)
	}
}

func TestParseBDAT(t *testing.T) {
	for in, want := range map[string]string{
		"10": "10 false", "0 LAST": "0 true", "86 last": "86 true", " 5  LAST ": "5 true", "999999999999999999": "999999999999999999 false",
		"": "", "-1": "", "+1": "", "1x": "", "99999999999999999999 LAST": "", "10 FIRST": "", "10 LAST x": "", "LAST": "", "0x10": "",
	} {
		size, last, err := smtp.ParseBDAT(in)
		if got := fmt.Sprint(size, last); err == nil && got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %s %v", in, got, err)
		}
	}
	if got := string(smtp.AppendBDAT(smtp.AppendBDAT(nil, 7, false), 0, true)); got != "BDAT 7\r\nBDAT 0 LAST\r\n" {
		t.Errorf("%q", got)
	}
}

// TestChunks: what is in a chunk is content, whatever it looks like.
func TestChunks(t *testing.T) {
	for _, c := range []struct {
		name, in string
		repair   bool
		want     string
		err      error
	}{
		{name: "one", in: "BDAT 5 LAST\r\nabc\r\nQUIT\r\n", want: "abc\n"},
		{name: "a dot", in: "BDAT 21 LAST\r\na\r\n.\r\nMAIL FROM:<x>\r\nQUIT\r\n", want: "a\n.\nMAIL FROM:<x>\n"},
		{name: "CR and LF apart", in: "BDAT 2\r\na\rBDAT 1\r\n\nBDAT 3 LAST\r\n.\r\nQUIT\r\n", want: "a\n.\n"},
		{name: "empty last", in: "BDAT 3\r\na\r\nBDAT 0 LAST\r\nQUIT\r\n", want: "a\n"},
		{name: "empty", in: "BDAT 0 LAST\r\nQUIT\r\n"},
		{name: "bare", in: "BDAT 3 LAST\r\na\nbQUIT\r\n", want: "a\nb", err: smtp.ErrBare},
		{name: "bare CR at the end", in: "BDAT 2 LAST\r\na\rQUIT\r\n", want: "a\n", err: smtp.ErrBare},
		{name: "repaired", in: "BDAT 5 LAST\r\na\rb\x00\rQUIT\r\n", want: "a\nb\n", repair: true},
		{name: "cut off", in: "BDAT 10\r\nabcde", want: "abcde", err: io.ErrUnexpectedEOF},
		{name: "another command", in: "BDAT 1\r\naRSET\r\n", want: "a", err: errNoBDAT},
	} {
		bothWays(t, c.in, func(t *testing.T, r *smtp.Reader) {
			next := func() (int64, bool, error) {
				line, err := r.Line(100)
				if err != nil {
					return 0, false, err
				}
				args, ok := strings.CutPrefix(string(line), "BDAT ")
				if !ok {
					return 0, false, errNoBDAT
				}
				return smtp.ParseBDAT(args)
			}
			size, last, err := next()
			if err != nil {
				t.Fatal(err)
			}
			chunks := smtp.NewChunkReader(r, size, last, c.repair, next)
			got, err := io.ReadAll(chunks)
			if string(got) != c.want || !errors.Is(err, c.err) && (err != nil || c.err != nil) {
				t.Fatalf("%s: %q %v", c.name, got, err)
			}
			if err == nil || errors.Is(err, smtp.ErrBare) {
				if line, err := r.Line(100); string(line) != "QUIT" || err != nil {
					t.Errorf("%s: then %q %v", c.name, line, err)
				}
			}
		})
	}
}

var errNoBDAT = errors.New("no BDAT")

func TestSkipChunk(t *testing.T) {
	bothWays(t, strings.Repeat("x", 5000)+"QUIT\r\n", func(t *testing.T, r *smtp.Reader) {
		c := smtp.NewChunkReader(r, 5000, false, false, nil)
		if _, err := io.CopyN(io.Discard, c, 100); err != nil {
			t.Fatal(err)
		}
		if err := c.Skip(); err != nil {
			t.Fatal(err)
		}
		if line, err := r.Line(100); string(line) != "QUIT" || err != nil {
			t.Fatalf("%q %v", line, err)
		}
	})
	if err := smtp.NewChunkReader(smtp.NewReader(strings.NewReader("abc"), 0), 9, true, true, nil).Skip(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func FuzzDot(f *testing.F) {
	for _, form := range forms {
		f.Add([]byte("a"+form+"MAIL FROM:<evil@x>\r\n.\r\n"), uint8(3))
	}
	f.Add([]byte("..a\r\n.\r\nQUIT\r\n"), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, size uint8) {
		// As a server reads it.
		body, used, clean, ended := reference(string(b))
		in := bytes.NewReader(b)
		r := smtp.NewReader(in, int(size))
		d := smtp.NewDotReader(r, true)
		got, err := io.ReadAll(d)
		if ended != (err == nil) || ended && clean == d.Bare() {
			t.Fatalf("ended %v, clean %v, but %v, bare %v", ended, clean, err, d.Bare())
		}
		if rest := in.Len() + r.Buffered(); ended && len(b)-rest != used {
			t.Fatalf("%d bytes used, want %d", len(b)-rest, used)
		}
		if ended && clean && string(got) != body {
			t.Fatalf("%q, want %q", got, body)
		}
		if bytes.ContainsAny(got, "\r\x00") {
			t.Fatalf("%q is not repaired", got)
		}
		// As a client writes it.
		out := dotted(t, string(b), int(size)+1)
		if _, used, clean, ended := reference(out); !ended || !clean || used != len(out) {
			t.Fatalf("%q goes out as %q", b, out)
		}
	})
}

// BenchmarkDotWriter compares the writer with a plain copy of the same bytes.
func BenchmarkDotWriter(b *testing.B) {
	text := []byte(strings.Repeat("A line of a message is about as long as this one is, not longer.\n", 1000))
	w := bufio.NewWriterSize(io.Discard, 16<<10)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		d := smtp.NewDotWriter(w)
		d.Write(text) //nolint:errcheck // to nowhere
		d.Close()     //nolint:errcheck // to nowhere
	}
}
