package qfilter

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/program"
	"github.com/postern-mta/postern/pipeline/reply"
)

// programs is what starts the programs of all tests, as the daemon has one.
var programs = program.New(program.Options{})

// The test binary is the process that starts programs, too.
func TestMain(m *testing.M) {
	program.Main()
	code := m.Run()
	if name, err := hostile(); err == nil {
		os.RemoveAll(filepath.Dir(name))
	}
	if err := programs.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// environment is what a filter has of the daemon, and a process that starts
// programs which is there before the filter is.
func environment(t testing.TB) pipeline.Env {
	t.Helper()
	p, err := programs.Start(program.Spec{Path: "/bin/true"})
	if err == nil {
		_, err = p.Wait(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	e := filtertest.Env(t)
	e.Programs = programs
	return e
}

// sample is the path of one of the programs in testdata.
func sample(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// script is a program of a few lines of shell.
func script(t testing.TB, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return name
}

// rig is a filter in a chain, with its log.
type rig struct {
	t     testing.TB
	env   pipeline.Env
	chain *pipeline.Chain
	log   *filtertest.Log
}

func newRig(t testing.TB, o Options) *rig { return newRigWithin(t, o, time.Minute) }

func newRigWithin(t testing.TB, o Options, timeout time.Duration) *rig {
	t.Helper()
	r := &rig{t: t, env: environment(t), log: new(filtertest.Log)}
	r.env.Log = slog.New(slog.NewTextHandler(r.log, nil))
	f, err := New(r.env, o)
	if err != nil {
		t.Fatal(err)
	}
	r.chain, err = pipeline.NewChain("test", []pipeline.Step{{Name: Name, Filter: f, Timeout: timeout}}, pipeline.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const plain = "Received: from a by b; Mon, 2 Nov 2026 10:00:00 +0000\nSubject: hello\nDate: Mon, 2 Nov 2026 10:00:00 +0000\n\nThe body.\n"

// result is what became of a message.
type result struct {
	action                   pipeline.Action
	reply, reason, err, text string
	envelope                 string // "sender -> recipient recipient", of the message that is stored
	body                     *message.Body
}

func (r *rig) run(text string) result {
	r.t.Helper()
	return r.runAs(filtertest.Stranger(), envelope.To("joe@example.net", "r@example.org"), message.FromString(text))
}

func (r *rig) runAs(s *pipeline.Session, e envelope.Envelope, m message.Message) (got result) {
	r.t.Helper()
	tx := &pipeline.Transaction{ID: "t1", Session: s, Envelope: e}
	o := r.chain.Run(context.Background(), tx, m)
	defer o.Release()
	got.reply = o.Reply.SMTP()
	switch {
	case len(o.Fates) > 0:
		got.action = o.Fates[0].Action
	case o.Reply.Class == reply.Temporary: // for nobody
		got.action = pipeline.Defer
	}
	for _, entry := range o.Trace {
		got.reason, got.err = entry.Reason, entry.Err
	}
	for _, out := range o.Outgoing {
		got.envelope += out.Envelope.Sender + " -> " + strings.Join(out.Envelope.Addresses(), " ") + ";"
		got.text, got.body = string(out.Message.Bytes()), out.Message.Body()
	}
	got.envelope = strings.TrimSuffix(got.envelope, ";")
	return got
}

// want checks that the message goes on in some form.
func (r *rig) want(text, want string) {
	r.t.Helper()
	if got := r.run(text); got.text != want || got.err != "" {
		r.t.Errorf("%.300q, want %.300q: %.300v %s", got.text, want, got, r.log)
	}
}

// fails checks that the programs fail, and that nothing is stored.
func (r *rig) fails(text, why string) {
	r.t.Helper()
	if got := r.run(text); got.action != pipeline.Defer || !strings.HasPrefix(got.reply, "451 4.3.0 ") || !strings.Contains(got.err, why) || got.text != "" {
		r.t.Errorf("%+v, want an error %q: %s", got, why, r.log)
	}
}

// The suite that every filter passes.
func TestSuite(t *testing.T) {
	line := func(args ...string) string {
		var quoted []string
		for i, a := range args {
			if i == 0 || args[i-1] == "--" {
				a = sample(t, a)
			}
			quoted = append(quoted, fmt.Sprintf("%q", a))
		}
		return "command = [" + strings.Join(quoted, ", ") + "]"
	}
	many := []string{"deny-header", "Subject", "pills", "--", "add-header", "X-Footed: yes", "--", "rewrite-sender", "old.example", "new.example"}
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: line(many...),
		Env: func(t testing.TB) pipeline.Env {
			e := environment(t)
			e.Spool = nil // the suite's
			return e
		},
		Cases: []filtertest.Case{
			{
				Name: "a header", From: "a@example.net", Message: "A: b\n\nbody\n", WantMessage: "X-Footed: yes\nA: b\n\nbody\n",
				WantEdits: []string{"a new head of 2 fields"}, WantReason: "add-header wrote the message anew",
			},
			{
				Name: "a field leaves", Config: line("drop-date"), Message: "A: b\nDate: x\nC: d\n\nDate: y\n", WantMessage: "A: b\nC: d\n\nDate: y\n",
			},
			{
				Name: "refused", Message: "subject: cheap pills\n\nx\n", WantAction: pipeline.Reject,
				WantReply: "554 5.3.0 no Subject like that here", WantReason: "deny-header: exit 82",
			},
			{
				Name: "a program by mail", Config: line("deny-filetypes"), WantAction: pipeline.Reject, WantReply: "554 5.3.0 ", WantReason: "deny-filetypes: exit 31",
				Message: "Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: application/x\nContent-Disposition: attachment;\n filename=\"a b.EXE\"\n\nMZ\n--x--\n",
			},
			{Name: "none", Config: line("deny-filetypes"), Message: "Content-Type: text/plain; name=a.exe.txt\n\nx\n"},
			{
				Name: "another sender", Config: line("rewrite-sender", "old.example", "new.example"), From: "joe@old.example", To: []string{"r@example.org", "s@example.org"},
				WantEdits: []string{"sender <joe@new.example>"}, WantEnvelopes: []string{"joe@new.example -> r@example.org s@example.org"},
			},
			{Name: "nobody", Config: line("rewrite-sender", "old.example", "new.example")},
		},
	})
}

// Nothing is copied that stays: a new head keeps the body, and a program that
// writes what it reads changes nothing.
func TestSharedBody(t *testing.T) {
	for _, size := range []int{10, 1 << 20} {
		body := strings.Repeat("x\n", size/2)
		r := newRig(t, Options{Command: []string{"cat"}})
		m, err := message.Read(strings.NewReader(plain+body), message.Options{Spool: r.env.Spool})
		if err != nil {
			t.Fatal(err)
		}
		e := envelope.To("a@example.net", "r@example.org")
		if got := r.runAs(filtertest.Stranger(), e, m); got.body != m.Body() || got.text != plain+body {
			t.Errorf("%.300v", got)
		}
		r.chain = newRig(t, Options{Command: []string{sample(t, "add-header"), "A:b"}}).chain
		if got := r.runAs(filtertest.Stranger(), e, m); got.body != m.Body() || got.text != "A:b\n"+plain+body {
			t.Errorf("%.300v", got)
		}
		r = newRig(t, Options{Command: []string{"tr", "x", "y"}})
		if got := r.runAs(filtertest.Stranger(), e, m); got.body == m.Body() || got.text != strings.ReplaceAll(plain+body, "x", "y") {
			t.Errorf("%.300v", got)
		}
		m.Body().Release()
	}
}

// The bytes that a program writes are those that are stored, head and body.
func TestBytes(t *testing.T) {
	for name, c := range map[string]struct{ in, out string }{
		"all new":            {plain, "subject:a\nX:  b \n\tc\n\nnew\n"},
		"another body":       {plain, "Subject: x\n\nother\n"},
		"no head":            {plain, "\nThe body.\n"},
		"no head, no line":   {plain, "this is no header\n"},
		"only a head":        {plain, "Subject: x\n"},
		"a blank more":       {plain, "\n" + plain},
		"longer":             {plain, plain + "-- \nfooter\n"},
		"shorter":            {plain, "Subject: hello\n"},
		"8-bit":              {plain, "Subject: \xe4\xff\n\n\xf0\n"},
		"an odd field":       {plain, "A : b\nFrom x\n\nThe body.\n"},
		"folded first":       {plain, " folded\nA: b\n\nThe body.\n"},
		"without a blank":    {"A: b\nno field\n", "C: d\nno field\n"},
		"the body in a head": {"A: b\n\nC: d\n\nx\n", "C: d\n\nx\n"},
		"to an empty one":    {"A: b\n\n", "A: b\nC: d\n\n"},
		"from nothing":       {"", "A: b\n\nx\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/out", []byte(c.out), 0o600); err != nil {
				t.Fatal(err)
			}
			newRig(t, Options{Command: []string{"cat", dir + "/out"}}).want(c.in, c.out)
		})
	}
}

// Line ends and NULs are repaired, or the program has failed; a message that came
// with them is passed on as it is written.
func TestLines(t *testing.T) {
	odd := script(t, `printf 'A: b\r\nC: d\re: f\r\n\r\nbo\000dy\r\nend'`)
	newRig(t, Options{Command: []string{odd}}).want(plain, "A: b\nC: d\ne: f\n\nbody\nend\n")
	newRig(t, Options{Command: []string{odd}, Lines: "refuse"}).fails(plain, "holds a CR or a NUL")
	for _, lines := range []string{"", "refuse"} {
		r := newRig(t, Options{Command: []string{odd}, Lines: lines})
		for _, text := range []string{"A: b\r\n\r\nx\r\n", "A: b\n\nx\x00\n", "A: b\n\nno end"} {
			r.want(text, "A: b\r\nC: d\re: f\r\n\r\nbo\x00dy\r\nend")
		}
		r = newRig(t, Options{Command: []string{sample(t, "add-header"), "X: y"}, Lines: lines})
		r.want("A: b\r\n\r\nx\r\n", "X: y\nA: b\r\n\r\nx\r\n")
	}
	// All lines of a message with other ends: nothing has changed.
	dos := newRig(t, Options{Command: []string{"sed", `s/$/\r/`}})
	m := message.FromString(plain)
	if got := dos.runAs(filtertest.Stranger(), envelope.To("a@b", "r@example.org"), m); got.text != plain || got.body != m.Body() {
		t.Errorf("%+v", got)
	}
}

// A head that is as large as an entrance takes may grow a little.
func TestLargeHead(t *testing.T) {
	r := newRig(t, Options{Command: []string{sample(t, "add-header"), "X: y"}})
	for _, text := range []string{strings.Repeat("A: b\n", message.DefaultMaxFields) + "\nx\n", "A: " + strings.Repeat("b", message.DefaultMaxHead) + "\n\nx\n"} {
		r.want(text, "X: y\n"+text)
	}
	newRig(t, Options{Command: []string{script(t, "yes A: b | head -c 3000000")}}).fails(plain, "cannot be used")
}
