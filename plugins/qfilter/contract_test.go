package qfilter

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
)

// file is what a program wrote into a file of the test.
func file(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What a program has: its descriptors, and nothing else.
func TestDescriptors(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, Options{Command: []string{script(t, `
cd `+dir+`
cat <&3 >envelope; cat >message; pwd >pwd; echo "$# $1" >args
for n in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$n ] && echo $n; done >fds
for n in 1 4 5; do [ -f /dev/fd/$n ] && [ ! -s /dev/fd/$n ] && echo $n; done >empty
for n in 2 6; do [ -p /dev/fd/$n ] && echo $n; done >pipes
(echo x >/dev/fd/0) 2>/dev/null && echo yes >writable
cat /dev/stdin >again
echo "a word; printf '\033[31m'" >&2`), "one two"}})
	r.want(plain, plain)
	for name, want := range map[string]string{
		"envelope": "Fjoe@example.net\x00Tr@example.org\x00\x00", "message": plain, "again": plain, "fds": "0\n1\n2\n3\n4\n5\n6\n", "empty": "1\n4\n5\n",
		"pipes": "2\n6\n", "args": "1 one two\n", "pwd": dir + "\n",
	} {
		if got := file(t, dir, name); got != want && !(name == "fds" && got == "0\n1\n2\n3\n4\n5\n6\n10\n") { // the shell's own, for its script
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if _, err := os.Stat(dir + "/writable"); err == nil {
		t.Error("a program can write to the message it is given")
	}
	if l := r.log.String(); !strings.Contains(l, "a program of qfilter says") || !strings.Contains(l, "a word") || strings.Contains(l, "\x1b") {
		t.Errorf("the log says %s", l)
	}
}

// A later program reads what those before it wrote, and cannot write to it either.
func TestDescriptorsLater(t *testing.T) {
	for _, size := range []int{0, message.InMemory} {
		text := plain + strings.Repeat("x\n", size)
		bad := script(t, "(printf XXXX >&0) 2>/dev/null && exit 31; exit 0")
		r := newRig(t, Options{Command: []string{sample(t, "add-header"), "X: y", "--", bad, "--", "cat"}})
		r.want(text, "X: y\n"+text)
	}
}

// tell runs a program that notes its environment.
func tell(t *testing.T, o Options, s *pipeline.Session, e envelope.Envelope) (map[string]string, *rig, result) {
	t.Helper()
	dir := t.TempDir()
	o.Command = []string{script(t, "tr '\\0' '\\1' </proc/$$/environ >"+dir+"/env")}
	r := newRig(t, o)
	got := r.runAs(s, e, message.FromString(plain))
	if got.err != "" {
		t.Fatalf("%+v", got)
	}
	vars := map[string]string{}
	for _, v := range strings.Split(strings.TrimSuffix(file(t, dir, "env"), "\x01"), "\x01") {
		name, value, _ := strings.Cut(v, "=")
		if _, twice := vars[name]; twice {
			t.Errorf("%s is there twice", name)
		}
		vars[name] = value
	}
	return vars, r, got
}

func TestEnvironment(t *testing.T) {
	stranger := filtertest.Stranger()
	stranger.Env = map[string]string{
		"TCPREMOTEIP": "192.0.2.1", "QMAILNAME": "x", "QMAILRCPTS": "forged", "PATH": "/nowhere", "TCPLOCALPORT": "25",
		"LD_PRELOAD": "/nowhere.so", "BASH_ENV": "/nowhere", "PERL5OPT": "-Mnothing", "X": "() { :; }; exit 1",
	}
	user := &pipeline.Session{Entrance: "mx", Protocol: "smtp", UID: -1, Standing: pipeline.Authenticated, User: "joe", Peer: stranger.Peer}
	relayed := *stranger
	relayed.Env = map[string]string{"RELAYCLIENT": "@fax.example"}
	relayed.Standing = pipeline.Relayed
	e := envelope.To("joe@x@example.net", "r@example.org", "s@example.org")
	usual := map[string]string{
		"QMAILUSER": "joe@x", "QMAILHOST": "example.net", "QMAILRCPTS": "r@example.org\ns@example.org\n", "NUMRCPTS": "2", "QMAILPPID": strconv.Itoa(os.Getpid()),
		"ENVSIZE": "50", "MSGSIZE": strconv.Itoa(len(plain)), "ERROR_FD": "6", "TCPREMOTEIP": "192.0.2.1", "TCPREMOTEPORT": "2525", "TCPREMOTEHOST": "mail.example.net",
		"SMTPHELOHOST": "mail.example.net", "PROTO": "TCP", "PATH": "/usr/local/bin:/usr/bin:/bin", "TCPLOCALPORT": "25",
	}
	for name, c := range map[string]struct {
		session *pipeline.Session
		e       envelope.Envelope
		o       Options
		want    map[string]string // beside, or in place of, the usual; "-" is not there
	}{
		"a stranger": {stranger, e, Options{}, nil},
		"a user":     {user, e, Options{}, map[string]string{"RELAYCLIENT": "", "SMTPAUTHUSER": "joe", "TCPREMOTEHOST": "-", "SMTPHELOHOST": "-", "TCPLOCALPORT": "-"}},
		"a network":  {&relayed, e, Options{}, map[string]string{"RELAYCLIENT": "@fax.example", "TCPLOCALPORT": "-"}},
		"a local one": {
			&pipeline.Session{Standing: pipeline.Local}, e,
			Options{},
			map[string]string{"TCPREMOTEIP": "-", "TCPREMOTEPORT": "-", "TCPREMOTEHOST": "-", "SMTPHELOHOST": "-", "PROTO": "-", "TCPLOCALPORT": "-"},
		},
		"nobody":       {stranger, envelope.To("", "r@example.org"), Options{}, map[string]string{"QMAILUSER": "", "QMAILHOST": "", "QMAILRCPTS": "r@example.org\n", "NUMRCPTS": "1", "ENVSIZE": "18"}},
		"no domain":    {stranger, envelope.To("joe", "r@example.org"), Options{}, map[string]string{"QMAILUSER": "joe", "QMAILHOST": "", "QMAILRCPTS": "r@example.org\n", "NUMRCPTS": "1", "ENVSIZE": "21"}},
		"no recipient": {stranger, envelope.To("joe@a"), Options{}, map[string]string{"QMAILUSER": "joe", "QMAILHOST": "a", "QMAILRCPTS": "", "NUMRCPTS": "0", "ENVSIZE": "8"}},
		"our own": {
			stranger, e,
			Options{Env: map[string]string{"HOME": "/h", "TCPLOCALPORT": "26", "PATH": "/bin", "QMAILUSER": "forged"}},
			map[string]string{"HOME": "/h", "TCPLOCALPORT": "26", "PATH": "/bin"},
		},
	} {
		vars, _, _ := tell(t, c.o, c.session, c.e)
		for n, want := range usual {
			if other, ok := c.want[n]; ok {
				want = other
			}
			if got, ok := vars[n]; ok != (want != "-") || ok && got != want {
				t.Errorf("%s: %s is %q, want %q", name, n, got, want)
			}
			delete(vars, n)
		}
		for n, want := range c.want {
			if got, ok := vars[n]; ok && got != want || !ok && want != "-" && usual[n] == "" {
				t.Errorf("%s: %s is %q, want %q", name, n, got, want)
			}
			delete(vars, n)
		}
		delete(vars, "PWD") // a shell's own
		delete(vars, "OLDPWD")
		if len(vars) > 0 {
			t.Errorf("%s: it is told %q, too", name, vars)
		}
	}
}

// QMAILRCPTS is left out where no program could be started with it, with a note;
// one recipient less, and it is there.
func TestManyRecipients(t *testing.T) {
	const fill = 131072 - len("QMAILRCPTS=") - 1
	var to []string
	for n := 0; n < fill/32; n++ {
		to = append(to, fmt.Sprintf("recipient%09d@example.org.", n)) // 31 and a line end
	}
	last := strings.Repeat("r", fill%32-1)
	vars, r, got := tell(t, Options{}, filtertest.Stranger(), envelope.To("a@b", append(to, last)...))
	if len(vars["QMAILRCPTS"]) != fill || !strings.HasSuffix(vars["QMAILRCPTS"], "\n"+last+"\n") || r.log.String() != "" || got.reason != "" {
		t.Errorf("%d bytes of QMAILRCPTS, want %d: %s", len(vars["QMAILRCPTS"]), fill, r.log)
	}
	for _, more := range [][]string{append(to, last+"r"), append(to, make([]string, 90_000)...)} {
		for i := range more {
			if more[i] == "" {
				more[i] = "r" + strconv.Itoa(i) + "@example.org"
			}
		}
		vars, r, got = tell(t, Options{}, filtertest.Stranger(), envelope.To("a@b", more...))
		if _, there := vars["QMAILRCPTS"]; there || vars["NUMRCPTS"] != strconv.Itoa(len(more)) {
			t.Errorf("NUMRCPTS=%s", vars["NUMRCPTS"])
		}
		note := fmt.Sprintf("QMAILRCPTS is left out: with %d recipients it has ", len(more))
		if !strings.Contains(r.log.String(), note) || !strings.Contains(got.reason, note) {
			t.Errorf("neither log nor trace tell: %s %+.300v", r.log, got)
		}
	}
}

// The same for what the caller says.
func TestLongVariables(t *testing.T) {
	s := filtertest.Stranger()
	s.Env = map[string]string{"LONG": strings.Repeat("x", 200_000), "FITS": strings.Repeat("x", 128<<10-6), "A=B": "c", "N": "a\x00b"}
	vars, _, _ := tell(t, Options{}, s, envelope.To("a@b", "r@example.org"))
	if _, there := vars["LONG"]; there || len(vars["FITS"]) != 128<<10-6 || vars["A"] != "" || vars["N"] != "" {
		t.Error("they are wrong")
	}
}

func TestParent(t *testing.T) {
	for stat, want := range map[string]int{
		"7 (qmail-queue) S 42 7 7": 42, "7 (a) R 1) S 43 7": 43, "7 (a) S 1 7": 7, "": 7, "7 (a)": 7, "7 (a) S x": 7,
	} {
		if got := parent(stat, 7); got != want {
			t.Errorf("%q: %d, want %d", stat, got, want)
		}
	}
	if got := caller(&pipeline.Session{PID: os.Getpid()}); got != os.Getppid() {
		t.Errorf("%d", got)
	}
	if got := caller(&pipeline.Session{PID: 1 << 30}); got != 1<<30 {
		t.Errorf("%d", got)
	}
}

// Programs one after the other: each has what those before it have written, with
// new sizes, and the one that decides is the last that runs.
func TestChain(t *testing.T) {
	dir := t.TempDir()
	note := script(t, `echo "$MSGSIZE $ENVSIZE $NUMRCPTS $QMAILUSER $(wc -c) $(wc -c <&3) $1" >>`+dir+`/told`)
	pad := sample(t, "add-header")
	other := script(t, `printf 'Fx@y.example\0Ts@example.org\0Tt@example.org\0\0rest' >&4`)
	for _, o := range []Options{
		{Command: []string{note, "a", "--", pad, "X: y", "--", other, "--", note, "b", "--"}},
		{Programs: [][]string{{note, "a"}, {pad, "X: y"}, {other}, {note, "b"}}},
	} {
		r := newRig(t, o)
		got := r.run(plain)
		if got.text != "X: y\n"+plain || got.envelope != "x@y.example -> s@example.org t@example.org" {
			t.Errorf("%+v", got)
		}
		n := len(plain)
		want := fmt.Sprintf("%d 33 1 joe %d 33 a\n%d 48 2 x %d 48 b\n", n, n, n+5, n+5)
		if told := file(t, dir, "told"); told != want {
			t.Errorf("%q, want %q", told, want)
		}
		os.Remove(dir + "/told")
	}
	r := newRig(t, Options{Command: []string{pad, "X: y", "--", script(t, "cat; exit 31"), "--", note}})
	if got := r.run(plain); got.action != pipeline.Reject || got.text != "" {
		t.Errorf("%+v", got)
	}
	if _, err := os.Stat(dir + "/told"); err == nil {
		t.Error("a program runs after one that has refused")
	}
}

func TestExitCodes(t *testing.T) {
	exits := map[string]string{"31": "554 5.7.1 no programs by mail", "40": "quarantine", "41": "450 come again", "42": "continue", "43": "accept", "99": "error", "111": "discard", "2": "defer", "0": "continue"}
	for _, c := range []struct {
		code   int
		exits  map[string]string
		say    string
		action pipeline.Action
		reply  string
		err    string
	}{
		{code: 0, action: pipeline.Continue, reply: "250"},
		{code: 31, action: pipeline.Reject, reply: "554 5.3.0 mail server permanently rejected message"},
		{code: 11, action: pipeline.Reject, reply: "554 5.1.3 "},
		{code: 40, action: pipeline.Reject, reply: "554 5.3.0 "},
		{code: 115, action: pipeline.Reject, reply: "554 5.1.3 "},
		{code: 71, action: pipeline.Defer, reply: "451 4.3.0 mail server temporarily rejected message"},
		{code: 99, action: pipeline.Discard, reply: "250"},
		{code: 82, say: "Dnot here", action: pipeline.Reject, reply: "554 5.3.0 not here"},
		{code: 88, say: "Zlater", action: pipeline.Defer, reply: "451 4.3.0 later"},
		{code: 82, say: "D55\r\n250 ok\x1b", action: pipeline.Reject, reply: "554 5.3.0 55 250 ok?"},
		{code: 82, action: pipeline.Defer, reply: "451 4.3.0 temporary trouble", err: "exit 82"},
		{code: 31, say: "Dnot here", action: pipeline.Reject, reply: "554 5.3.0 mail server permanently"},
		{code: 1, action: pipeline.Defer, reply: "451 4.3.0 temporary trouble", err: "program: exit 1"},
		{code: 53, action: pipeline.Defer, reply: "451 4.3.0 temporary trouble", err: "exit 53"},
		{code: 81, say: "why", action: pipeline.Defer, reply: "451 4.3.0 temporary trouble", err: "exit 81: why"},
		{code: 100, action: pipeline.Defer, reply: "451 4.3.0 temporary trouble", err: "exit 100"},
		{code: 255, action: pipeline.Defer, reply: "451 4.3.0 temporary trouble", err: "exit 255"},
		{code: 31, exits: exits, action: pipeline.Reject, reply: "554 5.7.1 no programs by mail"},
		{code: 40, exits: exits, action: pipeline.Quarantine, reply: "250"},
		{code: 41, exits: exits, action: pipeline.Defer, reply: "450 4.7.1 come again"},
		{code: 42, exits: exits, action: pipeline.Continue, reply: "250"},
		{code: 43, exits: exits, action: pipeline.Accept, reply: "250"},
		{code: 99, exits: exits, action: pipeline.Defer, reply: "451 4.3.0 temporary trouble", err: "exit 99"},
		{code: 111, exits: exits, action: pipeline.Discard, reply: "250"},
		{code: 2, exits: exits, action: pipeline.Defer, reply: "451 4.7.1 message deferred"},
	} {
		r := newRig(t, Options{Exits: c.exits, Command: []string{script(t, `sed 's/hello/changed/'; printf "$1" >&6; exit $2`), strings.ReplaceAll(strings.ReplaceAll(c.say, "\r\n", `\r\n`), "\x1b", `\033`), strconv.Itoa(c.code)}})
		got := r.run(plain)
		if got.action != c.action || !strings.HasPrefix(got.reply, c.reply) || !strings.Contains(got.err, c.err) || c.err == "" && got.err != "" {
			t.Errorf("exit %d: %+v, want %+v", c.code, got, c)
		}
		want := ""
		switch c.action {
		case pipeline.Continue, pipeline.Accept, pipeline.Quarantine:
			want = strings.ReplaceAll(plain, "hello", "changed")
		}
		if got.text != want {
			t.Errorf("exit %d: %q is stored, want %q", c.code, got.text, want)
		}
	}
}

// With on_error = "continue" a program that fails leaves the message as it was.
func TestFailureLeavesTheMessage(t *testing.T) {
	for _, text := range []string{"sed s/hello/changed/; exit 1", "sed s/hello/changed/; printf 'Fx@y\\0' >&4", "sed s/hello/changed/; kill -9 $$"} {
		r := newRig(t, Options{Command: []string{sample(t, "add-header"), "X: y", "--", script(t, text)}})
		steps := r.chain.Steps()
		steps[0].OnError = pipeline.ErrorContinues
		chain, err := pipeline.NewChain("test", steps, pipeline.ChainOptions{})
		if err != nil {
			t.Fatal(err)
		}
		r.chain = chain
		if got := r.run(plain); got.text != plain || got.err == "" || got.envelope != "joe@example.net -> r@example.org" {
			t.Errorf("%+v", got)
		}
	}
}

// Who may not change a thing has failed when he does.
func TestMayChange(t *testing.T) {
	both, only := []string{"message", "envelope"}, func(what ...string) []string { return append([]string{}, what...) }
	for _, c := range []struct {
		may           []string
		writes, fails string
	}{
		{nil, "echo X: y; cat; printf 'Fx@y\\0Tr@example.org\\0\\0' >&4", ""},
		{both, "echo X: y; cat; printf 'Fx@y\\0Tr@example.org\\0\\0' >&4", ""},
		{only(), ":", ""},
		{only(), "echo debug", "it wrote a message of 6 bytes, and may not change it"},
		{only(), "printf 'Fx@y\\0\\0' >&4", "it wrote an envelope of 6 bytes, and may not change it"},
		{only("message"), "echo X: y; cat", ""},
		{only("message"), "echo X: y; cat; echo >&4", "it wrote an envelope of 1 bytes"},
		{only("envelope"), "printf 'Fx@y\\0Tr@example.org\\0\\0' >&4", ""},
		{only("envelope"), "cat", "it wrote a message of"},
	} {
		r := newRig(t, Options{MayChange: c.may, Command: []string{script(t, c.writes)}})
		if c.fails != "" {
			r.fails(plain, c.fails)
		} else if got := r.run(plain); got.err != "" || !strings.HasSuffix(got.text, plain) {
			t.Errorf("%v: %+v", c, got)
		}
	}
}

func TestConfiguration(t *testing.T) {
	ok := []string{"/bin/true"}
	for name, c := range map[string]struct {
		o         Options
		key, want string
	}{
		"nothing":          {Options{}, "", "there is no program"},
		"both":             {Options{Command: ok, Programs: [][]string{ok}}, "command", "write one of them"},
		"an empty one":     {Options{Command: []string{"a", "--", "--", "b"}}, "command", "program 2: it is empty"},
		"an empty one too": {Options{Programs: [][]string{ok, {}}}, "programs[1]", "program 2: it is empty"},
		"relative":         {Options{Command: []string{"bin/true"}}, "command", "neither an absolute path"},
		"NUL":              {Options{Command: []string{"true", "a\x00"}}, "command", "NUL"},
		"many":             {Options{Programs: make([][]string, 101)}, "programs", "at most 100"},
		"no code":          {Options{Command: ok, Exits: map[string]string{"256": "reject"}}, "exits.256", "no exit code"},
		"a code oddly":     {Options{Command: ok, Exits: map[string]string{"031": "reject"}}, "exits.031", "no exit code"},
		"no word":          {Options{Command: ok, Exits: map[string]string{"31": "refuse"}}, "exits.31", "write continue"},
		"success":          {Options{Command: ok, Exits: map[string]string{"31": "250 ok"}}, "exits.31", "write continue"},
		"no word, queue":   {Options{Command: ok, Queues: map[string]string{"/q": ""}}, "queues./q", "write continue"},
		"a variable":       {Options{Command: ok, Env: map[string]string{"A=B": ""}}, "env.A=B", "a name without ="},
		"a folder":         {Options{Command: ok, Dir: "x"}, "dir", "no absolute path"},
		"memory":           {Options{Command: ok, Memory: -1}, "memory", "write a size"},
		"cpu":              {Options{Command: ok, CPU: 1}, "cpu", "at least 1s"},
		"max_output":       {Options{Command: ok, MaxOutput: -1}, "max_output", "write a size"},
		"max_file":         {Options{Command: ok, MaxFile: -1}, "max_file", "write a size"},
		"may_change":       {Options{Command: ok, MayChange: []string{"message", "all"}}, "may_change[1]", "write message or envelope"},
		"concurrency":      {Options{Command: ok, Concurrency: 1001}, "concurrency", "1 to 1000"},
		"lines":            {Options{Command: ok, Lines: "keep"}, "lines", "repair or refuse"},
	} {
		f, err := New(pipeline.Env{}, c.o)
		key := ""
		if k, is := err.(interface{ Unwrap() []error }); is {
			for _, e := range k.Unwrap() {
				if at, is := e.(pipeline.KeyError); is {
					key = at.Key()
				}
			}
		}
		if f != nil || err == nil || !strings.Contains(err.Error(), c.want) || key != c.key {
			t.Errorf("%s: %v (%s)", name, err, key)
		}
	}
}

// A name is looked for in PATH; what is missing is told at the start, and an
// error when it is needed.
func TestFind(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/plain", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/script", []byte("#!/no/such/interpreter\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	newRig(t, Options{Command: []string{"true"}}).want(plain, plain)
	for _, name := range []string{"/plain", "", "/none", "/script"} {
		r := newRig(t, Options{Command: []string{dir + name}})
		r.fails(plain, dir+name+": ")
		if name != "/script" && !strings.Contains(r.log.String(), "cannot be run") {
			t.Errorf("the log says %s", r.log)
		}
	}
	newRig(t, Options{Command: []string{"no-such-program"}}).fails(plain, "there is no no-such-program in /usr/local/bin:/usr/bin:/bin")
	r := newRig(t, Options{Command: []string{"no-such-program"}, Env: map[string]string{"PATH": "relative::" + dir}})
	if err := os.WriteFile(dir+"/no-such-program", []byte("#!/bin/sh\nexit 0\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.want(plain, plain)
}
