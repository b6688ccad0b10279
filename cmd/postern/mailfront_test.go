package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
)

// What the tests of real callers need besides Go, and Debian's packages of it.
var callers = map[string]string{
	"tcpserver": "ucspi-tcp", "tcprules": "ucspi-tcp", "/usr/sbin/smtpfront-qmail": "mailfront", "swaks": "swaks",
}

// Clients are told apart by the network that they call from: the daemon's log
// names the address, and tcpserver's rules set the environment by it.
const (
	netStranger = "127.0.1." // nobody we know
	netRelay    = "127.0.2." // one of ours: RELAYCLIENT is set
	netAuto     = "127.0.3." // an entrance with the dialect auto
	netAway     = "127.0.4." // a daemon that is not there
	netTexts    = "127.0.5." // mailfront has texts of the site's own
	netStopped  = "127.0.6." // a short patience, for a daemon that is stopped
)

const mailfrontRules = `127.0.2.:allow,RELAYCLIENT=""
127.0.3.:allow,POSTERN_SOCKET="$RUN/auto.sock"
127.0.4.:allow,POSTERN_SOCKET="$RUN/nobody.sock",POSTERN_WAIT="300"
127.0.5.:allow,QQERRMSG_31="5.7.1 not here; see postmaster",QQERRMSG_71="4.7.1 not now; see postmaster"
127.0.6.:allow,POSTERN_WAIT="700"
:allow
`

const mailfrontConfig = `hostname = "mx.example.org"
control = ""
trusted = ["$UID"]
state = "$RUN/state"
admin.socket = "$RUN/admin.sock"
log.format = "json"
[limits]
message = "20 KB"
head = "8 KB"
recipients = 20
[listen.queue]
socket = "$RUN/queue.sock"
next = "$RUN/mailqueue"
dialect = "none"
[listen.auto]
socket = "$RUN/auto.sock"
next = "$RUN/mailqueue"
[chain]
inbound = ["policy", "stranger", "relayed", "tap"]
[filter.policy]
kind = "rule"
[[filter.policy.rule]]
when = 'header("Subject") == "lottery"'
action = "reject"
reply = "554 5.7.1 no lotteries"
[[filter.policy.rule]]
when = 'header("Subject") == "no"'
action = "reject"
[[filter.policy.rule]]
when = 'header("Subject") == "later"'
action = "defer"
reply = "450 4.7.1 come back at noon"
[[filter.policy.rule]]
when = 'header("Subject") == "nowhere"'
action = "discard"
[[filter.policy.rule]]
when = '"gone@example.org" in recipients'
each = true
action = "reject"
reply = "550 5.1.1 no such user"
[filter.stranger]
kind = "header"
when = "external"
rule = [{op = "add", name = "X-Standing", value = "stranger"}]
[filter.relayed]
kind = "header"
when = "relay"
rule = [{op = "add", name = "X-Standing", value = "relayed"}]
[filter.tap]
rules = ["T:^boss@:archive@example.org"]
`

// front is Debian's mailfront under tcpserver, with a shim as its qmail-queue,
// the daemon behind that, and a program that plays qmail-queue behind all.
type front struct {
	dir    string
	port   string
	daemon *exec.Cmd
}

// newFront starts it all with the shim at path and a configuration, in which
// $RUN stands for the directory and $UID for ourselves.
func newFront(t *testing.T, shim, config string) *front {
	t.Helper()
	f := &front{dir: t.TempDir()}
	expand := func(s string) []byte {
		return []byte(os.Expand(s, func(name string) string {
			return map[string]string{"RUN": f.dir, "UID": strconv.Itoa(os.Getuid())}[name]
		}))
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(f.dir, "home", "control"), 0o777))
	must(os.Mkdir(filepath.Join(f.dir, "record"), 0o777))
	must(os.WriteFile(filepath.Join(f.dir, "home", "control", "rcpthosts"), []byte("example.org\n"), 0o666))
	must(os.WriteFile(filepath.Join(f.dir, "huge"), bytes.Repeat([]byte(strings.Repeat("x", 70)+"\n"), 5000), 0o666))
	must(os.WriteFile(filepath.Join(f.dir, "postern.toml"), expand(config), 0o666))
	rules := exec.Command("tcprules", filepath.Join(f.dir, "rules.cdb"), filepath.Join(f.dir, "rules.tmp"))
	rules.Stdin = bytes.NewReader(expand(mailfrontRules))
	for _, c := range []*exec.Cmd{rules, exec.Command("go", "build", "-o", filepath.Join(f.dir, "mailqueue"), "./testdata/mailqueue")} {
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c.Args, err, out)
		}
	}

	log, err := os.Create(filepath.Join(f.dir, "log"))
	must(err)
	defer log.Close()
	f.daemon = exec.Command("postern", "serve", "--config", filepath.Join(f.dir, "postern.toml"))
	f.daemon.Stderr = log
	must(f.daemon.Start())
	t.Cleanup(func() { f.stopDaemon(t) })
	f.logged(t, 1, func(l logLine) bool { return l.Msg == "serving" })

	server := exec.Command("tcpserver", "-R", "-H", "-l", "mx.example.org", "-1", "-x", filepath.Join(f.dir, "rules.cdb"), "127.0.0.1", "0", "/usr/sbin/smtpfront-qmail")
	server.Env = append(os.Environ(), "QMAILHOME="+filepath.Join(f.dir, "home"), "QMAILQUEUE="+shim,
		"POSTERN_SOCKET="+filepath.Join(f.dir, "queue.sock"), "RECORD_DIR="+filepath.Join(f.dir, "record"))
	port, err := server.StdoutPipe()
	must(err)
	must(server.Start())
	t.Cleanup(func() {
		server.Process.Kill() //nolint:errcheck // it may have ended
		server.Wait()         //nolint:errcheck // by our signal
	})
	line := make([]byte, 16)
	n, err := port.Read(line)
	must(err)
	f.port = strings.TrimSpace(string(line[:n]))
	return f
}

// stopDaemon ends the daemon as an administrator would.
func (f *front) stopDaemon(t *testing.T) {
	t.Helper()
	if f.daemon.ProcessState != nil {
		return
	}
	f.daemon.Process.Signal(syscall.SIGCONT) //nolint:errcheck // it may have ended
	f.daemon.Process.Signal(syscall.SIGTERM) //nolint:errcheck // likewise
	if err := f.daemon.Wait(); err != nil {
		t.Errorf("the daemon: %v", err)
	}
}

// swaks sends one message with swaks, and returns the last reply before QUIT.
func (f *front) swaks(t *testing.T, from string, args ...string) string {
	t.Helper()
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "$RUN", f.dir)
	}
	all := append([]string{"--server", "127.0.0.1:" + f.port, "--local-interface", from, "--helo", "client.example", "--timeout", "60"}, args...)
	out, err := exec.Command("swaks", all...).CombinedOutput()
	if before, _, ok := strings.Cut(string(out), "\n -> QUIT"); ok {
		if last := before[strings.LastIndexByte(before, '\n')+1:]; len(last) > 4 && last[0] == '<' {
			return strings.TrimSpace(last[4:])
		}
	}
	t.Fatalf("swaks: %v\n%s", err, out)
	return ""
}

// client is an SMTP client for what swaks cannot do, or not fast enough.
type client struct {
	t *testing.T
	*textproto.Conn
}

func (f *front) dial(t *testing.T, from string) *client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := d.Dial("tcp", "127.0.0.1:"+f.port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &client{t, textproto.NewConn(conn)}
	c.read()
	c.say("EHLO client.example")
	return c
}

// say sends a line and returns the reply.
func (c *client) say(line string) string {
	c.t.Helper()
	if err := c.PrintfLine("%s", line); err != nil {
		c.t.Fatal(err)
	}
	return c.read()
}

func (c *client) read() string {
	c.t.Helper()
	code, text, err := c.ReadResponse(0)
	if err != nil {
		c.t.Fatal(err)
	}
	return strconv.Itoa(code) + " " + text
}

// send sends a message; lines may end in LF alone.
func (c *client) send(to, content string) string {
	c.t.Helper()
	c.say("MAIL FROM:<sender@b.example>")
	c.say("RCPT TO:<" + to + ">")
	c.say("DATA")
	w := c.DotWriter()
	if _, err := w.Write([]byte(content)); err != nil {
		c.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		c.t.Fatal(err)
	}
	return c.read()
}

// logLine is what the tests look at of a line of the daemon's log.
type logLine struct {
	Msg, To, Peer, Standing, Answer, Status string
	Exit                                    int
	Next                                    *struct {
		Exit         any // "unknown" if it is none
		Mode, Answer string
	}
}

// lines are those that the log holds by now.
func (f *front) lines(t *testing.T) (all []logLine) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, "log"))
	if err != nil {
		t.Error(err)
	}
	for _, line := range bytes.SplitAfter(b, []byte("\n")) {
		var l logLine
		if bytes.HasSuffix(line, []byte("\n")) && json.Unmarshal(line, &l) == nil {
			all = append(all, l)
		}
	}
	return all
}

// logged waits for the lines that fit, so many of them: the daemon logs after
// it has answered.
func (f *front) logged(t *testing.T, count int, fits func(logLine) bool) []logLine {
	t.Helper()
	for range 2400 {
		if fit := slices.DeleteFunc(f.lines(t), func(l logLine) bool { return !fits(l) }); len(fit) >= count {
			return fit
		}
		time.Sleep(25 * time.Millisecond)
	}
	b, _ := os.ReadFile(filepath.Join(f.dir, "log"))
	t.Fatalf("the log never had %d such lines:\n%s", count, b)
	return nil
}

// told waits for the line about the message of a client.
func (f *front) told(t *testing.T, peer string) logLine {
	t.Helper()
	return f.logged(t, 1, func(l logLine) bool { return l.Msg == "message" && l.Peer == peer })[0]
}

// recorded is one message that qmail-queue took.
type recorded struct {
	envelope envelope.Envelope
	message  string
}

// recorded are the messages that qmail-queue took for a recipient.
func (f *front) recorded(t *testing.T, to string) (all []recorded) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(f.dir, "record", "*.msg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		env, err := os.Open(strings.TrimSuffix(name, ".msg") + ".env")
		if err != nil {
			t.Fatal(err)
		}
		e, err := envelope.Read(env, envelope.Limits{})
		env.Close()
		if err != nil {
			t.Fatal(err)
		}
		message, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(e.Recipients, func(r envelope.Recipient) bool { return r.Address == to }) {
			all = append(all, recorded{e, string(message)})
		}
	}
	return all
}

// TestMailfront passes mail from a real SMTP client through a real SMTP server
// to both shims, and looks at what the client hears.
func TestMailfront(t *testing.T) {
	t.Parallel()
	for program, pack := range callers {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: install Debian's package %s (make deps does)", err, pack)
		}
	}
	shim := buildShims(t, t.TempDir())
	for _, kind := range shims {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := newFront(t, shim[kind], mailfrontConfig)
			t.Run("message", f.testMessage)
			t.Run("answers", f.testAnswers)
			t.Run("copies", f.testCopies)
			t.Run("exits", f.testExits)
			t.Run("cut", f.testCut)
			t.Run("stopped", f.testStopped)
			f.stopDaemon(t)
			if left, err := os.ReadDir(filepath.Join(f.dir, "state", "spool")); err != nil || len(left) > 0 {
				t.Errorf("the spool still holds %v %v", left, err)
			}
		})
	}
}

// qp is the process that mailfront saw as qmail-queue.
var qp = regexp.MustCompile(`^250 2\.6\.0 Accepted message qp (\d+) bytes \d+$`)

// testMessage sends a message of every odd byte that mailfront lets through.
func (f *front) testMessage(t *testing.T) {
	const content = "From: a@b.example\nSubject: odd\nX-Folded: one\n\ttwo\n\n.\n..\n\xe4\xff \x01 8-bit\nFrom here\n" +
		"trailing blanks  \nlong "
	sent := content + strings.Repeat("x", 2000) + "\n\n"
	got := f.dial(t, netStranger+"1").send("odd@example.org", sent)
	said := qp.FindStringSubmatch(got)
	if said == nil {
		t.Fatalf("mailfront said %q", got)
	}
	all := f.recorded(t, "odd@example.org")
	if len(all) != 1 {
		t.Fatalf("qmail-queue took %d messages", len(all))
	}
	if e := all[0].envelope; e.Sender != "sender@b.example" || len(e.Recipients) != 1 {
		t.Errorf("the envelope is %v", e)
	}
	received := regexp.MustCompile(`^X-Standing: stranger\nReceived: from client\.example \(\[127\.0\.1\.1\]\)\n  by mx\.example\.org \(\[127\.0\.0\.1\]\)\n  with ESMTP via TCP; [^\n]* -0000\n`)
	top := received.FindString(all[0].message)
	if top == "" || all[0].message[len(top):] != sent {
		t.Errorf("sent %q\narrived %q", sent, all[0].message)
	}
	l := f.told(t, netStranger+"1")
	if l.Standing != "external" || l.Next == nil || l.Next.Exit != 0.0 {
		t.Fatalf("the log has %+v", l)
	}
	// The process that mailfront started has become qmail-queue, where the kernel
	// tells the daemon how that ends (Linux 6.15).
	if _, err := os.Stat(filepath.Join(f.dir, "record", said[1]+".msg")); err != nil && l.Next.Mode == "exec" {
		t.Errorf("mailfront's qp %s is not qmail-queue's pid: %v", said[1], err)
	}
}

// answer is one message, and what the client and the log say of it.
type answer struct {
	name, from, to, subject string
	extra                   []string // swaks's arguments
	want                    string   // what the client hears, as a regular expression
	log                     string   // the daemon's answer; "" if the next program gave it
	exit                    int
	taken                   int
}

var answers = []answer{
	{name: "accepted", from: netStranger, want: `250 2\.6\.0 Accepted message qp \d+ bytes \d+`, taken: 1},
	{name: "relayed", from: netRelay, to: "relayed@elsewhere.example", want: `250 2\.6\.0 Accepted .*`, taken: 1},
	{name: "rejected", from: netStranger, subject: "lottery", want: `554 5\.3\.0 Message refused\.`, log: "554 5.7.1 no lotteries", exit: 31},
	{name: "rejected-auto", from: netAuto, subject: "lottery", want: `554 5\.3\.0 Message refused\.`, log: "554 5.7.1 no lotteries", exit: 31},
	{name: "rejected-relay", from: netRelay, subject: "lottery", want: `554 5\.3\.0 Message refused\.`, log: "554 5.7.1 no lotteries", exit: 31},
	{name: "rejected-wordless", from: netStranger, subject: "no", want: `554 5\.3\.0 Message refused\.`, log: "554 5.7.1 message refused", exit: 31},
	{name: "rejected-text", from: netTexts, subject: "lottery", want: `554 5\.7\.1 not here; see postmaster`, log: "554 5.7.1 no lotteries", exit: 31},
	{name: "deferred", from: netStranger, subject: "later", want: `451 4\.3\.0 Message refused by mail server\.`, log: "450 4.7.1 come back at noon", exit: 71},
	{name: "deferred-auto", from: netAuto, subject: "later", want: `451 4\.3\.0 Message refused by mail server\.`, log: "450 4.7.1 come back at noon", exit: 71},
	{name: "deferred-text", from: netTexts, subject: "later", want: `451 4\.7\.1 not now; see postmaster`, log: "450 4.7.1 come back at noon", exit: 71},
	{name: "discarded", from: netStranger, subject: "nowhere", want: `250 2\.6\.0 Accepted .*`, log: "250 2.0.0 ok"},
	{name: "mixed", from: netStranger, to: "mixed@example.org,gone@example.org", want: `554 5\.3\.0 Message refused\.`, log: "550 5.1.1 refused for <gone@example.org>: no such user", exit: 31},
	{name: "too-many", from: netStranger, to: strings.Repeat("many@example.org,", 20) + "one-more@example.org", want: `554 5\.3\.0 Message refused\.`, log: "554 5.5.3 too many recipients", exit: 31},
	{name: "longest-address", from: netStranger, to: strings.Repeat("a", 1002-len("@example.org")) + "@example.org", want: `250 2\.6\.0 Accepted .*`, taken: 1},
	{name: "long-address", from: netStranger, to: strings.Repeat("b", 1003-len("@example.org")) + "@example.org", want: `554 5\.1\.3 Address too long\.`, log: "554 5.1.3 envelope address too long", exit: 11},
	{name: "large", from: netStranger, extra: []string{"--body", strings.Repeat(strings.Repeat("x", 70)+`\n`, 500)}, want: `554 5\.3\.0 Message refused\.`, log: "552 5.3.4 message is larger than my limit", exit: 31},
	{name: "large-head", from: netStranger, extra: []string{"--header", "X-Large: " + strings.Repeat("x", 9000)}, want: `554 5\.3\.0 Message refused\.`, log: "552 5.3.4 message header is larger than my limit", exit: 31},
	{name: "huge", from: netStranger, extra: []string{"--body", "@$RUN/huge"}, want: `554 5\.3\.0 Message refused\.`, log: "552 5.3.4 message is larger than my limit", exit: 31},
	{name: "away-huge", from: netAway, extra: []string{"--body", "@$RUN/huge"}, want: `451 4\.3\.0 Message refused by mail server\.`},
	{name: "crashed", from: netStranger, to: "signal-9@example.org", want: `451 4\.3\.0 (qmail-queue crashed|Internal qmail-queue bug)\.`},
	{name: "away", from: netAway, want: `451 4\.3\.0 Message refused by mail server\.`},
}

// testAnswers has swaks send what is taken and what is refused.
func (f *front) testAnswers(t *testing.T) {
	for i, a := range answers {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			peer := a.from + strconv.Itoa(i+10)
			if a.to == "" {
				a.to = a.name + "@example.org"
			}
			if a.subject == "" {
				a.subject = "hello"
			}
			got := f.swaks(t, peer, append([]string{"--from", "sender@b.example", "--to", a.to, "--header", "Subject: " + a.subject}, a.extra...)...)
			if !regexp.MustCompile("^" + a.want + "$").MatchString(got) {
				t.Errorf("the client heard %q, want %s", got, a.want)
			}
			to, _, _ := strings.Cut(a.to, ",")
			if n := len(f.recorded(t, to)); n != a.taken {
				t.Errorf("qmail-queue took %d messages, want %d", n, a.taken)
			}
			if a.from == netAway {
				return
			}
			l := f.told(t, peer)
			if l.Answer != a.log || a.log != "" && l.Exit != a.exit || (a.log == "") != (l.Next != nil) {
				t.Errorf("the log has %+v, want the answer %q and exit %d", l, a.log, a.exit)
			}
			if standing := map[bool]string{false: "external", true: "relay"}[a.from == netRelay]; l.Standing != standing {
				t.Errorf("the client's standing is %q, want %q", l.Standing, standing)
			}
		})
	}
}

// testCopies has a message tapped: the copy has an envelope of its own.
func (f *front) testCopies(t *testing.T) {
	got := f.swaks(t, netRelay+"200", "--from", "sender@b.example", "--to", "boss@example.org", "--header", "Subject: tapped")
	if !qp.MatchString(got) {
		t.Errorf("the client heard %q", got)
	}
	f.told(t, netRelay+"200") // the copy has gone through by then
	main, tapped := f.recorded(t, "boss@example.org"), f.recorded(t, "archive@example.org")
	if len(main) != 1 || len(tapped) != 1 {
		t.Fatalf("qmail-queue took %d messages and %d copies", len(main), len(tapped))
	}
	if main[0].envelope.Sender != "sender@b.example" || tapped[0].envelope.Sender != "" {
		t.Errorf("the envelopes are %v and %v", main[0].envelope, tapped[0].envelope)
	}
	if !strings.Contains(main[0].message, "X-Standing: relayed\n") {
		t.Errorf("the message is %q", main[0].message)
	}
	if m := tapped[0].message; !strings.HasPrefix(m, "Postern-Tap: ") || !strings.HasSuffix(m, "\n"+main[0].message) {
		t.Errorf("the copy is %q, the message %q", tapped[0].message, main[0].message)
	}
}

// mailfrontText is what mailfront 2.12 makes of the exit codes that it knows.
// It has no custom texts but those of the environment, and 115 is nothing to it.
func mailfrontText(code int) string {
	text := map[int]string{
		11: "5.1.3 Address too long.", 31: "5.3.0 Message refused.", 51: "4.3.0 Out of memory.", 52: "4.3.0 Timeout.",
		53: "4.3.0 Write error (queue full?).", 54: "4.3.0 Unable to read the message or envelope.",
		55: "4.3.0 Unable to read a configuration file.", 56: "4.3.0 Network problem.",
		61: "4.3.0 Problem with the qmail home directory.", 62: "4.3.0 Problem with the qmail queue directory.",
		63: "4.3.0 Problem with queue/pid.", 64: "4.3.0 Problem with queue/mess.", 65: "4.3.0 Problem with queue/intd.",
		66: "4.3.0 Problem with queue/todo.", 71: "4.3.0 Message refused by mail server.",
		72: "4.3.0 Connection to mail server timed out.", 73: "4.3.0 Connection to mail server rejected.",
		74: "4.3.0 Communication with mail server failed.", 81: "4.3.0 Internal qmail-queue bug.", 91: "4.3.0 Envelope format error.",
	}[code]
	switch {
	case code >= 11 && code <= 40 && text == "":
		return "554 5.3.0 Message rejected by qmail-queue."
	case code >= 11 && code <= 40:
		return "554 " + text
	case text == "":
		return "451 4.3.0 Temporary qmail-queue failure."
	}
	return "451 " + text
}

// testExits has qmail-queue exit with every code: the client must hear what it
// would hear without us, and the log must have the table's answer.
func (f *front) testExits(t *testing.T) {
	const connections = 4
	t.Run("clients", func(t *testing.T) {
		for part := range connections {
			t.Run(strconv.Itoa(part), func(t *testing.T) {
				t.Parallel()
				c := f.dial(t, netStranger+strconv.Itoa(200+part))
				for code := part; code < 256; code += connections {
					checkExit(t, code, c.send(fmt.Sprintf("exit-%d@example.org", code), "Subject: exit\n\nbody\n"))
				}
			})
		}
	})
	seen := map[string]bool{}
	want := func(code int) string {
		if slices.Contains(reply.CustomExits[:], code) {
			return "in its own words" // which only its caller has heard
		}
		return reply.FromExit(code, "").SMTP()
	}
	for _, l := range f.logged(t, 256, func(l logLine) bool { return strings.HasPrefix(l.To, "exit-") }) {
		code, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(l.To, "exit-"), "@example.org"))
		if err != nil || seen[l.To] || l.Next == nil || l.Next.Exit != float64(code) || l.Next.Answer != want(code) {
			t.Errorf("%s: the log has %+v", l.To, l.Next)
		}
		seen[l.To] = true
	}
	if n := len(f.recorded(t, "exit-0@example.org")); n != 1 {
		t.Errorf("qmail-queue took %d messages, want 1", n)
	}
}

// checkExit compares what the client heard with what our table says of an exit
// code, and with mailfront's own.
func checkExit(t *testing.T, code int, heard string) {
	t.Helper()
	class := map[byte]reply.Class{'2': reply.Success, '4': reply.Temporary, '5': reply.Permanent}[heard[0]]
	// The one code about which mailfront and qmail differ.
	if promised := reply.FromExit(code, "").Class; class != promised && code != 115 {
		t.Errorf("exit %d: the client heard %q, but the table says %v", code, heard, promised)
	}
	if want := mailfrontText(code); code != 0 && heard != want {
		t.Errorf("exit %d: the client heard %q, want %q", code, heard, want)
	}
}

// testCut has clients go away in the middle: nothing is taken.
func (f *front) testCut(t *testing.T) {
	c := f.dial(t, netStranger+"220")
	c.say("MAIL FROM:<sender@b.example>")
	c.say("RCPT TO:<cut@example.org>")
	c.say("DATA")
	if err := c.PrintfLine("Subject: half\r\n\r\nhalf a"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if l := f.told(t, netStranger+"220"); l.Exit != 54 || l.Answer != reply.ReadError.SMTP() {
		t.Errorf("the log has %+v", l)
	}
	if n := len(f.recorded(t, "cut@example.org")); n != 0 {
		t.Errorf("qmail-queue took %d messages", n)
	}
}

// testStopped has the daemon hang: the client is told to try again, and what
// the daemon finds when it wakes up is not taken.
func (f *front) testStopped(t *testing.T) {
	if err := f.daemon.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	got := f.swaks(t, netStopped+"1", "--from", "sender@b.example", "--to", "stopped@example.org")
	if want := mailfrontText(71); got != want {
		t.Errorf("the client heard %q, want %q", got, want)
	}
	if err := f.daemon.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	got = f.swaks(t, netStranger+"240", "--from", "sender@b.example", "--to", "awake@example.org")
	if !qp.MatchString(got) {
		t.Errorf("after that the client heard %q", got)
	}
	if stopped, awake := len(f.recorded(t, "stopped@example.org")), len(f.recorded(t, "awake@example.org")); stopped != 0 || awake != 1 {
		t.Errorf("qmail-queue took %d messages while the daemon hung, and %d after", stopped, awake)
	}
}
