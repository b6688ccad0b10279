package smtp_test

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/postern-mta/postern/pipeline/smtp"
)

// bothWays runs a test on what comes at once and on what comes byte by byte.
func bothWays(t *testing.T, in string, f func(t *testing.T, r *smtp.Reader)) {
	t.Helper()
	f(t, smtp.NewReader(strings.NewReader(in), 0))
	f(t, smtp.NewReader(iotest.OneByteReader(strings.NewReader(in)), 0))
	f(t, smtp.NewReader(iotest.DataErrReader(strings.NewReader(in)), 64<<10))
}

func TestLine(t *testing.T) {
	long := strings.Repeat("x", 2048)
	for _, c := range []struct {
		in    string
		lines []string
		err   error // of the last
	}{
		{"NOOP\r\nQUIT\r\n", []string{"NOOP", "QUIT"}, io.EOF},
		{"\r\n\r\n", []string{"", ""}, io.EOF},
		{"NOOP\nQUIT\r\n", []string{"!NOOP\nQUIT"}, io.EOF},
		{"NO\rOP\r\n", []string{"!NO\rOP"}, io.EOF},
		{"NO\x00OP\r\n", []string{"!NO\x00OP"}, io.EOF},
		{"NOOP\r\r\n", []string{"!NOOP\r"}, io.EOF},
		{"\nNOOP\r\n", []string{"!\nNOOP"}, io.EOF},
		{"NOOP", nil, io.ErrUnexpectedEOF},
		{"NOOP\r", nil, io.ErrUnexpectedEOF},
		{"", nil, io.EOF},
		{long + "\r\nX\r\n", []string{long, "X"}, io.EOF},
		{long + "x\r\nX\r\n", nil, smtp.ErrLineTooLong},
		{strings.Repeat("y", 1<<20), nil, smtp.ErrLineTooLong},
		{strings.Repeat("y\n", 1<<20), nil, smtp.ErrLineTooLong},
	} {
		bothWays(t, c.in, func(t *testing.T, r *smtp.Reader) {
			for _, want := range c.lines {
				want, bare := strings.CutPrefix(want, "!")
				got, err := r.Line(smtp.MaxCommand)
				if string(got) != want || errors.Is(err, smtp.ErrBare) != bare || err != nil && !bare {
					t.Fatalf("%.40q: %.40q %v, want %.40q", c.in, got, err, want)
				}
			}
			if _, err := r.Line(smtp.MaxCommand); !errors.Is(err, c.err) {
				t.Errorf("%.40q: %v, want %v", c.in, err, c.err)
			}
		})
	}
}

func TestSkipLine(t *testing.T) {
	bothWays(t, strings.Repeat("z", 5000)+"\nz\r\nQUIT\r\n", func(t *testing.T, r *smtp.Reader) {
		if _, err := r.Line(1000); !errors.Is(err, smtp.ErrLineTooLong) {
			t.Fatal(err)
		}
		if err := r.SkipLine(10_000); err != nil {
			t.Fatal(err)
		}
		if line, err := r.Line(1000); string(line) != "QUIT" || err != nil {
			t.Fatalf("%q %v", line, err)
		}
	})
	bothWays(t, strings.Repeat("z", 50_000), func(t *testing.T, r *smtp.Reader) {
		if err := r.SkipLine(10_000); !errors.Is(err, smtp.ErrLineTooLong) {
			t.Fatal(err)
		}
	})
}

// TestResetForgets: what stood in the clear before a handshake is not read as if
// it had come after it.
func TestResetForgets(t *testing.T) {
	r := smtp.NewReader(strings.NewReader("STARTTLS\r\nMAIL FROM:<evil@x>\r\n"), 0)
	if line, err := r.Line(100); string(line) != "STARTTLS" || err != nil || r.Buffered() == 0 {
		t.Fatalf("%q %v %d", line, err, r.Buffered())
	}
	r.Reset(strings.NewReader("EHLO x\r\n"))
	if line, err := r.Line(100); string(line) != "EHLO x" || err != nil || r.Buffered() != 0 {
		t.Fatalf("%q %v", line, err)
	}
}

func TestReaderWithoutProgress(t *testing.T) {
	r := smtp.NewReader(lazy{}, 0)
	if _, err := r.Line(100); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

type lazy struct{}

func (lazy) Read([]byte) (int, error) { return 0, nil }

func TestReadReply(t *testing.T) {
	long := strings.Repeat("x", 3000)
	for _, c := range []struct {
		in, want, text string // want is String; "" for an error
	}{
		{"250 ok\r\n", "250 ok", "ok"},
		{"250\r\n", "250", ""},
		{"250 ok\n", "250 ok", "ok"},
		{"250-one\r\n250 two\r\n", "250 one two", "one\ntwo"},
		{"250-one\n250-\n250\n", "250 one  ", "one\n\n"},
		{"550 5.1.1 no such user\r\n", "550 5.1.1 no such user", "no such user"},
		{"550 5.1.1\r\n", "550 5.1.1", ""},
		{"550-5.1.1 no\r\n550 5.1.1 such user\r\n", "550 5.1.1 no such user", "no\nsuch user"},
		{"550-5.1.1 no\r\n550 5.7.1 such user\r\n", "550 5.1.1 no 5.7.1 such user", "no\n5.7.1 such user"},
		{"550-no\r\n550 5.7.1 such user\r\n", "550 no 5.7.1 such user", "no\n5.7.1 such user"},
		{"550 4.1.1 classes disagree\r\n", "550 4.1.1 classes disagree", "4.1.1 classes disagree"},
		{"250 2.1000.1 x\r\n", "250 2.1000.1 x", "2.1000.1 x"},
		{"250 2.0.0ok\r\n", "250 2.0.0ok", "2.0.0ok"},
		{"250 2.999.999 ok\r\n", "250 2.999.999 ok", "ok"},
		{"250 2..1 ok\r\n", "250 2..1 ok", "2..1 ok"},
		{"250_odd\r\n", "250 odd", "odd"},
		{"250 J\xf6rg \x1b[2J \x00\r\n", "250 J?rg ?[2J ?", "J?rg ?[2J ?"},
		{"250 " + long + "\r\n", "250 " + long[:1996], long[:1996]},
		{"550-one\r\n250 two\r\n", "", ""},
		{"99 x\r\n", "", ""},
		{"150 x\r\n", "", ""},
		{"600 x\r\n", "", ""},
		{"25x x\r\n", "", ""},
		{"\r\n", "", ""},
		{"HTTP/1.1 400 Bad Request\r\n", "", ""},
		{"250 no end", "", ""},
		{"250-no end\r\n", "", ""},
		{"250 " + strings.Repeat("x", 1<<20) + "\r\n", "", ""},
		{strings.Repeat("250-x\r\n", 10_000) + "250 x\r\n", "", ""},
		{strings.Repeat("250-x\r\n", 100) + "250 x\r\n", "", ""},
	} {
		bothWays(t, c.in, func(t *testing.T, r *smtp.Reader) {
			got, err := r.ReadReply()
			if (err == nil) != (c.want != "") || got.String() != c.want || got.Text != c.text {
				t.Errorf("%.60q: %.60q %q %v", c.in, got, got.Text, err)
			}
			if err != nil && (strings.ContainsAny(err.Error(), "\r\n\x00") || len(err.Error()) > 300) {
				t.Errorf("error is not clean: %q", err)
			}
		})
	}
}

func TestRepliesDoNotMix(t *testing.T) {
	bothWays(t, "250-a\r\n250 b\r\n354 go\r\n", func(t *testing.T, r *smtp.Reader) {
		one, err1 := r.ReadReply()
		two, err2 := r.ReadReply()
		_, err3 := r.ReadReply()
		if one.Text != "a\nb" || two.Code != 354 || err1 != nil || err2 != nil || !errors.Is(err3, io.EOF) {
			t.Error(one, two, err1, err2, err3)
		}
	})
}

func TestReplyAsKept(t *testing.T) {
	for in, want := range map[string]string{
		"550 5.1.1 no": "550 5.1.1 no", "450 later": "450 4.0.0 later", "250 2.1.5 ok": "250 2.1.5 ok", "354 go": "451 4.0.0 go",
		"550-5.7.1 two\r\n550 5.7.1 lines": "550 5.7.1 two lines",
	} {
		r, err := smtp.NewReader(strings.NewReader(in+"\r\n"), 0).ReadReply()
		if err != nil || r.Reply().SMTP() != want {
			t.Errorf("%q: %v %v", in, r.Reply(), err)
		}
	}
}

func FuzzReply(f *testing.F) {
	for _, s := range []string{"250 ok\r\n", "550-5.1.1 a\r\n550 5.1.1 b\n", "250-a\r\n550 b\r\n", "250 2.0.0", "42"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := smtp.NewReader(strings.NewReader(string(b)), 0).ReadReply()
		slow, slowErr := smtp.NewReader(iotest.OneByteReader(strings.NewReader(string(b))), 0).ReadReply()
		if got != slow || (err == nil) != (slowErr == nil) {
			t.Fatalf("%v %v at once, %v %v byte by byte", got, err, slow, slowErr)
		}
		if err != nil {
			return
		}
		if got.Code < 200 || got.Code > 599 || len(got.Text) > 64<<10 || strings.Count(got.Text, "\n") >= 100 {
			t.Fatalf("%+v", got)
		}
		for _, c := range []byte(got.Text) {
			if c != '\n' && (c < ' ' || c > '~') {
				t.Fatalf("%q is not clean", got.Text)
			}
		}
		if kept := got.Reply(); kept.Class != got.Class() || strings.ContainsAny(kept.SMTP(), "\r\n") {
			t.Fatalf("%+v", kept)
		}
	})
}

func TestExchangeKeepsWhatIsBuffered(t *testing.T) {
	in := strings.Repeat("x", 600) + "\r\nnext\r\nlast\r\n"
	r := smtp.NewReader(strings.NewReader(in), 512)
	if line, err := r.Line(1000); err != nil || len(line) != 600 {
		t.Fatal(len(line), err)
	}
	if b, err := r.Peek(); err != nil || len(b) == 0 || b[0] != 'n' {
		t.Fatalf("%q, %v", b, err)
	}
	large := make([]byte, 4096)
	small, ok := r.Exchange(large)
	if line, err := r.Line(100); !ok || err != nil || string(line) != "next" {
		t.Fatalf("%q, %v, %v", line, ok, err)
	}
	if back, ok := r.Exchange(small); !ok || &back[0] != &large[0] {
		t.Fatal("another buffer came back")
	}
	if line, err := r.Line(100); err != nil || string(line) != "last" {
		t.Fatalf("%q, %v", line, err)
	}
	if _, err := r.Peek(); err != io.EOF {
		t.Fatal(err)
	}
	if _, ok := r.Exchange(make([]byte, 10)); ok {
		t.Error("a tiny buffer was taken")
	}
	full := smtp.NewReader(strings.NewReader(strings.Repeat("y", 2000)), 2000)
	full.Peek() //nolint:errcheck // it fills the buffer
	if _, ok := full.Exchange(make([]byte, 1999)); ok || full.Buffered() != 2000 {
		t.Error("a buffer was taken that cannot hold what came")
	}
}
