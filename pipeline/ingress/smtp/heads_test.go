package smtp

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

// takeOnce has a server read one message without network, and returns how it is
// answered.
func takeOnce(t *testing.T, o Options, text string) (answer string, taken []stored) {
	t.Helper()
	server, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	words := "EHLO c\r\nMAIL FROM:<a@client.example>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n" + text + ".\r\n"
	conn := &spoken{pieces: [][]byte{[]byte(words)}}
	newSession(server, conn).run()
	server.cancel(errStopped)
	_, after, _ := strings.Cut(conn.said.String(), "\r\n354 ")
	_, after, _ = strings.Cut(after, "\r\n")
	return after, o.Sink.(*fakeSink).taken()
}

// plainOptions are those of a server in a test without network.
func plainOptions(t *testing.T) Options {
	st := newStage(t, nil)
	t.Cleanup(func() { st.o.Chains.(*pipeline.Generations).Swap(nil) }) //nolint:errcheck // there is no filter
	o := st.o
	o.Listener = newPipeListener()
	spool, err := message.OpenDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o.Spool = spool
	return o
}

const tooBigHead = "552 5.3.4 message header is larger than my limit\r\n"

// Heads of any size and messages without one are taken or refused, and what is
// held in memory is bounded by the limits, not by what comes.
func TestHugeHeads(t *testing.T) {
	for _, c := range []struct {
		name, text, answer, ends string
	}{
		{"a header line of 10 MB", "Subject: " + strings.Repeat("x", 10<<20) + "\r\n\r\nbody\r\n", tooBigHead, ""},
		{"a header line of 10 MB without an end of the head", "Subject: " + strings.Repeat("x", 10<<20) + "\r\n", tooBigHead, ""},
		{"10 MB of folds", "Subject: x\r\n" + strings.Repeat(" x\r\n", 10<<18) + "\r\n", tooBigHead, ""},
		{"a million header fields", strings.Repeat("A: b\r\n", 1_000_000) + "\r\nbody\r\n", tooBigHead, ""},
		{"ten thousand header fields", strings.Repeat("A: b\r\n", 10_000) + "\r\nbody\r\n", "250 2.0.0 ok q1\r\n", "A: b\n\nbody\n"},
		{"10 MB that are no field", strings.Repeat("x", 10<<20) + "\r\n", "250 2.0.0 ok q1\r\n", "xxx\n"},
		{"a head of just under a MiB", "Subject: " + strings.Repeat("x", 1<<20-100) + "\r\n\r\nbody\r\n", "250 2.0.0 ok q1\r\n", "xxx\n\nbody\n"},
		{"no separator", "Subject: x\r\nbody\r\n", "250 2.0.0 ok q1\r\n", "Subject: x\n\nbody\n"},
		{"header only", "Subject: x\r\n", "250 2.0.0 ok q1\r\n", "\nSubject: x\n"},
		{"header and separator only", "Subject: x\r\n\r\n", "250 2.0.0 ok q1\r\n", "\nSubject: x\n\n"},
		{"body only", "\r\nbody\r\n", "250 2.0.0 ok q1\r\n", "\n\nbody\n"},
		{"an empty message", "", "250 2.0.0 ok q1\r\n", "\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			answer, taken := takeOnce(t, plainOptions(t), c.text)
			if answer != c.answer || len(taken) > 1 || (len(taken) == 1) != (answer[0] == '2') {
				t.Fatalf("%q, %d messages", answer, len(taken))
			}
			if len(taken) == 1 && !strings.HasSuffix(taken[0].text, c.ends) {
				t.Errorf("it ends with %q", taken[0].text[max(0, len(taken[0].text)-100):])
			}
		})
	}
	t.Run("memory", func(t *testing.T) {
		o := plainOptions(t)
		text := "Subject: " + strings.Repeat("x", 10<<20) + "\r\n"
		small := allocated(func() { takeOnce(t, o, text[:2<<20]+"\r\n") })
		large := allocated(func() { takeOnce(t, o, text) })
		// The words themselves are copied twice to be said.
		if grown := int64(large) - int64(small); grown > 2*(8<<20)+(2<<20) {
			t.Errorf("8 MiB more make %d more", grown)
		}
	})
}

// What is odd in a head, and what somebody lies about in it, is stored byte for
// byte: filters judge it, and nothing here trips over it.
func TestOddHeadsStay(t *testing.T) {
	for _, head := range []string{
		"__proto__: x\nconstructor: y\n", "From : x\n", "A B: x\n", "A\x01B: x\n", "A\x80\xff: x\n", "\xc3\xa4: \xc3\xb6\n", ": x\n", "A:\n", "A:b\n", "A: b\n \n c\n", "A: b\n\t\n",
		"From: a@b\nFrom: c@d\n", "From: a@b, c@d\n", "From: A group: a@b, c@d;\n", "From: undisclosed-recipients:;\n", "From: \"a@good.com\" <b@evil>\n",
		"From: a@b (c@d)\n", "From: <a@b> <c@d>\n", "From: =?utf-8?q?a=40good=2Ecom?= <b@evil>\n", "From: =?utf-8?q?=00a=40b?=\n", "From: \n", "FROM: a@b\nfrom: c@d\n", "From: a@b\n c@d\n", "From: @x:a@b\n", "From: a@b@c\n",
		"Authentication-Results: mx.example.org; dmarc=pass\n", "authentication-results : (x) mx.example.org/1 ; dmarc=pass\n", "Authentication-Results:\n mx.example.org\n ; dmarc=pass\n",
		"Received: from x by mx.example.org; never\n", "Return-Path: <evil@x>\n", "Content-Type: multipart/mixed; boundary=\"\"\n", "Bcc: secret@example.org\n",
		"DKIM-Signature: v=1; d=x; b=" + strings.Repeat("A", 4000) + "\n", "Subject: =?utf-8?b?" + strings.Repeat("=?x?", 1000) + "\n",
	} {
		answer, taken := takeOnce(t, plainOptions(t), strings.ReplaceAll(head, "\n", "\r\n")+"\r\nbody\r\n")
		if !strings.HasPrefix(answer, "250 ") || len(taken) != 1 {
			t.Errorf("%q: %q", head, answer)
			continue
		}
		_, rest, _ := strings.Cut(taken[0].text, "\n\tfor <b@example.org>; ")
		_, rest, _ = strings.Cut(rest, "\n")
		// A line that is no field ends the head, with a blank line before it.
		if want := head + "\nbody\n"; rest != want && rest != "\n"+want {
			t.Errorf("%q became %q", want, rest)
		}
	}
}

// growth is how many times longer a function takes for an input n times as
// long, of the fastest of several runs.
func growth(small, large func()) float64 {
	fastest := func(f func()) time.Duration {
		var all []time.Duration
		for range 5 {
			runtime.GC()
			start := time.Now()
			f()
			all = append(all, time.Since(start))
		}
		return max(slices.Min(all), 20*time.Microsecond)
	}
	return float64(fastest(large)) / float64(fastest(small))
}

// Input that is quadratic for some readers takes time in proportion here: 16
// times as much takes about 16 times as long, and would take 256 times.
func TestLinearInput(t *testing.T) {
	const n, times = 16 << 10, 16
	for name, text := range map[string]func(n int) string{
		"a domain literal":     func(n int) string { return "From: a@[" + strings.Repeat("a", n) + "]\r\n\r\n" },
		"nested comments":      func(n int) string { return "From: " + strings.Repeat("(", n) + "\r\n\r\n" },
		"encoded words":        func(n int) string { return "Subject: " + strings.Repeat("=?x?", n/4) + "\r\n\r\n" },
		"folds":                func(n int) string { return "Subject: x\r\n" + strings.Repeat(" \r\n", n/3) + "\r\n" },
		"one line":             func(n int) string { return strings.Repeat("x", n) + "\r\n" },
		"dots":                 func(n int) string { return "\r\n" + strings.Repeat(".\r", n/2) + "\r\n" },
		"lines":                func(n int) string { return "\r\n" + strings.Repeat("\r\n", n/2) },
		"almost ends":          func(n int) string { return "\r\n" + strings.Repeat(".\r\r\n", n/4) },
		"received that is not": func(n int) string { return strings.Repeat("Receive:\r\n", min(n/10, 9000)) + "\r\n" },
	} {
		t.Run(name, func(t *testing.T) {
			o := plainOptions(t)
			o.Sink = &fakeSink{forget: true}
			run := func(n int) func() {
				s := text(n)
				return func() { takeOnce(t, o, s) }
			}
			if g := growth(run(n), run(times*n)); g > 4*times {
				t.Errorf("%d times the input takes %.0f times as long", times, g)
			}
		})
	}
	// A literal of 262,144 bytes in a command is a line that is too long, and says
	// nothing about what stands behind it.
	server, conn := "", &spoken{pieces: [][]byte{fmt.Appendf(nil, "EHLO c\r\nMAIL FROM:<a@[%s]>\r\nNOOP\r\n", strings.Repeat("a", 60_000))}}
	s, err := New(plainOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	newSession(s, conn).run()
	s.cancel(errStopped)
	if server = conn.said.String(); !strings.HasSuffix(server, "\r\n500 5.5.2 line too long\r\n250 2.0.0 ok\r\n") {
		t.Errorf("%q", server)
	}
}
