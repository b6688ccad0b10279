package execban

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// FuzzAnswer reads what a worker that is not itself any more may answer: what is
// taken is clean and bounded, is written the same way again, and makes a reply.
func FuzzAnswer(f *testing.F) {
	policy, _, err := (&Options{Unscannable: "refuse", Strictness: "never", Depth: 1, Members: 1, Parts: 1, Bytes: 1, Member: 1, Time: time.Second}).compile()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add((&answer{}).encode())
	f.Add((&answer{parts: 3, members: 1, bytes: 300, omitted: 2, findings: []finding{
		{part: "1.2", reading: "strict", class: "scripts", file: "a.zip/b.js", what: ".js", disguise: "two extensions", basis: byName | byContent, depth: 1},
		{part: "1", reading: "base64-junk", class: Unscannable, what: "it takes longer than 15s", basis: byScan},
	}}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := decode(b, policy.known)
		if err != nil {
			return
		}
		if again := a.encode(); !bytes.Equal(again, b) {
			t.Fatalf("%x is written as %x", b, again)
		}
		for _, x := range a.findings {
			for _, text := range x.texts() {
				if reply.Clean(*text.at, text.max) != *text.at {
					t.Fatalf("%q", *text.at)
				}
			}
		}
		v, err := policy.judge(a, transaction(), message.FromString("A: b\n\nc\n"))
		if err != nil || len(a.findings) > 0 && v.Reason == "" {
			t.Fatal(v, err)
		}
		if line := v.Reply.SMTP(); reply.Clean(line, 600) != line {
			t.Fatalf("%q", line)
		}
	})
}

// FuzzFilter judges any message: the scan ends, what it answers can be read, and
// a message with a program attached to it in the plain way is refused whatever
// is around that.
func FuzzFilter(f *testing.F) {
	filter := newFilter(f, "bytes = 4000000\nmember = 1000000\nmembers = 200\nparts = 500")
	for _, h := range payloads(f) {
		f.Add([]byte(attached("a.bin", h.content)))
	}
	for i, s := range structures() {
		if i%3 == 0 {
			f.Add([]byte(s.make(newRand(uint64(i)), part{"Content-Type: application/octet-stream; name=a.exe\n", "x\n"})))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 64<<10 {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, m := range []message.Message{message.FromString(string(text)), message.FromString(head + plainMixed("Content-Disposition: attachment; filename=a.exe\n\nx\n--b1\n"+string(text)))} {
			v, err := filter.Message(ctx, transaction(), m)
			if err != nil {
				t.Fatal(err)
			}
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				t.Fatal("it does not end")
			}
			if len(m.Bytes()) > len(text) && v.Action != pipeline.Reject {
				t.Fatalf("%v: %s", v.Action, v.Reason)
			}
		}
	})
}
