package spp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/program"
)

// The test binary is what starts the programs, too.
func TestMain(m *testing.M) {
	program.Main()
	os.Exit(m.Run())
}

// The suite that every filter passes.
func TestSuite(t *testing.T) {
	const plain = "mail = [\":echo N\"]\n"
	one := func(section, script string) string { return fmt.Sprintf("%s = [%q]\n", section, ":"+script) }
	no := func(section, script string, action pipeline.Action, reply string) filtertest.Case {
		return filtertest.Case{
			Name: section + " " + script, Config: one(section, script), From: "a@example.net", WantAction: action, WantReply: reply, WantEnvelopes: []string{},
		}
	}
	failed := no("rcpt", "kill -9 $$", pipeline.Defer, "451 ")
	failed.WantErr = "it died: signal: killed"
	cannot := no("rcpt", "exit 120", pipeline.Defer, "451 ")
	cannot.WantErr = "exit 120: it cannot be run"
	missing := no("rcpt", "", pipeline.Defer, "451 ")
	missing.Name, missing.Config, missing.WantErr = "a program that is not there", "mail = [\"/no/such/program\"]", "it cannot be run"
	local := &pipeline.Session{Entrance: "queue", Standing: pipeline.Local}
	starter := program.New(program.Options{}) // the daemon's, which outlives the filter
	defer starter.Close()
	if err := starter.Ready(); err != nil {
		t.Fatal(err)
	}
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: plain,
		Env: func(t testing.TB) pipeline.Env {
			e := filtertest.Env(t)
			e.Programs = starter
			return e
		},
		Cases: []filtertest.Case{
			no("connection", "echo E554 5.7.1 go away", pipeline.Reject, "554 5.7.1 go away"),
			no("helo", "echo 'E550 go away (#5.7.8)'", pipeline.Reject, "550 5.7.8 go away"),
			no("mail", "echo E451 later", pipeline.Defer, "451 4.7.1 later"),
			no("mail", "echo Enot you", pipeline.Defer, "451 4.7.0 not you"),
			no("rcpt", "echo R550 5.1.1 not him", pipeline.Reject, "550 5.1.1 not him"),
			no("data", "echo D", pipeline.Defer, "421 4.7.0 closing the connection"),
			no("data", "printf 'E554 no line end'", pipeline.Reject, "554 5.7.1 no line end"),
			no("mail", "printf 'LD554 5.7.1 not this\\n'", pipeline.Reject, "554 5.7.1 not this"),
			no("rcpt", "echo E250 ok", pipeline.Discard, "250 "),
			failed, cannot, missing,
			{Name: "an exit code means nothing", Config: one("rcpt", "exit 100")},
			{Name: "our own, too", Config: one("mail", "echo E550 no"), Session: local, WantAction: pipeline.Reject, WantReply: "550 5.7.1 no", WantEnvelopes: []string{}},
			{
				Name: "fields, below ours", Config: one("mail", "echo 'HX-A: b'; echo HX-C: d; printf 'H\\tand more\\n'"), From: "a@example.net",
				Message:     "Received: by us\nSubject: x\n\nbody\n",
				WantMessage: "Received: by us\nX-A: b\nX-C: d\n\tand more\nSubject: x\n\nbody\n",
				WantEdits:   []string{"add X-A: b", "add X-C: d and more"},
			},
			{
				Name: "another sender and another recipient", Config: one("mail", "echo Cother@example.com") + one("rcpt", "case $SMTPRCPTTO in b@*) echo Cc@example.com;; esac"),
				From: "a@example.net", To: []string{"a@example.org", "b@example.org"},
				WantEnvelopes: []string{"other@example.com -> a@example.org", "other@example.com -> c@example.com"},
				WantEdits:     []string{"sender <other@example.com>", "sender <other@example.com>", "recipient <c@example.com>"},
			},
			{
				Name: "one recipient of two", Config: one("rcpt", "case $SMTPRCPTTO in b@*) echo E550 5.1.1 not him;; esac"), From: "a@example.net", To: []string{"a@example.org", "b@example.org"},
				WantActions: []pipeline.Action{pipeline.Continue, pipeline.Reject}, WantEnvelopes: []string{"a@example.net -> a@example.org"},
			},
		},
	})
}

func TestConfiguration(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "smtpplugins")
	write(t, file, "[rcpt]\n:\n", 0o600)
	for name, c := range map[string]struct {
		o         Options
		key, want string
	}{
		"nothing":      {Options{}, "", "there are no programs"},
		"variant":      {Options{Variant: "nq", Rcpt: []string{":x"}}, "variant", "stock, sagredo or aqmail"},
		"both":         {Options{File: file, Rcpt: []string{":x"}}, "file", "write one of the two"},
		"relative":     {Options{File: "smtpplugins"}, "file", "no absolute path"},
		"missing":      {Options{File: dir + "/none"}, "file", "no such file"},
		"broken":       {Options{File: file}, "file", "line 2: there is no program"},
		"a path":       {Options{Rcpt: []string{":x", "x"}}, "rcpt[1]", "no absolute path"},
		"NUL":          {Options{Mail: []string{"/x\x00"}}, "mail[0]", "NUL"},
		"no program":   {Options{Pass: []string{":"}}, "pass[0]", "there is no program"},
		"too many":     {Options{Helo: slices.Repeat([]string{":x"}, maxPrograms+1)}, "helo", "at most 100"},
		"long":         {Options{Data: []string{":" + strings.Repeat("x", maxCommand)}}, "data[0]", "bytes"},
		"memory":       {Options{Data: []string{":x"}, Memory: -1}, "memory", "write a size"},
		"cpu":          {Options{Data: []string{":x"}, CPU: time.Millisecond}, "cpu", "at least 1s"},
		"concurrency":  {Options{Data: []string{":x"}, Concurrency: 1001}, "concurrency", "write 1 to 1000"},
		"concurrency-": {Options{Data: []string{":x"}, Concurrency: -1}, "concurrency", "write 1 to 1000"},
	} {
		f, err := New(pipeline.Env{}, c.o)
		var at interface{ Key() string }
		if f != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if errors.As(err, &at) != (c.key != "") || c.key != "" && at.Key() != c.key {
			t.Errorf("%s: about %v, want %s", name, at, c.key)
		}
	}
	if _, err := New(pipeline.Env{}, Options{Variant: "aqmail", File: dir + "/none"}); err != nil {
		t.Errorf("aqmail's file may be missing: %v", err)
	}
}

func write(t testing.TB, name, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return name
}

// sample is the path of a sample program.
func sample(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", "programs", name))
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Ext(name) == ".c" {
		built := filepath.Join(t.TempDir(), strings.TrimSuffix(name, ".c"))
		if out, err := exec.Command("cc", "-o", built, path).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return built
	}
	return path
}

// rig is a filter in a chain, and a client that talks to it.
type rig struct {
	t       testing.TB
	log     *filtertest.Log
	env     pipeline.Env
	chain   *pipeline.Chain
	judge   *pipeline.Judge
	session *pipeline.Session
	tx      *pipeline.Transaction
}

// newRig makes a chain of the filter, and others behind it.
func newRig(t testing.TB, o Options, behind ...pipeline.Filter) *rig {
	t.Helper()
	r := &rig{t: t, log: new(filtertest.Log), env: filtertest.Env(t)}
	r.env.Log = slog.New(slog.NewTextHandler(r.log, nil))
	r.env.Now = time.Now
	f, err := New(r.env, o)
	if err != nil {
		t.Fatal(err)
	}
	steps := []pipeline.Step{{Name: Name, Filter: f}}
	for i, f := range behind {
		steps = append(steps, pipeline.Step{Name: fmt.Sprintf("behind%d", i), Filter: f})
	}
	if r.chain, err = pipeline.NewChain("inbound", steps, pipeline.ChainOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.chain.Close() })
	r.connect(nil)
	t.Cleanup(func() { r.judge.Close() })
	return r
}

// connect begins a session with an environment.
func (r *rig) connect(env map[string]string) {
	if r.judge != nil {
		r.judge.Close()
	}
	s := filtertest.Stranger()
	for k, v := range env {
		s.Env[k] = v
	}
	r.session, r.judge = s, r.chain.Begin()
}

// say is a command of the client: greet, "helo NAME", "mail ADDRESS", "rcpt
// ADDRESS", rset. The answer is the fate's action, reply, end and remarks.
func (r *rig) say(line string) string {
	ctx := context.Background()
	word, rest, _ := strings.Cut(line, " ")
	var f pipeline.Fate
	switch word {
	case "greet":
		f = r.judge.Connect(ctx, r.session)
	case "helo":
		s := *r.session
		s.Helo, r.session = rest, &s
		f = r.judge.Helo(ctx, r.session)
	case "mail":
		r.tx = &pipeline.Transaction{ID: "t", Session: r.session, Envelope: envelope.Envelope{Sender: rest}}
		f = r.judge.Sender(ctx, r.tx)
	case "rcpt":
		one := envelope.Recipient{Address: rest}
		f = r.judge.Recipient(ctx, r.tx, one)
		if f.Action != pipeline.Reject && f.Action != pipeline.Defer {
			r.tx.Envelope.Recipients = append(r.tx.Envelope.Recipients, one)
		}
	case "rset":
		r.judge.Reset()
		return "ok"
	default:
		r.t.Fatalf("the test says %q", line)
	}
	return answer(f)
}

func answer(f pipeline.Fate) string {
	s := f.Action.String()
	if f.Action == pipeline.Reject || f.Action == pipeline.Defer {
		s += " " + f.Reply.SMTP()
	}
	switch f.HangUp {
	case pipeline.HangUpAfter:
		s += " and hang up"
	case pipeline.HangUpAtOnce:
		s += " and hang up at once"
	}
	if len(f.Remarks) > 0 {
		s += " [" + strings.Join(f.Remarks, "|") + "]"
	}
	return s
}

// want has the client talk, and looks at the answers: line and answer by turns.
func (r *rig) want(dialogue ...string) {
	r.t.Helper()
	for i := 0; i < len(dialogue); i += 2 {
		if got := r.say(dialogue[i]); got != dialogue[i+1] {
			r.t.Errorf("%s: %s, want %s", dialogue[i], got, dialogue[i+1])
		}
	}
}

// message sends the message, and is the answer and what is stored of it.
func (r *rig) message() (answer, stored string) {
	r.t.Helper()
	m := message.FromString("Received: by us\nSubject: x\n\nbody\n")
	defer m.Body().Release()
	o := r.judge.Message(context.Background(), r.tx, m)
	defer o.Release()
	for _, out := range o.Outgoing {
		stored += out.Envelope.Sender + " -> " + strings.Join(out.Envelope.Addresses(), " ") + "\n" + out.Message.Head().String()
	}
	return o.Reply.SMTP(), stored
}

// trace is what the trace says at a stage.
func (r *rig) trace(stage string) string {
	var all []string
	for _, e := range r.judge.Trace() {
		if e.Stage == stage {
			all = append(all, e.Filter+" "+e.Action+" "+e.Reason+e.Err)
		}
	}
	return strings.Join(all, "\n")
}
