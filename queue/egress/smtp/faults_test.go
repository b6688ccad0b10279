package smtp_test

import (
	"crypto/tls"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// point is where in a conversation a fault comes.
type point struct {
	name  string
	at    smtptest.At
	match string
	// right is the code that belongs there, and wait the time that a client waits for
	// it.
	right int
	wait  time.Duration
}

// points are the columns of the matrix, in the order of a conversation.
func points() []point {
	return []point{
		{"greeting", smtptest.Connect, "", 220, 5 * time.Minute},
		{"hello", smtptest.Hello, "", 250, 5 * time.Minute},
		{"mail", smtptest.Mail, "", 250, 5 * time.Minute},
		{"first-rcpt", smtptest.Rcpt, "a@d.test", 250, 5 * time.Minute},
		{"last-rcpt", smtptest.Rcpt, "b@d.test", 250, 5 * time.Minute},
		{"data", smtptest.Data, "", 354, 2 * time.Minute},
		{"body", smtptest.Body, "", 0, 3 * time.Minute},
		{"dot", smtptest.Dot, "", 250, 10 * time.Minute},
		{"after", smtptest.After, "", 0, 5 * time.Second},
		{"quit", smtptest.Quit, "", 221, 5 * time.Second},
	}
}

// fault is a row of the matrix: what a server does at a point, nil where that means
// nothing.
type fault struct {
	name string
	step func(p point) *smtptest.Step
}

func ends(with smtptest.End) func(point) *smtptest.Step {
	return func(point) *smtptest.Step { return &smtptest.Step{End: with} }
}

// raw says something that is no answer, or a strange one. Where no answer belongs it
// is followed by the end.
func raw(text func(code int) string, end smtptest.End) func(point) *smtptest.Step {
	return func(p point) *smtptest.Step {
		if p.right == 0 {
			return nil
		}
		return &smtptest.Step{Raw: text(p.right), End: end}
	}
}

// answer says no. Within the message it is the last word.
func answer(text string) func(point) *smtptest.Step {
	return func(p point) *smtptest.Step {
		switch p.name {
		case "body":
			return &smtptest.Step{Reply: text, End: smtptest.Close}
		case "after":
			return nil
		}
		return &smtptest.Step{Reply: text}
	}
}

func answerAndClose(text string) func(point) *smtptest.Step {
	return func(p point) *smtptest.Step {
		if p.right == 0 {
			return nil
		}
		return &smtptest.Step{Reply: text, End: smtptest.Close}
	}
}

func delayed(by func(p point) time.Duration) func(point) *smtptest.Step {
	return func(p point) *smtptest.Step {
		if p.right == 0 {
			return nil
		}
		return &smtptest.Step{Delay: by(p)}
	}
}

// faults are the rows of the matrix but for those of the network itself.
func faults() []fault {
	return []fault{
		{"hole", ends(smtptest.Hole)},
		{"close", ends(smtptest.Close)},
		{"reset", ends(smtptest.Abort)},
		{"half-close", ends(smtptest.HalfClose)},
		{"zero-window", ends(smtptest.Stall)},
		{"421", answer("421 4.3.2 down")},
		{"421-and-stays", func(p point) *smtptest.Step {
			return &smtptest.Step{Raw: "421 4.3.2 down\r\n", End: smtptest.Hole}
		}},
		{"4xx", answer("451 4.7.1 later")},
		{"5xx", answer("554 5.7.1 no")},
		{"4xx-and-close", answerAndClose("451 4.7.1 later")},
		{"5xx-and-close", answerAndClose("554 5.7.1 no")},
		{"wrong-code", raw(func(code int) string {
			if code == 354 {
				return "250 2.0.0 ok\r\n"
			}
			return "354 go ahead\r\n"
		}, smtptest.GoOn)},
		{"no-reply", raw(func(int) string { return "HTTP/1.1 400 Bad Request\r\n" }, smtptest.GoOn)},
		{"code-changes", raw(func(code int) string { return fmt.Sprintf("%d-one\r\n554 two\r\n", code) }, smtptest.GoOn)},
		{"10000-lines", raw(func(code int) string {
			return strings.Repeat(fmt.Sprintf("%d-x\r\n", code), 10_000) + fmt.Sprintf("%d x\r\n", code)
		}, smtptest.GoOn)},
		{"1-MiB", raw(func(code int) string { return fmt.Sprintf("%d %s\r\n", code, strings.Repeat("x", 1<<20)) }, smtptest.GoOn)},
		{"endless-lines", raw(func(code int) string { return fmt.Sprintf("%d-x\r\n", code) }, smtptest.Endless)},
		{"no-LF", raw(func(code int) string { return fmt.Sprintf("%d %s", code, strings.Repeat("x", 1000)) }, smtptest.Endless)},
		{"slow-loris", func(p point) *smtptest.Step {
			if p.right == 0 {
				return nil
			}
			return &smtptest.Step{Raw: fmt.Sprintf("%d-x\r\n", p.right), Drip: time.Second, End: smtptest.Endless}
		}},
		{"tarpit", delayed(func(p point) time.Duration { return p.wait - time.Second })},
		{"late", delayed(func(p point) time.Duration { return p.wait + time.Second })},
		{"8-bit", raw(func(code int) string { return fmt.Sprintf("%d J\xf6rg\x1b[2J\x00\x07 x\r\n", code) }, smtptest.GoOn)},
		{"two-answers", raw(func(code int) string { return fmt.Sprintf("%d ok\r\n250 2.0.0 taken\r\n", code) }, smtptest.GoOn)},
	}
}

func isLong(f fault) bool {
	return slices.Contains([]string{"10000-lines", "1-MiB", "no-LF"}, f.name)
}

// dialFaults are what the network does by itself.
func dialFaults() map[string]error {
	return map[string]error{
		"refused": syscall.ECONNREFUSED, "unreachable-host": syscall.EHOSTUNREACH, "unreachable-net": syscall.ENETUNREACH,
		"reset-at-once": syscall.ECONNRESET, "black-hole": nil,
	}
}

// modes are the ways to speak, each of which has the whole matrix.
func modes(t *testing.T) []mode {
	secure := smtptest.TLS((*smtptest.Authority)(nil).Issue(t, time.Time{}, "d.test"))
	return []mode{
		{name: "pipelined"},
		{name: "bytes", segment: 1},
		{name: "lockstep", offers: []string{"8BITMIME", "ENHANCEDSTATUSCODES"}},
		{name: "chunks", o: smtp.Options{Chunking: true}},
		{name: "tls", tls: secure},
		{name: "lmtp", o: smtp.Options{Routes: to(smtp.Hop{Transport: smtp.LMTP, Host: "192.0.2.1"}, smtp.Hop{Transport: smtp.LMTP, Host: "192.0.2.2"})}},
	}
}

type mode struct {
	name    string
	segment int
	offers  []string
	tls     *tls.Config
	o       smtp.Options
	// implicit servers begin with TLS.
	implicit bool
}

// cells are those of a file of testdata: what comes of a fault at a point, by "fault
// point", or "fault point mode" where that is otherwise.
func cells(t *testing.T, file string) map[string]string {
	t.Helper()
	content, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	all, name := map[string]string{}, ""
	for i, l := range strings.Split(string(content), "\n") {
		if rest, ok := strings.CutPrefix(l, "== "); ok {
			name = rest
			continue
		}
		if l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		where, what, ok := strings.Cut(l, "|")
		key := name + " " + strings.Join(strings.Fields(where), " ")
		if _, twice := all[key]; !ok || name == "" || twice {
			t.Fatalf("%s:%d: %q is no cell, or stands there twice", file, i+1, l)
		}
		var parts []string
		for part := range strings.SplitSeq(what, "|") {
			parts = append(parts, strings.TrimSpace(part))
		}
		all[key] = strings.Join(parts, " | ")
	}
	return all
}

// TestFaultMatrix has every fault at every point of the conversation, in every way to
// speak, with one server and with another behind it: none may be missing, and each
// ends as testdata/faults.txt has it. Time is simulated, so that the times are those
// of RFC 5321.
func TestFaultMatrix(t *testing.T) {
	want := cells(t, "faults.txt")
	m := &matrix{file: "faults.txt", want: want, known: map[string]bool{}}
	for _, how := range modes(t) {
		if testing.Short() && how.name != "pipelined" && how.name != "tls" {
			continue
		}
		for name, err := range dialFaults() {
			t.Run(how.name+" "+name, func(t *testing.T) {
				m.check(t, name, "dial", how.name, how.both(t, trouble{dial: err, silent: err == nil}))
			})
		}
		for _, f := range faults() {
			for _, p := range points() {
				t.Run(how.name+" "+f.name+" "+p.name, func(t *testing.T) {
					step := f.step(p)
					if how.o.Chunking && p.name == "data" || how.segment == 1 && isLong(f) {
						return // there is no such command, or it would take too long
					}
					if step == nil {
						m.check(t, f.name, p.name, how.name, "-")
						return
					}
					step.At, step.Match, step.Bytes = p.at, p.match, 1000
					m.check(t, f.name, p.name, how.name, how.both(t, trouble{step: step}))
				})
			}
		}
	}
	if !testing.Short() {
		m.whole(t)
	}
	t.Log(table(want))
}

// matrix compares what comes of faults with what a file says.
type matrix struct {
	file  string
	want  map[string]string
	known map[string]bool
}

func (m *matrix) check(t *testing.T, fault, point, how, got string) {
	t.Helper()
	key := fault + " " + point
	if _, own := m.want[key+" "+how]; own {
		key += " " + how
	}
	m.known[key] = true
	if w, ok := m.want[key]; !ok {
		t.Errorf("%s: a cell is missing: %s, %s, which is in %s:\n%s", m.file, fault, point, how, got)
	} else if w != got {
		t.Errorf("%s at %s, %s:\ngot  %s\nwant %s", fault, point, how, got, w)
	}
}

// whole checks that the file has no cells but those that were tried.
func (m *matrix) whole(t *testing.T) {
	t.Helper()
	for key := range m.want {
		if !m.known[key] {
			t.Errorf("%s: there is no such cell: %s", m.file, key)
		}
	}
}

// table is the matrix for people: what comes of a fault where there is one server.
func table(cells map[string]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-15s", "")
	for _, p := range points() {
		fmt.Fprintf(&b, " %-18s", p.name)
	}
	for _, f := range faults() {
		fmt.Fprintf(&b, "\n%-15s", f.name)
		for _, p := range points() {
			alone, _, _ := strings.Cut(cells[f.name+" "+p.name], " | ")
			fmt.Fprintf(&b, " %-18s", alone)
		}
	}
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range dialFaults() {
			if !yield(name) {
				return
			}
		}
	})
	for _, name := range names {
		fmt.Fprintf(&b, "\n%-15s %s", name, cells[name+" dial"])
	}
	return b.String()
}

// both is what comes of some trouble with one server, and with another behind it.
func (m mode) both(t *testing.T, bad trouble) string {
	t.Helper()
	alone, heard := m.run(t, bad, false)
	two, _ := m.run(t, bad, true)
	if two == alone {
		two = "same"
	}
	return alone + " | " + two + " | " + heard
}

// run delivers to a host that makes trouble, in simulated time.
func (m mode) run(t *testing.T, bad trouble, another bool) (outcome, heard string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, m, bad, another)
		start := time.Now()
		results := s.exit.Deliver(t.Context(), s.job())
		took := time.Since(start)
		s.exit.Close(t.Context())
		outcome, heard = s.outcome(results, took), s.gate.heardOf("192.0.2.1")
		s.close()
	})
	return outcome, heard
}
