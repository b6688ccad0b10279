package clamav

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/worker"
)

// encoded is base64 in lines of 76.
func encoded(b []byte) string {
	s := base64.StdEncoding.EncodeToString(b)
	var out strings.Builder
	for len(s) > 76 {
		out.WriteString(s[:76] + "\n")
		s = s[76:]
	}
	return out.String() + s + "\n"
}

// trick hides a content in a message; strict ones are where every program looks.
type trick struct {
	name   string
	text   string
	strict bool
}

// tricks are ways to hide a virus from who reads a message in one way.
func tricks(virus []byte) []trick {
	const head = "From: a@example.net\nSubject: hello\nMIME-Version: 1.0\n"
	plain := base64.StdEncoding.EncodeToString(virus)
	part := "Content-Type: application/octet-stream; name=x.bin\nContent-Transfer-Encoding: base64\n\n" + plain + "\n"
	half := len(plain) / 2
	spread := strings.Join(strings.Split(plain, ""), "!")
	return []trick{
		{"attached", head + "Content-Type: multipart/mixed; boundary=b\n\n--b\n\nhello\n--b\n" + part + "--b--\n", true},
		{"two boundaries", head + "Content-Type: multipart/mixed; boundary=a; boundary=b\n\n--a\n\nhello\n--a--\n--b\n" + part + "--b--\n", false},
		{"two types", head + "Content-Type: text/plain\nContent-Type: multipart/mixed; boundary=b\n\n--b\n" + part + "--b--\n", false},
		{"behind the end", head + "Content-Type: multipart/mixed; boundary=b\n\n--b\n\nhello\n--b--\n\n--b\n" + part + "--b--\n", false},
		{"text that looks like parts", head + "Content-Type: text/plain\n\n--b\n" + part + "--b--\n", false},
		{"two encodings", head + "Content-Type: application/octet-stream\nContent-Transfer-Encoding: 7bit\nContent-Transfer-Encoding: base64\n\n" + plain + "\n", false},
		{"unknown encoding", head + "Content-Type: application/octet-stream\nContent-Transfer-Encoding: x-none\n\n" + plain + "\n", false},
		{"no encoding", head + "Content-Type: application/octet-stream\n\n" + plain + "\n", false},
		{"padding in the middle", head + "Content-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n\n" + base64.StdEncoding.EncodeToString([]byte("x")) + "\n" + plain + "\n", false},
		{"junk between letters", head + "Content-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n\n" + spread + "\n", true},
		{"lines of junk", head + "Content-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n\n" + plain[:half-half%4] + "\n!!!!AAAA\n" + plain[half-half%4:] + "\n", false},
		{"encoded message", head + "Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n" + encoded([]byte(head+part)), false},
		{"encoded multipart", head + "Content-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: base64\n\n" + encoded([]byte("--b\n"+part+"--b--\n")), false},
		{"uuencoded", head + "\nbegin 644 x.com\n" + uuencoded(virus) + "end\n", false},
		{"header that ends early", head + "garbage\n" + part, true},
	}
}

func uuencoded(b []byte) string {
	var out strings.Builder
	for len(b) > 0 {
		line := b[:min(45, len(b))]
		b = b[len(line):]
		out.WriteByte(byte(32 + len(line)))
		for i := 0; i < len(line); i += 3 {
			var x [3]byte
			copy(x[:], line[i:])
			for _, c := range []byte{x[0] >> 2, x[0]<<4&63 | x[1]>>4, x[1]<<2&63 | x[2]>>6, x[2] & 63} {
				if c == 0 {
					c = 64
				}
				out.WriteByte(c + 32)
			}
		}
		out.WriteByte('\n')
	}
	return out.String()
}

// A clamd that decodes nothing shows what the filter lays open by itself.
func TestParts(t *testing.T) {
	s := newStub(t, honest)
	differing, all, none := newFilter(t, "", s.Address), newFilter(t, "parts = \"all\"", s.Address), newFilter(t, "parts = \"none\"", s.Address)
	for _, c := range tricks([]byte("This is EICAR and nothing else, but with more words")) {
		if strings.Contains(c.text, "EICAR") {
			t.Fatalf("%s hides nothing", c.name)
		}
		if v := must(t, all, c.text); v.Action != pipeline.Reject || !strings.Contains(v.Reason, "Eicar-Test in part 1") {
			t.Errorf("%s: all: %v %s", c.name, v.Action, v.Reason)
		}
		if v := must(t, differing, c.text); !c.strict && v.Action != pipeline.Reject {
			t.Errorf("%s: differing: %v %s", c.name, v.Action, v.Reason)
		}
		if v := must(t, none, c.text); v.Action != pipeline.Continue {
			t.Errorf("%s: none: %v %s", c.name, v.Action, v.Reason)
		}
	}
	before := s.scans.Load()
	must(t, differing, tricks([]byte("clean"))[0].text)
	if n := s.scans.Load() - before; n != 1 {
		t.Errorf("an ordinary message takes %d scans", n)
	}
}

// Contents that do not fit one answer come in several, in order and whole.
func TestWindows(t *testing.T) {
	big := make([]byte, 3*window+12345)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(big)
	other := append([]byte("other"), big[:700_000]...)
	text := "Subject: x\nContent-Type: multipart/mixed; boundary=a; boundary=b\n\n"
	for _, b := range [][]byte{other, big, other, []byte("small"), big[:window]} {
		text += "--b\nContent-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n\n" + encoded(b)
	}
	text += "--b--\n"
	f := newFilter(t, "parts = \"all\"\ndecoded = 16_000_000", "unix:/x")
	c, err := f.gather(context.Background(), message.FromString(text))
	if err != nil {
		t.Fatal(err)
	}
	defer c.body.Release()
	found := map[string]bool{}
	at := int64(0)
	for _, p := range c.pieces {
		b := make([]byte, p.size)
		if _, err := c.body.ReadAt(b, at); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		at += p.size
		for name, want := range map[string][]byte{"other": other, "big": big, "small": []byte("small"), "window": big[:window]} {
			if bytes.Equal(b, want) {
				if found[name] {
					t.Errorf("%s is there twice", name)
				}
				found[name] = true
			}
		}
	}
	if len(found) != 4 || at != c.body.Size() || c.excess != "" {
		t.Errorf("%v, %d of %d bytes, %q", found, at, c.body.Size(), c.excess)
	}
}

// What cannot all be laid open is not called clean, and what was is scanned.
func TestUnscannable(t *testing.T) {
	s := newStub(t, honest)
	odd := func(contents ...string) string {
		text := "Subject: x\nContent-Type: multipart/mixed; boundary=a; boundary=b\n\n"
		for _, c := range contents {
			text += "--b\nContent-Transfer-Encoding: base64\n\n" + encoded([]byte(c))
		}
		return text + "--b--\n"
	}
	deep := ""
	for range 60 {
		deep += "Content-Type: message/rfc822\n\n"
	}
	for _, c := range []struct {
		name, config, text string
		action             pipeline.Action
		reply              string
	}{
		{"large", "max = 100", large, pipeline.Reject, "554 5.7.1 this message cannot be scanned for viruses: larger than 100 bytes"},
		{"large put off", "max = 100\nunscannable = \"defer\"\ntext = \"ask us\"", large, pipeline.Defer, "451 4.7.1 this message cannot be scanned for viruses: larger than 100 bytes; ask us"},
		{"large held", "max = 100\nunscannable = \"quarantine\"", large, pipeline.Quarantine, ""},
		{"large passes", "max = 100\nunscannable = \"pass\"", large, pipeline.Continue, ""},
		{"many contents", "contents = 2", odd("a", "b", "c"), pipeline.Reject, "it has more contents than may be scanned"},
		{"large contents", "decoded = 50", odd(strings.Repeat("a", 51)), pipeline.Reject, "it has larger contents than may be scanned"},
		{"many, and a virus", "contents = 2\nunscannable = \"pass\"", odd("a", "EICAR", "b", "c", "d"), pipeline.Reject, "a virus was found"},
		{"deep", "", deep, pipeline.Reject, "it has "},
	} {
		v := must(t, newFilter(t, c.config, s.Address), c.text)
		if v.Action != c.action || c.reply != "" && !strings.Contains(v.Reply.SMTP(), c.reply) {
			t.Errorf("%s: %v %q %s", c.name, v.Action, v.Reply.SMTP(), v.Reason)
		}
	}
	s.plays(saying("stream: Heuristics.Limits.Exceeded.MaxFileSize FOUND\x00"))
	if v := must(t, newFilter(t, "unscannable = \"quarantine\"", s.Address), large); v.Action != pipeline.Quarantine || v.Symbols[0].Name != symbolUnscannable {
		t.Error(v)
	}
}

// swapped has a pool do another job, or fails.
type swapped struct {
	pipeline.Workers
	job string
	err error
}

func (s swapped) Do(ctx context.Context, r worker.Request) ([]byte, error) {
	if s.err != nil {
		return nil, s.err
	}
	r.Job = s.job
	return s.Workers.Do(ctx, r)
}

// Real workers: one that does its work, those that answer garbage, and none.
func TestWorkers(t *testing.T) {
	s := newStub(t, honest)
	pool := worker.New(worker.Options{Size: 1, Wait: time.Minute})
	defer pool.Close()
	hidden := tricks([]byte("This is EICAR and nothing else, but with more words"))[1].text
	f := newFilter(t, "", s.Address)
	f.workers = pool
	if v := must(t, f, hidden); v.Action != pipeline.Reject {
		t.Error(v)
	}
	many := "Subject: x\nContent-Type: multipart/mixed; boundary=a; boundary=b\n\n--b\n\n" + strings.Repeat("many lines\n", 200_000) + "\n--b\n\nEICAR?"
	if c, err := f.gather(context.Background(), message.FromString(many)); err != nil || c.body.Size() < 2_000_000 {
		t.Errorf("%+v, %v", c, err)
	} else {
		c.body.Release()
	}
	f.workers = swapped{Workers: pool, job: "garbage"}
	if v := must(t, f, hidden); v.Action != pipeline.Quarantine { // two workers answered it
		t.Error(v)
	}
	for _, err := range []error{worker.ErrBusy, worker.ErrDied, worker.ErrSlow, errors.New("other")} {
		f.workers = swapped{err: fmt.Errorf("x: %w", err)}
		if v, got := judge(f, hidden, 10*time.Second); !errors.Is(got, err) || v.Action != pipeline.Continue {
			t.Errorf("%v: %v, %v", err, v, got)
		}
	}
	f.workers = nil
	if _, err := judge(f, hidden, 10*time.Second); err == nil {
		t.Error("without workers the message passes")
	}
}

// Hostile messages of the suite, through the job itself, give answers that
// decode.
func TestHostile(t *testing.T) {
	r := request{All: true, Bytes: 1 << 20, Contents: 50}
	for _, h := range filtertest.HostileMessages() {
		a, err := r.layOpen(context.Background(), strings.NewReader(h.Text), int64(len(h.Text)), worker.NewScratch(nil, 1<<20))
		if err != nil {
			t.Errorf("%s: %v", h.Name, err)
			continue
		}
		if _, err := r.decode(a.encode()); err != nil {
			t.Errorf("%s: %v", h.Name, err)
		}
	}
}
