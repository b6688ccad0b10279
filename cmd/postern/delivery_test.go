package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

// Where make deps unpacks Debian's package postfix, of which smtp-sink is used.
const postfixDir = "../../bin/debian/postfix"

const deliveryConfig = `hostname = "mx.example.org"
control = ""
trusted = ["$UID"]
state = "$RUN/state"
admin.socket = "$RUN/admin.sock"
log.format = "json"
[listen.queue]
socket = "$RUN/queue.sock"
next = "queue"
[chain]
inbound = ["policy", "standing", "tap"]
[filter.policy]
kind = "rule"
rule = [{when = 'header("Subject") == "lottery"', action = "reject", reply = "554 5.7.1 no lotteries"}]
[filter.standing]
kind = "header"
rule = [{op = "add", name = "X-Standing", value = "checked"}]
[filter.tap]
rules = ["T:^boss@:archive@example.org"]
[queue]
low_space = "1 MB"
resolver = ["127.0.0.1:1"]
[bounce]
postmaster = "postmaster@example.org"
[mailbox]
"postmaster@example.org" = "$RUN/mail/postmaster"
"joe@example.org" = "$RUN/mail/joe"
"boss@example.org" = "$RUN/mail/boss"
"archive@example.org" = "$RUN/mail/archive"
[route]
`

// sink is Debian's smtp-sink, which writes each message to a file.
type sink struct {
	address string // where it listens
	dir     string // where it writes
	domain  string // that is routed to it
	process *exec.Cmd
}

// newSink makes a sink for a domain that nothing else on this host listens for:
// the address is made of our process id.
func newSink(t *testing.T, port int, domain string) *sink {
	t.Helper()
	pid := os.Getpid()
	return &sink{address: fmt.Sprintf("127.%d.%d.%d:%d", 128+pid>>16&127, pid>>8&255, 1|pid&254, port), dir: t.TempDir(), domain: domain}
}

// start starts it with some options, and waits until it listens.
func (s *sink) start(t *testing.T, options ...string) {
	t.Helper()
	if os.Getuid() == 0 {
		options = append(options, "-u", "root") // it insists on a word about that
	}
	options = append(options, "-d", filepath.Join(s.dir, "m."), "inet:"+s.address, "100")
	s.process = exec.Command(filepath.Join(postfixDir, "usr/sbin/smtp-sink"), options...)
	s.process.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(postfixDir, "usr/lib/postfix"))
	var said bytes.Buffer
	s.process.Stderr = &said
	if err := s.process.Start(); err != nil {
		t.Fatalf("%v: make deps unpacks smtp-sink", err)
	}
	ended := make(chan error, 1)
	go func(c *exec.Cmd) { ended <- c.Wait() }(s.process)
	t.Cleanup(func() { s.process.Process.Kill() }) //nolint:errcheck // it may have ended
	for range 400 {
		select {
		case err := <-ended:
			t.Fatalf("smtp-sink ended: %v: make deps unpacks it and its libraries\n%s", err, said.Bytes())
		case <-time.After(25 * time.Millisecond):
		}
		if c, err := net.Dial("tcp", s.address); err == nil {
			c.Close()
			return
		}
	}
	t.Fatal("smtp-sink does not listen")
}

// stop ends it; another can be started in its place.
func (s *sink) stop(t *testing.T) {
	t.Helper()
	if err := s.process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for range 400 {
		c, err := net.Dial("tcp", s.address)
		if err != nil {
			return
		}
		c.Close()
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatal("smtp-sink does not end")
}

// taken are the messages that the sink wrote for a recipient, without the head
// that it adds and the empty line that it ends with.
func (s *sink) taken(t *testing.T, to string) (all []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(s.dir, "m.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		added := regexp.MustCompile(`^(X-[^\n]*\n)+Received: from [^\n]*\n\tby smtp-sink [^\n]*\n\t[^\n]*\n`).Find(b)
		if !bytes.Contains(added, []byte("\nX-Rcpt-Args: <"+to+">")) {
			continue
		}
		if !bytes.HasSuffix(b, []byte("\n\n")) {
			t.Fatalf("smtp-sink wrote half a message: %q", b)
		}
		all = append(all, string(b[len(added):len(b)-1]))
	}
	return all
}

// delivery is a front with a queue behind it, and the sinks.
type delivery struct {
	*front
	good, hard, soft, lost *sink
	closing                *smtptest.Server
}

func newDelivery(t *testing.T) *delivery {
	t.Helper()
	for program, pack := range callers {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: install Debian's package %s (make deps does)", err, pack)
		}
	}
	d := &delivery{
		good: newSink(t, 2525, "good.example"), hard: newSink(t, 2526, "hard.example"), soft: newSink(t, 2527, "soft.example"),
		lost:    newSink(t, 2528, "lost.example"),
		closing: smtptest.New(t, smtptest.Step{At: smtptest.Dot, Times: 1, End: smtptest.Close}),
	}
	d.good.start(t)
	d.hard.start(t, "-f", "RCPT", "-B", "550 5.1.1 nobody of that name")
	d.soft.start(t, "-r", "RCPT", "-b", "452 4.2.2 the mailbox is full")
	d.lost.start(t, "-q", ".")
	config := deliveryConfig + fmt.Sprintf("%q = %q\n", "closing.example", d.closing.Addr())
	for _, s := range []*sink{d.good, d.hard, d.soft, d.lost} {
		config += fmt.Sprintf("%q = %q\n", s.domain, s.address)
	}
	d.front = newFront(t, buildShims(t, t.TempDir())["c"], config)
	for _, box := range []string{"joe", "boss", "archive", "postmaster"} {
		for _, dir := range []string{"tmp", "new", "cur"} {
			if err := os.MkdirAll(filepath.Join(d.dir, "mail", box, dir), 0o777); err != nil {
				t.Fatal(err)
			}
		}
	}
	return d
}

// send sends a message with swaks, as one of our own users does.
func (d *delivery) send(t *testing.T, from, to, content string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "message")
	// Left to itself swaks mends a message. It is told not to, and adds only the
	// last line end.
	wire := strings.ReplaceAll(strings.ReplaceAll("\n"+content, "\n.", "\n..")[1:], "\n", "\r\n") + "."
	if err := os.WriteFile(name, []byte(wire), 0o666); err != nil {
		t.Fatal(err)
	}
	if got := d.swaks(t, netRelay+"1", "--from", from, "--to", to, "--no-data-fixup", "--data", "@"+name); !qp.MatchString(got) {
		t.Fatalf("the client heard %q", got)
	}
}

// ended waits until deliveries to an address have ended so, that many of them.
func (d *delivery) ended(t *testing.T, to, status string, count int) {
	t.Helper()
	d.logged(t, count, func(l logLine) bool { return l.Msg == "delivery" && l.To == to && l.Status == status })
}

// mail are the messages in a Maildir.
func (d *delivery) mail(t *testing.T, box string) (all []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(d.dir, "mail", box, "new", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(b))
	}
	return all
}

// postern runs a command of the operator's.
func (d *delivery) postern(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("postern", append(args, "--config", filepath.Join(d.dir, "postern.toml"))...).CombinedOutput()
	if err != nil {
		t.Fatalf("postern %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// queued is the message in the queue to an address, for which a rule holds in
// the end: the log tells of an attempt before the queue has noted it.
func (d *delivery) queued(t *testing.T, to, rule string) (m api.QueueMessage) {
	t.Helper()
	for range 100 {
		list := d.postern(t, "queue", "list", "--json", "--match", fmt.Sprintf("%q in recipients and %s", to, rule))
		if list == "" {
			time.Sleep(25 * time.Millisecond)
			continue
		}
		if err := json.Unmarshal([]byte(list), &m); err != nil || len(m.Recipients) != 1 {
			t.Fatalf("not one message with one recipient (%v): %s", err, list)
		}
		return m
	}
	t.Fatalf("no message to %s of which %q is true: %s", to, rule, d.postern(t, "queue", "list", "--json"))
	return m
}

// empty waits until nothing is left in the queue.
func (d *delivery) empty(t *testing.T) {
	t.Helper()
	for range 100 {
		if d.postern(t, "queue", "list") == "" {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatalf("there is still mail: %s", d.postern(t, "queue", "list", "--json"))
}

// passed is the head that the way here puts above what is sent; more is what
// the last step adds.
func passed(more string) *regexp.Regexp {
	return regexp.MustCompile(`^` + more + `X-Standing: checked\nReceived: \(qmail \d+ invoked [^\n]*\n` +
		`Received: from client\.example \(\[127\.0\.2\.1\]\)\n  by mx\.example\.org \(\[127\.0\.0\.1\]\)\n  with ESMTP via TCP; [^\n]* -0000\n`)
}

// same tells whether a message arrived as it was sent, below the fields that
// were put above it.
func same(t *testing.T, above *regexp.Regexp, sent string, arrived []string) {
	t.Helper()
	if len(arrived) != 1 {
		t.Errorf("%d messages arrived", len(arrived))
		return
	}
	if top := above.FindString(arrived[0]); top == "" || arrived[0][len(top):] != sent {
		t.Errorf("sent %.1000q\narrived %.1500q", sent, arrived[0])
	}
}

// TestDelivery passes mail from a real SMTP client through a real SMTP server,
// the shim, the chain and the queue to a real SMTP server, and to Maildirs.
func TestDelivery(t *testing.T) {
	t.Parallel()
	d := newDelivery(t)
	for _, step := range []struct {
		name string
		test func(*testing.T)
	}{
		{"content", d.testContent},
		{"chain", d.testChain},
		{"refused", d.testRefused},
		{"stranger", d.testStranger},
		{"deferred", d.testDeferred},
		{"lost", d.testLost},
		{"closing", d.testClosing},
	} {
		if !t.Run(step.name, step.test) {
			break
		}
	}
	d.postern(t, "queue", "verify")
}

var contents = []struct{ name, subject, content string }{
	{"plain", "hello", "From: joe@example.org\nSubject: hello\n\nHello.\n"},
	{"empty", "empty", "Subject: empty\n\n"},
	{"dots", "dots", "Subject: dots\n\n.\n..\n.. two\n...\n.text\n\n.\n"},
	{"eight", "gr\xc3\xbc\xc3\x9fe", "Subject: gr\xc3\xbc\xc3\x9fe\n\n\xe4\xf6\xfc \xff \x80 Gr\xc3\xbc\xc3\x9fe\n"},
	{"long", "long", "Subject: long\nX-Folded: one\n\ttwo\n\nlong " + strings.Repeat("x", 5000) + "\n" + strings.Repeat("y", 998) + "\n"},
	{"odd", "odd", "Subject: odd\n\nFrom here\n>From there\ntrailing blanks  \n\ttab\n\x01\x7f controls\n\n\n"},
	{"large", "large", "Subject: large\n\n" + strings.Repeat(".a line of many\n", 20000)},
}

// testContent: what is sent arrives, byte for byte.
func (d *delivery) testContent(t *testing.T) {
	for _, c := range contents {
		far := c.name + "@good.example"
		d.send(t, "ann@example.org", far, c.content)
		d.ended(t, far, "delivered", 1)
		same(t, passed(""), c.content, d.good.taken(t, far))
	}
	for i, c := range contents {
		d.send(t, "ann@example.org", "joe@example.org", c.content)
		d.ended(t, "joe@example.org", "delivered", i+1)
		got := slices.DeleteFunc(d.mail(t, "joe"), func(m string) bool { return !strings.Contains(m, "\nSubject: "+c.subject+"\n") })
		same(t, passed("Return-Path: <ann@example\\.org>\nDelivered-To: joe@example\\.org\n"), c.content, got)
	}
	if n := len(d.mail(t, "joe")); n != len(contents) {
		t.Errorf("%d messages in the mailbox, want %d", n, len(contents))
	}
	d.empty(t)
}

// testChain: the chain refuses, changes and copies before the queue takes it.
func (d *delivery) testChain(t *testing.T) {
	got := d.swaks(t, netRelay+"1", "--from", "ann@example.org", "--to", "lottery@good.example", "--header", "Subject: lottery")
	if got != "554 5.3.0 Message refused." {
		t.Errorf("the client heard %q", got)
	}
	const content = "Subject: secret\n\nfor two\n"
	d.send(t, "ann@example.org", "boss@example.org,other@good.example", content)
	d.ended(t, "boss@example.org", "delivered", 1)
	d.ended(t, "archive@example.org", "delivered", 1)
	d.ended(t, "other@good.example", "delivered", 1)
	same(t, passed("Return-Path: <ann@example\\.org>\nDelivered-To: boss@example\\.org\n"), content, d.mail(t, "boss"))
	same(t, passed("Return-Path: <>\nDelivered-To: archive@example\\.org\nPostern-Tap: (?s:.*?)\n envelope-from <ann@example\\.org>\n"),
		content, d.mail(t, "archive"))
	same(t, passed(""), content, d.good.taken(t, "other@good.example"))
	if all := d.good.taken(t, "lottery@good.example"); len(all) > 0 {
		t.Errorf("what the chain refused was delivered: %q", all)
	}
}

// report is what testdata/report.py says of a message.
type report struct {
	Type, Report, Subject string
	From, To, Defects     []string
	Parts                 []struct {
		Type, Text, Subject string
		Groups              []map[string]string
	}
}

// testRefused: a server's refusal for good comes back to the sender, who can
// read it, as can a program.
func (d *delivery) testRefused(t *testing.T) {
	before := d.mail(t, "joe")
	d.send(t, "joe@example.org", "nobody@hard.example", "From: joe@example.org\nSubject: a question\n\nWho is there?\n")
	d.ended(t, "nobody@hard.example", "failed", 1)
	d.ended(t, "joe@example.org", "delivered", len(before)+1)
	fresh := slices.DeleteFunc(d.mail(t, "joe"), func(m string) bool { return slices.Contains(before, m) })
	if len(fresh) != 1 || !strings.HasPrefix(fresh[0], "Return-Path: <>\nDelivered-To: joe@example.org\n") {
		t.Fatalf("not one report in the mailbox: %q", fresh)
	}
	python := exec.Command("/usr/bin/python3", "testdata/report.py")
	python.Stdin, python.Stderr = strings.NewReader(fresh[0]), os.Stderr
	out, err := python.Output()
	if err != nil {
		t.Fatalf("%v: install Debian's package python3 (make deps does)", err)
	}
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if r.Type != "multipart/report" || r.Report != "delivery-status" || len(r.Defects) > 0 || len(r.Parts) != 3 {
		t.Fatalf("the report is %s\n%s", out, fresh[0])
	}
	if !slices.Equal(r.From, []string{"MAILER-DAEMON@mx.example.org"}) || !slices.Equal(r.To, []string{"joe@example.org"}) || r.Subject != "failure notice" {
		t.Errorf("the report is from %q to %q about %q", r.From, r.To, r.Subject)
	}
	human, status, original := r.Parts[0], r.Parts[1], r.Parts[2]
	if human.Type != "text/plain" || !strings.Contains(human.Text, "<nobody@hard.example>:\n") || !strings.Contains(human.Text, "550 5.1.1 nobody of that name") {
		t.Errorf("the human part is %+v", human)
	}
	if status.Type != "message/delivery-status" || len(status.Groups) != 2 {
		t.Fatalf("the second part is %+v", status)
	}
	want := map[string]string{
		"final-recipient": "rfc822; nobody@hard.example", "action": "failed", "status": "5.1.1", "diagnostic-code": "smtp; 550 5.1.1 nobody of that name",
	}
	for name, value := range want {
		if got := strings.ReplaceAll(status.Groups[1][name], ";", "; "); strings.Join(strings.Fields(got), " ") != value {
			t.Errorf("%s: %q, want %q", name, status.Groups[1][name], value)
		}
	}
	if mta := status.Groups[0]["reporting-mta"]; !strings.HasSuffix(mta, "mx.example.org") {
		t.Errorf("Reporting-MTA: %q", mta)
	}
	if original.Type != "message/rfc822" || original.Subject != "a question" || original.Text != "Who is there?\n" {
		t.Errorf("the original is %+v", original)
	}
	d.empty(t)
}

// testStranger: somebody whom we do not know is not told. The mail is kept, and
// the postmaster hears of it.
func (d *delivery) testStranger(t *testing.T) {
	got := d.swaks(t, netStranger+"1", "--from", "stranger@good.example", "--to", "missing@example.org", "--header", "Subject: stranger")
	if !qp.MatchString(got) {
		t.Fatalf("the client heard %q", got)
	}
	d.ended(t, "missing@example.org", "failed", 1)
	m := d.queued(t, "missing@example.org", "held")
	if m.Hold == nil || m.Hold.Filter != "" || m.Hold.By != "" {
		t.Errorf("the message is not held as one that cannot be returned: %+v", m)
	}
	if all := d.good.taken(t, "stranger@good.example"); len(all) > 0 {
		t.Errorf("the stranger was told: %q", all)
	}
	d.ended(t, "postmaster@example.org", "delivered", 1)
	if all := d.mail(t, "postmaster"); len(all) != 1 || !strings.Contains(all[0], "<missing@example.org>:\n") {
		t.Errorf("the postmaster got %q", all)
	}
	d.postern(t, "queue", "delete", m.ID)
	d.empty(t)
}

// testDeferred: a server's refusal for now is waited out.
func (d *delivery) testDeferred(t *testing.T) {
	const to, content = "full@soft.example", "Subject: later\n\nIn time.\n"
	d.send(t, "joe@example.org", to, content)
	m := d.queued(t, to, "attempts > 0")
	if r := m.Recipients[0]; r.Status != "deferred" || r.Attempts != 1 || r.Next == "" || r.Perhaps || !strings.Contains(r.Reply, "452 4.2.2 the mailbox is full") {
		t.Errorf("the recipient is %+v", r)
	}
	shown := d.postern(t, "queue", "show", m.ID)
	if !regexp.MustCompile(`(?m)^<full@soft\.example> +deferred +1 .* in \d+.* remote +127\.[0-9.]+ .*452 4\.2\.2 the mailbox is full$`).MatchString(shown) {
		t.Errorf("postern queue show has:\n%s", shown)
	}
	d.soft.stop(t)
	d.soft.start(t)
	d.postern(t, "queue", "retry", m.ID)
	d.ended(t, to, "delivered", 1)
	same(t, passed(""), content, d.soft.taken(t, to))
	d.empty(t)
}

// perhaps checks that a message waits that may have been delivered.
func (d *delivery) perhaps(t *testing.T, to string) (id string) {
	t.Helper()
	m := d.queued(t, to, "attempts > 0")
	if r := m.Recipients[0]; r.Status != "deferred" || r.Attempts != 1 || !r.Perhaps {
		t.Errorf("the recipient is %+v", r)
	}
	if shown := d.postern(t, "queue", "show", m.ID); !strings.Contains(shown, " (it may have been delivered)\n") {
		t.Errorf("postern queue show has:\n%s", shown)
	}
	return m.ID
}

// testLost: smtp-sink takes a message and hangs up without a word. It comes
// again, and not a third time.
func (d *delivery) testLost(t *testing.T) {
	const to, content = "twice@lost.example", "Subject: lost\n\nOnce, or twice.\n"
	d.send(t, "joe@example.org", to, content)
	id := d.perhaps(t, to)
	d.lost.stop(t)
	same(t, passed(""), content, d.lost.taken(t, to))
	d.lost.start(t)
	d.postern(t, "queue", "retry", id)
	d.ended(t, to, "delivered", 1)
	d.empty(t)
	all := d.lost.taken(t, to)
	if len(all) != 2 || all[0] != all[1] {
		t.Errorf("the sink has %q", all)
	}
}

// testClosing is testLost with a server that loses only the first connection.
func (d *delivery) testClosing(t *testing.T) {
	const to, content = "twice@closing.example", "Subject: closing\n\nOnce, or twice.\n"
	d.send(t, "joe@example.org", to, content)
	id := d.perhaps(t, to)
	d.postern(t, "queue", "retry", id)
	d.ended(t, to, "delivered", 1)
	d.empty(t)
	all := d.closing.Messages()
	if len(all) != 2 || all[0].Answer != 0 || all[1].Answer != 250 || all[0].ID() != all[1].ID() {
		t.Fatalf("the server took %d messages", len(all))
	}
	for _, m := range all {
		same(t, passed(""), content, []string{string(m.Content)})
	}
}
