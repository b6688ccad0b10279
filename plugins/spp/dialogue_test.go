package spp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

// The sample programs, from the first word to the message, with a control file.
func TestSamples(t *testing.T) {
	dir := t.TempDir()
	seen := filepath.Join(dir, "seen")
	if err := os.Mkdir(seen, 0o777); err != nil {
		t.Fatal(err)
	}
	helo := write(t, filepath.Join(dir, "badhelo"), "localhost\nmx.example.org\n", 0o644)
	mx := write(t, filepath.Join(dir, "mx"), "example.net\nlists.example\n", 0o644)
	file := write(t, filepath.Join(dir, "control", "smtpplugins"), "# ours\n[connection]\n"+sample(t, "greetdelay")+"\n"+sample(t, "envset.c")+
		"\n[helo]\n"+sample(t, "badhelo")+"\n[mail]\n"+sample(t, "mailfrom")+"\n[rcpt]\n"+sample(t, "rcptcount")+"\n"+sample(t, "mxcheck")+
		"\n[data]\n"+sample(t, "onlyonce")+"\n[later]\n/no/such/program\n", 0o644)
	r := newRig(t, Options{File: file})
	r.connect(map[string]string{"BADHELO": helo, "MXTABLE": mx, "SEEN": seen, "MAXRCPT": "9"})
	r.want(
		"greet", "continue [you had to wait]",
		"helo mail.example.net", "continue",
		"mail a@nowhere", "reject 553 5.1.8 sender <a@nowhere> has no domain",
		"rset", "ok",
		"mail a@example.com", "continue",
		"rcpt joe@example.org", "reject 550 5.1.8 nobody takes mail for example.com",
		"rset", "ok",
		"mail bounce+17@lists.example", "continue",
		"rcpt joe@example.org", "continue",
		"rcpt sue@example.org", "continue",
		"rcpt ann@example.org", "defer 452 4.5.3 too many recipients", // envset has set MAXRCPT
	)
	if said, stored := r.message(); said != "450 4.7.1 come again" || stored != "" {
		t.Errorf("%s, stored %s", said, stored)
	}
	r.want("rset", "ok", "mail bounce+17@lists.example", "continue", "rcpt joe@example.org", "continue")
	said, stored := r.message()
	want := "list@lists.example -> joe@example.org\nReceived: by us\nX-Visit: 1 of 192.0.2.1\nX-MX-Check: lists.example has one\nSubject: x\n\n"
	if said != "250 2.0.0 ok" || stored != want {
		t.Errorf("%s, stored\n%swant\n%s", said, stored, want)
	}
	// The next message of the session has what belongs to the session.
	r.want("rset", "ok", "mail ", "continue", "rcpt joe@example.org", "continue")
	want = " -> joe@example.org\nReceived: by us\nX-Visit: 1 of 192.0.2.1\nX-Bounce: yes\nSubject: x\n\n"
	if said, stored := r.message(); said != "250 2.0.0 ok" || stored != want {
		t.Errorf("%s, stored\n%swant\n%s", said, stored, want)
	}
	r.want("rset", "ok", "helo LOCALHOST", "reject 550 5.7.1 you are not LOCALHOST")
	for _, line := range []string{"192.0.2.1 waits", "192.0.2.1 calls itself LOCALHOST", "greeted: slowly"} {
		if !strings.Contains(r.log.String(), line) {
			t.Errorf("the log lacks %q:\n%s", line, r.log)
		}
	}
}

// Each command at each event.
func TestCommands(t *testing.T) {
	everywhere := func(what string) Options {
		all := []string{":" + what}
		return Options{Connection: all, Helo: all, Mail: all, Rcpt: all, Data: all}
	}
	for _, c := range []struct {
		what string
		want [5]string
	}{
		{"echo A; echo E550 not read", [5]string{"continue", "continue", "continue", "continue", "250 2.0.0 ok"}},
		{"echo N; echo E550 not read", [5]string{"continue", "continue", "continue", "continue", "250 2.0.0 ok"}},
		{"echo O; echo E550 not read", [5]string{"continue", "continue", "continue", "continue", "250 2.0.0 ok"}},
		{"echo D", [5]string{"defer 421 4.7.0 closing the connection and hang up at once"}},
		{"echo E550 no", [5]string{"reject 550 5.7.1 no"}},
		{"echo E550-5.1.1 no", [5]string{"reject 550 5.1.1 no"}},
		{"echo E450 5.1.1 no", [5]string{"defer 450 4.7.1 5.1.1 no"}},
		{"echo 'E550 no (#5.1.1)'", [5]string{"reject 550 5.1.1 no"}},
		{"echo E550", [5]string{"reject 550 5.7.1 message refused"}},
		{"echo E", [5]string{"defer 451 4.7.0 message deferred, please try again later"}},
		{"echo Eno code", [5]string{"defer 451 4.7.0 no code"}},
		{"echo E220 mx.example ESMTP", [5]string{"continue", "continue", "defer 451 4.3.0 temporary trouble here, please try again later"}},
		{"echo R550 5.7.1 no", [5]string{"reject 550 5.7.1 no and hang up"}},
		{"echo R221 bye", [5]string{"defer 421 4.7.1 bye and hang up"}},
		{"echo P220-hello; printf 'Pyou\\tthere\\r\\n'", [5]string{"continue [hello|you there]", "continue [hello|you there]", "continue [hello|you there]", "continue [hello|you there]", "250 2.0.0 ok"}},
		{"echo P550-one; echo E550 two", [5]string{"reject 550 5.7.1 two [one]"}},
		{"echo LX550 none; echo L; echo z; echo; echo Q; echo H; echo U", [5]string{"continue", "continue", "continue", "continue", "250 2.0.0 ok"}},
		{"printf 'E550 cut\\0 here\\n'", [5]string{"reject 550 5.7.1 cut"}},
		{"echo S=x", [5]string{"defer 451 4.3.0 temporary trouble here, please try again later"}},
		{"echo Hno field", [5]string{"defer 451 4.3.0 temporary trouble here, please try again later"}},
		{"echo 'H continues none'", [5]string{"defer 451 4.3.0 temporary trouble here, please try again later"}},
		{"printf 'E550 \\033[31mred\\302\\205\\n'", [5]string{"reject 550 5.7.1 ?[31mred"}},
	} {
		r := newRig(t, everywhere(c.what))
		for i, line := range []string{"greet", "helo a.example", "mail a@example.net", "rcpt b@example.org", "."} {
			if c.want[i] == "" {
				break
			}
			got := ""
			if line == "." {
				got, _ = r.message()
			} else {
				got = r.say(line)
			}
			if got != c.want[i] {
				t.Errorf("%s: %s: %s, want %s (%s)", c.what, line, got, c.want[i], r.judge.Trace()[len(r.judge.Trace())-1].Err)
			}
		}
	}
}

// asked is a filter behind, which tells where it was asked.
type asked struct{ stages []string }

func (a *asked) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return a, nil }
func (a *asked) Close() error                                                       { return nil }

func (a *asked) Sender(context.Context, *pipeline.Transaction) (pipeline.Verdict, error) {
	a.stages = append(a.stages, "mail")
	return pipeline.Verdict{}, nil
}

func (a *asked) Recipient(_ context.Context, _ *pipeline.Transaction, r envelope.Recipient) (pipeline.Verdict, error) {
	a.stages = append(a.stages, "rcpt "+r.Address)
	return pipeline.Verdict{}, nil
}

// O leaves out the filters behind for one command, N and A do not; A ends the
// programs for the session, N for the command.
func TestEnough(t *testing.T) {
	for _, c := range []struct{ letter, behind, ran string }{
		{"O", "", "mail1 rcpt1 rcpt1 data1"},
		{"N", "mail rcpt a@example.org rcpt b@example.org", "mail1 rcpt1 rcpt1 data1"},
		{"A", "mail rcpt a@example.org rcpt b@example.org", "mail1"},
		{"P", "mail rcpt a@example.org rcpt b@example.org", "mail1 mail2 rcpt1 rcpt2 rcpt1 rcpt2 data1 data2"},
	} {
		ran := filepath.Join(t.TempDir(), "ran")
		two := func(event string) []string {
			return []string{":echo -n '" + event + "1 ' >>" + ran + "; echo " + c.letter, ":echo -n '" + event + "2 ' >>" + ran}
		}
		behind := &asked{}
		r := newRig(t, Options{Mail: two("mail"), Rcpt: two("rcpt"), Data: two("data")}, behind)
		r.say("greet")
		r.say("helo x.example")
		for _, line := range []string{"mail x@example.net", "rcpt a@example.org", "rcpt b@example.org"} {
			if got := r.say(line); got != "continue" {
				t.Errorf("%s: %s: %s", c.letter, line, got)
			}
		}
		if said, _ := r.message(); said != "250 2.0.0 ok" {
			t.Errorf("%s: %s", c.letter, said)
		}
		if got := strings.Join(behind.stages, " "); got != c.behind {
			t.Errorf("%s: behind was asked %q, want %q", c.letter, got, c.behind)
		}
		if b, _ := os.ReadFile(ran); strings.TrimSpace(string(b)) != c.ran {
			t.Errorf("%s: %q ran, want %q", c.letter, b, c.ran)
		}
	}
}

// What a program is told, event by event, and that nothing else is open.
func TestEnvironment(t *testing.T) {
	dir := t.TempDir()
	all := []string{":env | grep -E '^(SMTP|TCP|PROTO|RELAY|X=|PWD)' | sort | tr '\\n' ' ' >>" + dir + "/env; echo >>" + dir + "/env; ls -l /proc/self/fd >>" + dir + "/fds"}
	r := newRig(t, Options{Connection: all, Helo: all, Auth: all, Mail: all, Rcpt: append([]string{":case $SMTPRCPTTO in no@*) echo E550 no;; d@*) echo Ce@example.com;; esac"}, all...), Pass: all, Data: all})
	r.connect(map[string]string{"X": "y", "TCPLOCALIP": "192.0.2.9", "SMTPAUTHMETHOD": "plain"})
	r.want("greet", "continue")
	s := *r.session
	s.User, s.Standing = "joe", pipeline.Authenticated
	r.session = &s
	r.want("helo a.example", "continue", "mail a@example.net", "continue", "rcpt b@elsewhere.example", "continue", "rcpt no@example.org", "reject 550 5.7.1 no",
		"rcpt d@example.org", "continue")
	r.message()
	got, _ := os.ReadFile(dir + "/env")
	const tcp = "PROTO=TCP PWD=/ "
	const peer = "TCPLOCALIP=192.0.2.9 TCPREMOTEHOST=mail.example.net TCPREMOTEIP=192.0.2.1 TCPREMOTEPORT=2525 X=y \n"
	const joe = "PROTO=TCP PWD=/ RELAYCLIENT= SMTPAUTHMETHOD=plain SMTPAUTHUSER=joe SMTPHELOHOST=a.example "
	const joes = "TCPLOCALIP=192.0.2.9 TCPREMOTEHOST=mail.example.net TCPREMOTEINFO=joe TCPREMOTEIP=192.0.2.1 TCPREMOTEPORT=2525 X=y \n"
	want := tcp + "SMTPAUTHMETHOD=plain SMTPHELOHOST=mail.example.net " + peer +
		joe + joes + joe + joes +
		joe + "SMTPMAILFROM=a@example.net " + joes +
		joe + "SMTPMAILFROM=a@example.net SMTPRCPTCOUNT=0 SMTPRCPTCOUNTALL=1 SMTPRCPTHOSTSOK=1 SMTPRCPTTO=b@elsewhere.example " + joes +
		joe + "SMTPMAILFROM=a@example.net SMTPRCPTCOUNT=1 SMTPRCPTCOUNTALL=1 SMTPRCPTHOSTSOK=1 SMTPRCPTTO=b@elsewhere.example " + joes +
		joe + "SMTPMAILFROM=a@example.net SMTPRCPTCOUNT=1 SMTPRCPTCOUNTALL=3 SMTPRCPTHOSTSOK=1 SMTPRCPTTO=e@example.com " + joes +
		joe + "SMTPMAILFROM=a@example.net SMTPRCPTCOUNT=2 SMTPRCPTCOUNTALL=3 SMTPRCPTHOSTSOK=1 SMTPRCPTTO=e@example.com " + joes +
		joe + "SMTPMAILFROM=a@example.net SMTPRCPTCOUNT=2 SMTPRCPTCOUNTALL=3 SMTPRCPTHOSTSOK=1 SMTPRCPTTO=e@example.com " + joes
	if string(got) != want {
		t.Errorf("the programs had\n%swant\n%s", got, want)
	}
	fds, _ := os.ReadFile(dir + "/fds")
	for line := range strings.Lines(string(fds)) {
		if strings.Contains(line, "socket") {
			t.Errorf("a program had %s", line)
		}
	}
}

// Who may tell of a client does not choose what a program loads, nor, by a shim,
// a list that anybody can write.
func TestForeignEnvironment(t *testing.T) {
	r := newRig(t, Options{Mail: []string{":echo \"P$PATH${LD_PRELOAD-}${BASH_ENV-}${PYTHONPATH-}${X-}\""}})
	r.connect(map[string]string{"PATH": "/nowhere", "LD_PRELOAD": "/nowhere.so", "BASH_ENV": "/nowhere", "PYTHONPATH": "/nowhere", "X": "() { :; }; exit 1"})
	r.want("mail a@example.net", "continue [/usr/local/bin:/usr/bin:/bin]")

	const no = "defer 451 4.3.0 temporary trouble here, please try again later"
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "control", "other"), "[mail]\nbin/other\n", 0o644)
	for _, home := range []string{dir, filepath.Join(dir, "theirs")} {
		write(t, filepath.Join(home, "bin", "other"), "#!/bin/sh\necho P"+home+"\n", 0o755)
	}
	link := filepath.Join(dir, "theirs", "control", "link")
	if err := os.Mkdir(filepath.Dir(link), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		shim       bool
		path       string
		file, home os.FileMode
		want       string
	}{
		{false, file, 0o666, 0o777, "continue [" + dir + "]"},
		{true, file, 0o644, 0o755, "continue [" + dir + "]"},
		{true, link, 0o644, 0o755, "continue [" + dir + "]"}, // and not a program from where the link stands
		{true, file, 0o664, 0o755, no},
		{true, file, 0o644, 0o777, no},
	} {
		if err := errors.Join(os.Chmod(file, c.file), os.Chmod(dir, c.home)); err != nil {
			t.Fatal(err)
		}
		r.connect(map[string]string{"SPPCONFFILE": c.path})
		if c.shim {
			r.session.Protocol, r.session.PID = "qmail-queue", os.Getpid()
		}
		if got := r.say("mail a@example.net"); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// S and U change the environment of what follows in the session, and nothing
// else; RSET does not take it back.
func TestVariables(t *testing.T) {
	count := []string{":echo Sn=$((n + 1)); echo UX", ":echo \"P$n ${X-unset}\""}
	r := newRig(t, Options{Connection: count, Mail: count, Rcpt: []string{":echo SRELAYCLIENT=; echo STCPREMOTEIP=other", ":echo \"P$n $TCPREMOTEIP${RELAYCLIENT-no}\""}})
	r.connect(map[string]string{"X": "set"})
	r.want("greet", "continue [1 unset]", "helo x", "continue", "mail a@example.net", "continue [2 unset]", "rset", "ok", "mail a@example.net", "continue [3 unset]",
		"rcpt b@example.org", "continue [3 other]")
	if r.session.Env["X"] != "set" {
		t.Error("a program has changed our own environment")
	}
	r.connect(nil) // another session
	r.want("greet", "continue [1 unset]")
	for _, flood := range []string{
		":i=0; while [ $i -lt 300 ]; do echo S$i=x; i=$((i+1)); done",
		":head -c 15000 /dev/zero | tr '\\0' x >$0.x; for i in 1 2 3 4 5; do printf S$i=; head -c 15000 /dev/zero | tr '\\0' x; echo; done",
	} {
		f := newRig(t, Options{Connection: []string{flood}})
		if got := f.say("greet"); !strings.HasPrefix(got, "defer") || !strings.Contains(f.trace("connect"), "more than a session may hold") {
			t.Errorf("%s %s", got, f.trace("connect"))
		}
	}
}

// L refuses later; what [connection] has left stays for the session, what a
// transaction's programs have left goes with it.
func TestLater(t *testing.T) {
	r := newRig(t, Options{Connection: []string{":echo LM550-5.7.1 one; echo LM450 4.7.1 two"}})
	r.want("greet", "continue", "helo x", "continue", "mail a@example.net", "defer 450 4.7.1 two [one]", "rset", "ok", "mail a@example.net", "defer 450 4.7.1 two [one]")
	r = newRig(t, Options{Mail: []string{":case $SMTPMAILFROM in x@*) echo LR550 5.7.1 none;; y@*) echo LD554 5.7.1 not this; echo A;; esac"}})
	r.want("greet", "continue", "helo x", "continue",
		"mail x@example.net", "continue", "rcpt b@example.org", "reject 550 5.7.1 none", "rcpt c@example.org", "reject 550 5.7.1 none", "rset", "ok",
		"mail a@example.net", "continue", "rcpt b@example.org", "continue", "rset", "ok",
		"mail y@example.net", "continue", "rcpt b@example.org", "continue")
	if said, stored := r.message(); said != "554 5.7.1 not this" || stored != "" { // though A has switched the programs off
		t.Errorf("%s %s", said, stored)
	}
}

// A client that says who it is again, as behind STARTTLS, is judged by what it says
// last, and its message has a field of [helo] once.
func TestHeloAgain(t *testing.T) {
	r := newRig(t, Options{
		Connection: []string{":echo HX-Connection: yes"},
		Helo:       []string{":echo \"HX-Helo: $SMTPHELOHOST\"; [ $SMTPHELOHOST = bad ] && echo LM550 5.7.1 no; true"},
	})
	r.want("greet", "continue", "helo bad", "continue", "mail a@example.net", "reject 550 5.7.1 no", "helo good", "continue")
	for range maxFields + 1 {
		r.want("helo better", "continue")
	}
	r.want("mail a@example.net", "continue", "rcpt b@example.org", "continue")
	const want = "a@example.net -> b@example.org\nReceived: by us\nX-Connection: yes\nX-Helo: better\nSubject: x\n\n"
	if said, stored := r.message(); said != "250 2.0.0 ok" || stored != want {
		t.Errorf("%s, stored\n%s", said, stored)
	}
}

// A program that fails half-way counts for nothing, those before it do.
func TestWhole(t *testing.T) {
	r := newRig(t, Options{Rcpt: []string{":echo HX-One: 1", ":echo HX-Two: 2; echo Sx=y; echo Cz@example.com; [ $SMTPRCPTCOUNTALL = 1 ] && kill -9 $$", ":echo P$x"}})
	r.want("greet", "continue", "helo x", "continue", "mail a@example.net", "continue",
		"rcpt b@example.org", "defer 451 4.3.0 temporary trouble here, please try again later", "rcpt c@example.org", "continue [y]")
	const want = "a@example.net -> z@example.com\nReceived: by us\nX-One: 1\nX-One: 1\nX-Two: 2\nSubject: x\n\n"
	if said, stored := r.message(); said != "250 2.0.0 ok" || stored != want {
		t.Errorf("%s, stored\n%s", said, stored)
	}
}

// The switches in the environment, by variant.
func TestSwitches(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "control", "smtpplugins"), "ignored\n[rcpt]\n:echo P$PWD\n[pass]\n:echo Ppass\n", 0o644)
	write(t, filepath.Join(dir, "control", "other"), "[r]\nbin/other\n", 0o644)
	write(t, filepath.Join(dir, "bin", "other"), "#!/bin/sh\necho Pother\n", 0o755)
	here := "continue [" + dir + "]"
	for _, c := range []struct {
		variant string
		env     map[string]string
		want    string
	}{
		{"stock", nil, here},
		{"", map[string]string{"ENABLE_SPP": ""}, here},
		{"stock", map[string]string{"NOSPP": ""}, "continue"},
		{"stock", map[string]string{"SPPCONFFILE": ""}, here},
		{"stock", map[string]string{"SPPCONFFILE": "control/other"}, "continue [other]"},
		{"stock", map[string]string{"SPPCONFFILE": dir + "/control/other", "NOSPP": "1"}, "continue"},
		{"stock", map[string]string{"SPPCONFFILE": "control/none"}, "defer 451 4.3.0 temporary trouble here, please try again later"},
		{"stock", map[string]string{"SPPCONFFILE": "control"}, "defer 451 4.3.0 temporary trouble here, please try again later"},
		{"aqmail", map[string]string{"SPPCONFFILE": "control/none"}, "continue"},
		{"sagredo", nil, "continue"},
		{"sagredo", map[string]string{"ENABLE_SPP": ""}, "continue [" + dir + "|pass]"},
		{"sagredo", map[string]string{"ENABLE_SPP": "", "NOSPP": ""}, "continue [" + dir + "|pass]"},
	} {
		r := newRig(t, Options{File: file, Variant: c.variant})
		if !strings.Contains(r.log.String(), "in no section") {
			t.Errorf("%v: no warning: %s", c, r.log)
		}
		r.connect(c.env)
		r.say("mail a@example.net")
		if got := r.say("rcpt b@example.org"); got != c.want {
			t.Errorf("%s %v: %s, want %s", c.variant, c.env, got, c.want)
		}
	}
}

// The list is read again when it changes, for new sessions; a broken one leaves
// the old in force.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "control", "smtpplugins")
	change := func(text string) {
		write(t, file+".new", text, 0o644)
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	change("[connection]\n:echo Pold\n")
	r := newRig(t, Options{File: file})
	r.want("greet", "continue [old]")
	until := func(want string) {
		t.Helper()
		got := ""
		for range 500 {
			r.connect(nil)
			if got = r.say("greet"); got == want {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Fatalf("%s, want %s", got, want)
	}
	change("[connection]\n:echo Pnew\n")
	until("continue [new]")
	change("[connection]\n:\n")
	for range 500 {
		r.connect(nil)
		if got := r.say("greet"); got != "continue [new]" {
			t.Fatal(got)
		}
		if strings.Contains(r.log.String(), "cannot be read") {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if !strings.Contains(r.log.String(), "stays in force") {
		t.Error(r.log)
	}
	change("")
	until("continue")
}

// [auth] is asked once, behind [helo], when somebody has logged in.
func TestAuth(t *testing.T) {
	r := newRig(t, Options{Helo: []string{":echo Phelo"}, Auth: []string{":echo P$SMTPAUTHUSER; case $SMTPAUTHUSER in mallory) echo E535 5.7.8 not you;; esac"}})
	r.want("greet", "continue", "helo x", "continue [helo]")
	r.connect(nil)
	s := *r.session
	s.User, s.Standing = "joe", pipeline.Authenticated
	r.session = &s
	r.want("greet", "continue", "helo x", "continue [helo|joe]", "helo y", "continue [helo]", "mail a@example.net", "continue")
	r.connect(nil)
	s = *r.session
	s.User, s.Standing = "mallory", pipeline.Authenticated
	r.session = &s
	r.want("greet", "continue", "helo x", "reject 535 5.7.8 not you [helo|mallory]", "mail a@example.net", "reject 535 5.7.8 not you")
}

// A recipient's address that C changes, and changes that cannot be.
func TestChange(t *testing.T) {
	r := newRig(t, Options{
		Mail: []string{":echo C"},
		Rcpt: []string{":case $SMTPRCPTTO in bad@*) printf 'C\\001@x\\n';; none@*) echo C;; long@*) head -c 2000 /dev/zero | tr '\\0' C;; q@*) echo Cq@example.com;; esac", ":echo P$SMTPRCPTTO"},
		Data: []string{":echo Cignored; echo \"P$SMTPMAILFROM $SMTPRCPTTO\""},
	})
	const no = "defer 451 4.3.0 temporary trouble here, please try again later"
	r.want("greet", "continue", "helo x", "continue", "mail a@example.net", "continue", "rcpt bad@example.org", no, "rcpt none@example.org", no, "rcpt long@example.org", no,
		"rcpt q@example.org", "continue [q@example.com]", "rcpt b@example.org", "continue [b@example.org]")
	if said, stored := r.message(); said != "250 2.0.0 ok" || !strings.Contains(stored, " -> q@example.com\n") || !strings.Contains(stored, " -> b@example.org\n") {
		t.Errorf("%s\n%s", said, stored)
	}
}

// The data programs run once, though an earlier filter has split the message, and
// many recipients share few addresses.
func TestSplit(t *testing.T) {
	ran := filepath.Join(t.TempDir(), "ran")
	f, err := New(newRig(t, Options{Rcpt: []string{":x"}}).env, Options{
		Rcpt: []string{":echo Cbox$((SMTPRCPTCOUNTALL % 3))@example.com"}, Data: []string{":echo x >>" + ran + "; echo HX-Spp: y"},
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := pipeline.NewChain("inbound", []pipeline.Step{{Name: "split", Filter: splitter{}}, {Name: Name, Filter: f}}, pipeline.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := &rig{t: t, chain: c}
	r.connect(nil)
	defer r.judge.Close()
	r.want("mail a@example.net", "continue")
	for i := range 6 {
		r.want(fmt.Sprintf("rcpt r%d@example.org", i), "continue")
	}
	_, stored := r.message()
	lines := slices.Collect(strings.Lines(stored))
	envelopes := slices.DeleteFunc(lines, func(s string) bool { return !strings.Contains(s, " -> ") })
	slices.Sort(envelopes)
	const want = "a@example.net -> box0@example.com\na@example.net -> box0@example.com\na@example.net -> box1@example.com\na@example.net -> box1@example.com\na@example.net -> box2@example.com\na@example.net -> box2@example.com\n"
	if got := strings.Join(envelopes, ""); got != want || strings.Count(stored, "X-Spp: y\n") != 6 {
		t.Errorf("stored\n%s", stored)
	}
	if b, _ := os.ReadFile(ran); string(b) != "x\n" {
		t.Errorf("[data] ran: %q", b)
	}
}

// A message whose recipients are all changed one by one, and its header, too, is
// not split into more than the chain bears.
func TestManyChanged(t *testing.T) {
	const many = 150
	r := newRig(t, Options{Mail: []string{":echo HX-Spp: y"}, Rcpt: []string{":echo Cbox$SMTPRCPTCOUNTALL@example.com"}})
	r.want("greet", "continue", "helo x", "continue", "mail a@example.net", "continue")
	for i := range many {
		r.want(fmt.Sprintf("rcpt r%d@example.org", i), "continue")
	}
	said, stored := r.message()
	if said != "250 2.0.0 ok" {
		t.Errorf("%s: %s", said, r.trace("message"))
	}
	for i := range many {
		if address := fmt.Sprintf("box%d@example.com", i+1); len(regexp.MustCompile("[ ]"+address+"[ \n]").FindAllString(stored, -1)) != 1 {
			t.Errorf("%s gets it not once", address)
		}
	}
	if strings.Contains(stored, "@example.org") || strings.Count(stored, "X-Spp: y\n") != strings.Count(stored, " -> ") {
		t.Errorf("stored\n%.2000s", stored)
	}
}

// splitter marks the first half of the recipients' message.
type splitter struct{}

func (s splitter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return s, nil }
func (splitter) Close() error                                                         { return nil }

func (splitter) Message(_ context.Context, tx *pipeline.Transaction, _ message.Message) (pipeline.Verdict, error) {
	mark := pipeline.Field(message.FieldEdit{Op: message.Append, Name: "X-Half", Value: "first"})
	return pipeline.Verdict{Edits: []pipeline.Edit{mark}, Only: tx.Active[:len(tx.Active)/2]}, nil
}
