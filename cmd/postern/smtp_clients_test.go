package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// What the tests of SMTP clients need, and Debian's packages of it.
var mailers = map[string]string{
	"swaks": "swaks", "/usr/bin/python3": "python3", "msmtp": "msmtp", "curl": "curl", "mutt": "mutt", "s-nail": "s-nail",
}

const clientsConfig = `[listen.mx]
address = "$AT_MX"
tls = "offer"
[listen.submission]
address = "$AT_SUBMISSION"
service = "submission"
[listen.smtps]
address = "$AT_SMTPS"
service = "submission"
tls = "implicit"
[listen.clear]
address = "$AT_CLEAR"
service = "submission"
tls = "off"
auth_clear = true
[listen.lmtp]
address = "$AT_LMTP"
service = "lmtp"
tls = "off"
[certificate.one]
cert = "$RUN/one.crt"
key = "$RUN/one.key"
[auth.file]
file = "$RUN/users"
[chain]
inbound = ["policy"]
[filter.policy]
kind = "rule"
rule = [{when = '"refused@example.org" in recipients', each = true, action = "reject", reply = "550 5.1.1 nobody of that name"}, {when = '"later@example.org" in recipients', each = true, action = "defer", reply = "450 4.2.1 not now"}]
[mailbox]
"@example.org" = "$RUN/mail/%l"
`

// sends is one message that a real client sends.
type sends struct {
	name     string // also the recipient's local part
	entrance string
	with     string // how it came, by Received
	user     string
	body     string // "" for the usual one
	client   func(c sending) *exec.Cmd
}

// sending is what a client is told.
type sending struct {
	g                    *gateway
	address, host, port  string
	to, subject          string
	body, message, trust string // files
	home                 string // for configuration
}

func (s sending) file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(s.home, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const (
	clientSender   = "ann@example.org"
	clientPassword = "open sesame"
	usualBody      = "Hello.\n.\n..two dots\n\n  the end\n"
)

// swaksWith makes a client of swaks with some options.
func swaksWith(options ...string) func(sending) *exec.Cmd {
	return func(c sending) *exec.Cmd {
		all := []string{
			"--server", c.address, "--helo", "client.example", "--timeout", "60", "--from", clientSender, "--to", c.to,
			"--h-Subject", c.subject, "--body", "@" + c.body,
		}
		return exec.Command("swaks", append(all, options...)...)
	}
}

func pythonWith(how string) func(sending) *exec.Cmd {
	return func(c sending) *exec.Cmd {
		return exec.Command("/usr/bin/python3", "testdata/smtplib_client.py", how, c.host, c.port, c.trust, clientSender, c.to, c.message)
	}
}

func curlWith(scheme string, options ...string) func(sending) *exec.Cmd {
	return func(c sending) *exec.Cmd {
		all := []string{
			"--silent", "--show-error", "--url", scheme + "://" + c.address + "/client.example", "--cacert", c.trust,
			"--mail-from", clientSender, "--mail-rcpt", c.to, "--crlf", "--upload-file", c.message, "--max-time", "60",
		}
		return exec.Command("curl", append(all, options...)...)
	}
}

var (
	login     = []string{"--auth-user", clientSender, "--auth-password", clientPassword}
	curlLogin = []string{"--user", clientSender + ":" + clientPassword}
	eightBit  = "Gr\xc3\xbc\xc3\x9fe, und \xe4\xf6\xfc.\n"
	largeBody = strings.Repeat(".a line of many\n", 40000)
)

var allSends = []sends{
	{name: "swaks", entrance: "mx", with: "ESMTP", client: swaksWith("--pipeline")},
	{name: "swakshelo", entrance: "mx", with: "SMTP", client: swaksWith("--protocol", "SMTP")},
	{name: "swakslarge", entrance: "mx", with: "ESMTPS", body: largeBody, client: swaksWith("--tls", "--pipeline")},
	{name: "swaksplain", entrance: "submission", with: "ESMTPSA", user: clientSender, client: swaksWith(append(login, "--tls", "--auth", "PLAIN")...)},
	{name: "swakslogin", entrance: "smtps", with: "ESMTPSA", user: clientSender, client: swaksWith(append(login, "--tls-on-connect", "--auth", "LOGIN")...)},
	{name: "swaksclear", entrance: "clear", with: "ESMTPA", user: clientSender, client: swaksWith(append(login, "--auth", "LOGIN", "--pipeline")...)},
	{name: "swakslmtp", entrance: "lmtp", with: "LMTP", client: swaksWith("--protocol", "LMTP")},
	{name: "python", entrance: "mx", with: "ESMTP", client: pythonWith("plain")},
	{name: "pythontls", entrance: "mx", with: "ESMTPS", body: eightBit, client: pythonWith("tls")},
	{name: "pythonlogin", entrance: "submission", with: "ESMTPSA", user: clientSender, body: eightBit, client: pythonWith("login")},
	{name: "pythonutf8", entrance: "mx", with: "UTF8SMTPS", body: eightBit, client: pythonWith("utf8")},
	{name: "msmtp", entrance: "submission", with: "ESMTPSA", user: clientSender, client: func(c sending) *exec.Cmd {
		cmd := exec.Command("msmtp", "--host", c.host, "--port", c.port, "--domain", "client.example", "--from", clientSender, "--tls=on", "--tls-trust-file", c.trust,
			"--auth=on", "--user", clientSender, "--passwordeval", "echo '"+clientPassword+"'", "--timeout=60", c.to)
		cmd.Stdin, _ = os.Open(c.message) //nolint:errcheck // an empty message shows
		return cmd
	}},
	{name: "curl", entrance: "mx", with: "ESMTPS", body: largeBody, client: curlWith("smtp", "--ssl-reqd")},
	{name: "curllogin", entrance: "smtps", with: "ESMTPSA", user: clientSender, client: curlWith("smtps", curlLogin...)},
	{name: "mutt", entrance: "submission", with: "ESMTPSA", user: clientSender, body: "Hello.\n\nFrom mutt.\n", client: func(c sending) *exec.Cmd {
		rc := filepath.Join(c.home, "muttrc")
		text := fmt.Sprintf("set from=%q use_from=yes envelope_from_address=%q use_envelope_from=yes hostname=client.example copy=no ssl_starttls=yes ssl_force_tls=yes\n"+
			"set smtp_url=\"smtp://ann%%40example.org@%s\" smtp_pass=%q ssl_ca_certificates_file=\"\" certificate_file=%q\n", clientSender, clientSender, c.address, clientPassword, c.trust)
		os.WriteFile(rc, []byte(text), 0o600) //nolint:errcheck // mutt would say
		cmd := exec.Command("mutt", "-F", rc, "-s", c.subject, "--", c.to)
		cmd.Stdin, _ = os.Open(c.body) //nolint:errcheck // an empty message shows
		return cmd
	}},
	{name: "snail", entrance: "smtps", with: "ESMTPSA", user: clientSender, client: func(c sending) *exec.Cmd {
		cmd := exec.Command("s-nail", "-:/", "-Sv15-compat", "-Smta=smtps://ann%40example.org:open%20sesame@"+c.address, "-Ssmtp-auth=plain",
			"-Stls-ca-file="+c.trust, "-Stls-verify=strict", "-Sfrom="+clientSender, "-Ssendwait", "-s", c.subject, c.to)
		cmd.Stdin, _ = os.Open(c.body) //nolint:errcheck // an empty message shows
		return cmd
	}},
}

// TestSMTPClients has real clients send mail to the real daemon, which delivers
// it to Maildirs.
func TestSMTPClients(t *testing.T) {
	t.Parallel()
	for program, pack := range mailers {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: install Debian's package %s (make deps does)", err, pack)
		}
	}
	g := newGateway(t)
	ca := newAuthority(t, g)
	ca.issue(t, g, "one", "mx.example.org")
	addUser(t, g, clientSender, clientPassword)
	g.box(t, "source")
	for _, s := range allSends {
		g.box(t, s.name)
	}
	g.start(t, clientsConfig)
	for _, s := range allSends {
		t.Run(s.name, func(t *testing.T) { s.test(t, g, ca) })
	}
	t.Run("smtp-source", func(t *testing.T) { testSMTPSource(t, g) })
	t.Run("lmtp", func(t *testing.T) { testLMTP(t, g) })
	if bad := append(g.lines(t, "level", "ERROR"), g.lines(t, "level", "WARN")...); len(bad) > 0 {
		t.Errorf("the log complains: %v", bad)
	}
	g.postern(t, "queue", "verify")
}

// addUser adds a user with a hash that costs little.
func addUser(t *testing.T, g *gateway, name, password string) {
	t.Helper()
	c := exec.Command("postern", "password", "--file", filepath.Join(g.dir, "users"), "--user", name, "--memory", "64", "--passes", "1", "--lanes", "1")
	c.Stdin = strings.NewReader(password + "\n")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func (s sends) test(t *testing.T, g *gateway, ca *authority) {
	body := s.body
	if body == "" {
		body = usualBody
	}
	c := sending{g: g, address: g.at(s.entrance), to: s.name + "@example.org", subject: "from " + s.name, home: t.TempDir(), trust: ca.file}
	c.host, c.port, _ = net.SplitHostPort(c.address)
	c.body = c.file(t, "body", body)
	c.message = c.file(t, "message", "From: "+clientSender+"\nSubject: "+c.subject+"\n\n"+body)
	cmd := s.client(c)
	cmd.Env = append(os.Environ(), "HOME="+c.home, "LC_ALL=C.UTF-8")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	m := g.arrived(t, s.name, 1)[0]
	secure, cipher := "", ""
	if strings.Contains(s.with, "SMTPS") {
		secure, cipher = `\n\t\(using TLSv1\.3\)`, `\n\ttls TLS_[A-Z0-9_]+`
	}
	top := regexp.MustCompile(`^Return-Path: <ann@example\.org>\nDelivered-To: ` + regexp.QuoteMeta(c.to) + `\n` +
		`Received: from \S+ \(unknown \[127\.0\.0\.1\]\)` + secure + `\n\tby mx\.example\.org with ` + s.with + ` id (\S+)\n\tfor <` + regexp.QuoteMeta(c.to) + `>` + cipher + `; \w{3}, \d\d \w{3} \d{4} [\d:]{8} [-+]\d{4}\n`).
		FindStringSubmatch(m)
	if top == nil {
		t.Fatalf("arrived with %.800q", m)
	}
	head, got, _ := strings.Cut(m, "\n\n")
	if strings.TrimRight(got, "\n") != strings.TrimRight(body, "\n") {
		t.Errorf("sent %.300q (%d bytes)\narrived %.300q (%d bytes)", body, len(body), got, len(got))
	}
	if !strings.Contains(head, "\nSubject: "+c.subject) {
		t.Errorf("the head is %q", head)
	}
	if mended := regexp.MustCompile(`(?i)\nMessage-ID: `).MatchString(head) && strings.Contains(head, "\nDate: "); s.user != "" && !mended {
		t.Errorf("a submission was not mended: %q", head)
	}
	l := g.logged(t, 1, "msg", "message", "id", top[1])[0]
	for key, want := range map[string]string{"from": clientSender, "to": c.to, "entrance": s.entrance, "peer": "127.0.0.1"} {
		if got := fmt.Sprint(l[key]); got != want {
			t.Errorf("the log has %s %q, want %q", key, got, want)
		}
	}
	if answer, _ := l["answer"].(string); !strings.HasPrefix(answer, "250 2.0.0 ok") {
		t.Errorf("the log has the answer %q", answer)
	}
	if user, _ := l["user"].(string); user != s.user {
		t.Errorf("the log has the user %q", user)
	}
	if said, _ := l["tls"].(string); (said != "") != (secure != "") {
		t.Errorf("the log has tls %q", said)
	}
	session, _, _ := strings.Cut(top[1], ".")
	if l := g.logged(t, 1, "msg", "session", "session", session)[0]; l["ended"] != "quit" || l["taken"] != 1.0 {
		t.Errorf("the session's line is %v", l)
	}
}

// testSMTPSource sends from several sessions at once, with SMTP and LMTP.
func testSMTPSource(t *testing.T, g *gateway) {
	const count = 40
	for i, how := range []struct {
		entrance string
		options  []string
	}{{"mx", []string{"-d"}}, {"mx", nil}, {"lmtp", []string{"-d", "-L"}}} {
		c := exec.Command(filepath.Join(postfixDir, "usr/sbin/smtp-source"), append(how.options, "-s", "8", "-m", strconv.Itoa(count), "-l", "9000",
			"-M", "client.example", "-f", clientSender, "-t", "source@example.org", "-S", "from smtp-source", "inet:"+g.at(how.entrance))...)
		c.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(postfixDir, "usr/lib/postfix"))
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c.Args, err, out)
		}
		for _, m := range g.arrived(t, "source", (i+1)*count) {
			if _, body, _ := strings.Cut(m, "\n\n"); len(body) < 8000 || len(strings.Trim(body, "X0123456789\n")) > 0 {
				t.Fatalf("arrived %.300q ... %.300q", m, body)
			}
		}
	}
}

// testLMTP: each recipient has an answer.
func testLMTP(t *testing.T, g *gateway) {
	c, greeting := g.dial(t, "lmtp", "")
	if !strings.HasPrefix(greeting, "220 mx.example.org ") {
		t.Errorf("the greeting is %q", greeting)
	}
	c.want("EHLO client.example", "500 ")
	c.want("LHLO client.example", "250 mx.example.org")
	c.want("MAIL FROM:<>", "250 ")
	for _, to := range []string{"swakslmtp", "refused", "later"} {
		c.want("RCPT TO:<"+to+"@example.org>", "250 ")
	}
	c.data("Subject: each\n\nbody\n", "250 2.0.0 ok")
	for _, want := range []string{"550 5.1.1 nobody of that name", "450 4.2.1 not now"} {
		if got := c.read(); got != want {
			t.Errorf("the next answer is %q, want %q", got, want)
		}
	}
	c.want("QUIT", "221 ")
	g.arrived(t, "swakslmtp", 2)
}
