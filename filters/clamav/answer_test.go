package clamav

import (
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Names are clean whatever clamd's signatures call them.
func TestName(t *testing.T) {
	for answer, want := range map[string]string{
		"stream: Eicar-Test FOUND\x00":                        "Eicar-Test",
		"stream: Win.Trojan.A-1(00ff:68) FOUND\x00":           "Win.Trojan.A-1(00ff:68)",
		"stream: x\r\nX-Injected: y FOUND\x00":                "x X-Injected: y",
		"stream: a\x1b[2J\x07\xff FOUND\x00":                  "a?[2J??",
		"stream:  \t  FOUND\x00":                              "unnamed",
		"stream: OK FOUND\x00":                                "OK",
		"stream: " + strings.Repeat("x", 4000) + " FOUND\x00": strings.Repeat("x", maxName),
	} {
		s := newStub(t, saying(answer))
		v := must(t, newFilter(t, "header = \"X-Virus\"", s.Address), "Subject: x\n\nbody\n")
		if v.Action != pipeline.Reject || v.Reply.SMTP() != "554 5.7.1 a virus was found in this message: "+want || v.Symbols[0].Detail != want || v.Edits != nil {
			t.Errorf("%.60q is %v %q", answer, v.Action, v.Reply.SMTP())
		}
	}
}

// FuzzAnswer: only one answer is clean, and a name is.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{"", "\x00", "stream: OK\x00", "stream: OK", "stream: X FOUND\x00", "stream: x\r\nX-Injected: y FOUND\x00", "INSTREAM size limit exceeded. ERROR\x00", "UNKNOWN COMMAND\x00", "stream: OK\x00stream: OK\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		name, err := parseAnswer(b)
		switch {
		case err != nil:
			if name != "" || reply.Clean(err.Error(), 1000) != err.Error() {
				t.Errorf("%q is %q, %q", b, name, err)
			}
		case name == "":
			if string(b) != "stream: OK\x00" {
				t.Errorf("%q is clean", b)
			}
		case reply.Clean(name, maxName) != name || !strings.HasPrefix(string(b), "stream: ") || !strings.HasSuffix(string(b), " FOUND\x00"):
			t.Errorf("%q is %q", b, name)
		}
	})
}

// FuzzDecode: what a worker answers is within bounds, and is written again as
// it was.
func FuzzDecode(f *testing.F) {
	r := request{Bytes: 1 << 20, Contents: 10}
	for _, a := range []answer{{}, {excess: "too much"}, {pieces: []piece{{"1.2", "base64-padding base64", 4}}, bytes: []byte("four")}, {pieces: []piece{{"1", "strict", 1}, {"1", "", 2}}, bytes: []byte("abc")}} {
		f.Add(a.encode(), int64(0))
		f.Add(a.encode(), int64(2))
	}
	f.Fuzz(func(t *testing.T, b []byte, skip int64) {
		r := r
		r.Skip = max(skip, 0)
		a, err := r.decode(b)
		if err != nil {
			return
		}
		if len(a.pieces) > r.Contents || a.total() > r.Bytes || len(a.bytes) > window || string(a.encode()) != string(b) {
			t.Errorf("%q is %+v", b, a)
		}
	})
}
