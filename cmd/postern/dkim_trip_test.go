package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/foxcpp/go-mockdns"

	"github.com/postern-mta/postern/filters/dkim"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

// tripConfig is a gateway that looks at what comes, marks and copies it, and
// signs what leaves and is ours. Names at far.example are at a server that can
// carry everything, those at old.example at one that knows no extension.
const tripConfig = `hostname = "mx.example.org"
control = ""
domains = ["example.org"]
trusted = ["$UID"]
state = "$RUN/state"
admin.socket = "$RUN/admin.sock"
log.format = "json"
[queue]
low_space = "1 MB"
resolver = ["$DNS"]
[listen.mx]
address = "$AT_MX"
chain = "inbound"
next = "queue"
relay = 'cidr(ip, "127.0.0.0/8")'
[listen.queue]
socket = "$RUN/queue.sock"
chain = "inbound"
local = "inbound"
next = "queue"
[chain]
inbound = ["tap", "mark", "dkim-verify"]
delivery = ["dkim-sign"]
[filter.tap]
rules = ["T:^tapped:archive@far.example"]
[filter.mark]
kind = "header"
rule = [{op = "add", name = "X-Marked", value = "on its way"}]
[filter.dkim-sign]
keys = ["$RUN/keys"]
[route]
"far.example" = "$FAR"
"old.example" = "$OLD"
`

// tripPeers are where the scripts are that drive dkimpy and Mail::DKIM.
const tripPeers = "../../filters/dkim/testdata/peers"

// tripShapes are what signatures are fragile about, without From and To.
func tripShapes() map[string]string {
	return map[string]string{
		"plain":       "Subject: hello\nDate: Mon, 2 Nov 2026 10:00:00 +0000\n\nHello.\n",
		"folded":      "Subject: hello\n  folded\n\tand again \nReferences: <1@example.com>\n <2@example.com>\n\nHello.  \n two   words\t\n",
		"eight bits":  "Subject: Gr\xc3\xbc\xc3\x9fe\n\nGr\xc3\xbc\xc3\x9fe \xe4\xf6\xfc \xff\n",
		"empty body":  "Subject: empty\n\n",
		"blank lines": "Subject: blank\n\nHello.\n\n \n\n\n",
		"dots":        "Subject: dots\n\n.\n..\n. \n.x\nFrom here\n>From there\n",
		"long lines":  "Subject: long " + strings.Repeat("word ", 150) + "\n\n" + strings.Repeat("x", 5000) + "\n" + strings.Repeat("y ", 499) + "\n",
		"10 MiB":      "Subject: large\n\n" + strings.Repeat(strings.Repeat("0123456789abcde ", 5)+"\n", 10<<20/81) + "\n\n",
	}
}

// trip is a gateway between those who sign and those who verify.
type trip struct {
	*gateway
	shims    map[string]string
	far, old *smtptest.Server
	dir      string // of messages, keys and records
	zones    map[string]mockdns.Zone
}

func newTrip(t *testing.T) *trip {
	t.Helper()
	p := &trip{gateway: newGateway(t), shims: buildShims(t, t.TempDir()), dir: t.TempDir(), zones: map[string]mockdns.Zone{}}
	var err error
	if p.far, err = smtptest.Listen("127.0.0.1:0", smtptest.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.far.Close() })
	if p.old, err = smtptest.Listen("127.0.0.1:0", smtptest.Options{Extensions: []string{}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.old.Close() })
	p.key(t, "example.org", "rsa", "rsa2048")
	p.key(t, "example.org", "ed", "ed25519")
	p.key(t, "example.com", "rsa", "rsa4096")
	server, err := mockdns.NewServer(p.zones, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	p.env["DNS"], p.env["FAR"], p.env["OLD"] = server.LocalAddr().String(), p.far.Addr().String(), p.old.Addr().String()
	p.start(t, tripConfig)
	return p
}

// key publishes one of dkim's test keys. Those of example.org are the
// gateway's, that of example.com is its peers'.
func (p *trip) key(t *testing.T, domain, selector, name string) {
	t.Helper()
	content, err := os.ReadFile("../../filters/dkim/testdata/keys/" + name + ".pem")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := dkim.ParseKey(content)
	if err != nil {
		t.Fatal(err)
	}
	if domain == "example.org" {
		path := p.write(t, filepath.Join("keys", domain, selector+".pem"), string(content))
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	} else {
		p.put(t, "peer.pem", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(signer.(*rsa.PrivateKey))})))
	}
	p.publish(t, selector+"._domainkey."+domain, signer.Public())
}

func (p *trip) publish(t *testing.T, name string, key crypto.PublicKey) {
	t.Helper()
	text, err := dkim.Record(key)
	if err != nil {
		t.Fatal(err)
	}
	p.zones[name+"."] = mockdns.Zone{TXT: []string{text}}
	f, err := os.OpenFile(filepath.Join(p.dir, "dns"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s %s\n", name, text); err != nil {
		t.Fatal(err)
	}
}

// put writes a file for peers.
func (p *trip) put(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// peer runs a peer's program and returns what it prints and says.
func peer(t *testing.T, name string, args ...string) (printed, said string) {
	t.Helper()
	c := exec.Command(name, args...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		t.Fatalf("%s: %v (is it installed? make deps does)\n%s%s", name, err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String(), stderr.String()
}

// signedByPeer are the shapes, signed by one of those who sign for example.com.
func (p *trip) signedByPeer(t *testing.T, signer, form string, shapes []string) []string {
	t.Helper()
	header, body, _ := strings.Cut(form, "/")
	var paths []string
	for i, shape := range shapes {
		paths = append(paths, p.put(t, fmt.Sprintf("s%02d", i), "From: Joe <joe@example.com>\nTo: sue@example.net\n"+tripShapes()[shape]))
	}
	key := filepath.Join(p.dir, "peer.pem")
	var fields [][]string
	switch signer {
	case "dkimpy":
		peer(t, "/usr/bin/python3", append([]string{tripPeers + "/dkimpy.py", "sign", key, "rsa-sha256", header, body, "rsa", "example.com"}, paths...)...)
	case "Mail::DKIM":
		peer(t, "perl", append([]string{tripPeers + "/maildkim.pl", "sign", key, header, body, "rsa", "example.com"}, paths...)...)
	default:
		conf := p.put(t, "sign.conf", "Mode s\nRequireSafeKeys no\nDomain example.com\nSelector rsa\nKeyFile "+key+"\nCanonicalization "+form+"\nDiagnostics yes\n")
		printed, _ := peer(t, "opendkim", "-x", conf, "-v", "-v", "-t", strings.Join(paths, ","))
		fields = regexp.MustCompile(`(?s)hname='DKIM-Signature' hvalue='(.*?)'\n`).FindAllStringSubmatch(printed, -1)
		if len(fields) != len(paths) {
			t.Fatalf("opendkim signs %d of %d", len(fields), len(paths))
		}
	}
	var all []string
	for i, path := range paths {
		if fields != nil {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, "DKIM-Signature: "+fields[i][1]+"\n"+string(b))
			continue
		}
		b, err := os.ReadFile(path + ".signed")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(b))
	}
	return all
}

// entrances are the ways in.
func (p *trip) entrances(t *testing.T) map[string]func(from, to, text string) {
	t.Helper()
	byShim := func(shim string) func(from, to, text string) {
		return func(from, to, text string) {
			t.Helper()
			c := exec.Command("inject", "-shim", p.shims[shim], "-from", from, "-to", to, p.put(t, "in", text))
			c.Env = append(os.Environ(), "POSTERN_SOCKET="+filepath.Join(p.gateway.dir, "queue.sock"), "TCPREMOTEIP=127.0.0.1", "RELAYCLIENT=")
			if out, err := c.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "exit 0\n") {
				t.Fatalf("%v: %s", err, out)
			}
		}
	}
	session := p.hello(t, "mx", "")
	begin := func(from, to string) {
		t.Helper()
		session.want("MAIL FROM:<"+from+"> BODY=8BITMIME", "250 ")
		session.want("RCPT TO:<"+to+">", "250 ")
	}
	return map[string]func(from, to, text string){
		"the C shim":  byShim("c"),
		"the Go shim": byShim("go"),
		"DATA": func(from, to, text string) {
			t.Helper()
			begin(from, to)
			session.data(text, "250 ")
		},
		"BDAT": func(from, to, text string) {
			t.Helper()
			begin(from, to)
			wire := strings.ReplaceAll(text, "\n", "\r\n")
			first := len(wire) / 3
			fmt.Fprintf(session.W, "BDAT %d\r\n%s", first, wire[:first])
			session.W.Flush() //nolint:errcheck // the answer tells
			if got := session.read(); !strings.HasPrefix(got, "250 ") {
				t.Errorf("the first piece is answered %q", got)
			}
			fmt.Fprintf(session.W, "BDAT %d LAST\r\n%s", len(wire)-first, wire[first:])
			session.W.Flush() //nolint:errcheck // the answer tells
			if got := session.read(); !strings.HasPrefix(got, "250 ") {
				t.Errorf("the last piece is answered %q", got)
			}
		},
	}
}

// arrivedAt waits until a server has so many messages, and returns them by
// recipient.
func (p *trip) arrivedAt(t *testing.T, s *smtptest.Server, count int) map[string]string {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); len(s.Messages()) < count; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			log, _ := os.ReadFile(filepath.Join(p.gateway.dir, "log"))
			t.Fatalf("%d of %d messages arrived\n%.20000s", len(s.Messages()), count, log)
		}
	}
	all := map[string]string{}
	for _, m := range s.Messages() {
		to := m.Addresses()[0]
		for all[to] != "" {
			to += "+" // the archive has many
		}
		all[to] = string(m.Content)
	}
	return all
}

// verified is what four verifiers say of messages: of each, the results of its
// signatures.
func (p *trip) verified(t *testing.T, all map[string]string) map[string]map[string][]string {
	t.Helper()
	names := map[string]string{} // by file
	var paths []string
	got := map[string]map[string][]string{"postern": {}, "dkimpy": {}, "Mail::DKIM": {}, "OpenDKIM": {}}
	v := &dkim.Verifier{Look: (&mockdns.Resolver{Zones: p.zones}).LookupTXT}
	for name, text := range all {
		path := p.put(t, fmt.Sprintf("r%04d", len(paths)), text)
		names[path] = name
		paths = append(paths, path)
		results, _, err := v.Verify(context.Background(), message.FromString(text))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			got["postern"][name] = append(got["postern"][name], r.Result)
		}
	}
	slices.Sort(paths)
	dns := filepath.Join(p.dir, "dns")
	byPython, _ := peer(t, "/usr/bin/python3", append([]string{tripPeers + "/dkimpy.py", "verify", dns}, paths...)...)
	byPerl, _ := peer(t, "perl", append([]string{tripPeers + "/maildkim.pl", "verify", dns}, paths...)...)
	for verifier, printed := range map[string]string{"dkimpy": byPython, "Mail::DKIM": byPerl} {
		for line := range strings.Lines(printed) {
			words := strings.Fields(line)
			got[verifier][names[words[0]]] = words[1:]
		}
	}
	conf := p.put(t, "verify.conf", "Mode v\nTestDNSData file:"+dns+"\n")
	printed, said := peer(t, "opendkim", "-x", conf, "-t", strings.Join(paths, ","))
	for line := range strings.Lines(printed + said) {
		words := strings.SplitN(strings.TrimSpace(line), ": ", 3)
		if len(words) != 3 {
			t.Fatalf("%q", line)
		}
		result := words[2]
		if strings.HasPrefix(result, "verification (") && strings.HasSuffix(result, ") succeeded") {
			result = "pass"
		}
		got["OpenDKIM"][names[words[1]]] = append(got["OpenDKIM"][names[words[1]]], result)
	}
	return got
}

// check has each of the verifiers say what is wanted of each message.
func (p *trip) check(t *testing.T, all map[string]string, what map[string]string, want map[string][]string) {
	t.Helper()
	for verifier, got := range p.verified(t, all) {
		for name, text := range all {
			if !slices.Equal(got[name], want[verifier]) {
				t.Errorf("%s, %s: %s says %v, want %v\n%.3000q", name, what[name], verifier, got[name], want[verifier], text)
			}
		}
	}
}

// TestDKIMPassesThrough has others' signed mail enter by every way, go through
// chain, queue and SMTP, and be verified at the receiver by us and by others: no
// byte of ours breaks anyone's signature.
func TestDKIMPassesThrough(t *testing.T) {
	t.Parallel()
	p := newTrip(t)
	what, sent := map[string]string{}, map[string]string{}
	tapped := 0
	for _, signer := range []string{"dkimpy", "Mail::DKIM", "OpenDKIM"} {
		for _, form := range []string{"simple/simple", "relaxed/relaxed"} {
			shapes := []string{"plain", "folded", "eight bits", "empty body", "blank lines", "dots", "long lines"}
			if signer == "OpenDKIM" && form == "relaxed/relaxed" {
				shapes = append(shapes, "10 MiB")
			}
			for i, text := range p.signedByPeer(t, signer, form, shapes) {
				for entrance, in := range p.entrances(t) {
					to := fmt.Sprintf("m%d@far.example", len(sent))
					if shapes[i] == "folded" {
						to = "tapped-" + to
						tapped++
					}
					in("joe@example.com", to, text)
					sent[to], what[to] = text, fmt.Sprintf("%s by %s, %s, through %s", shapes[i], signer, form, entrance)
				}
			}
		}
	}
	all := p.arrivedAt(t, p.far, len(sent)+tapped)
	if n := len(all); n != len(sent)+tapped {
		t.Errorf("%d messages arrived, %d were sent and %d copied", n, len(sent), tapped)
	}
	above := regexp.MustCompile(`^Authentication-Results: mx\.example\.org;\n\tdkim=pass header\.d=example\.com [^;]*?\nX-Marked: on its way\n(?s:.*)$`)
	for to, text := range sent {
		got := all[to]
		if !strings.HasSuffix(got, text) || !above.MatchString(strings.TrimSuffix(got, text)) {
			t.Errorf("%s, %s: sent %.1500q\narrived %.2500q", to, what[to], text, got)
		}
	}
	p.check(t, all, what, map[string][]string{"postern": {"pass"}, "dkimpy": {"pass"}, "Mail::DKIM": {"pass"}, "OpenDKIM": {"pass"}})
}

// TestDKIMSignsWhatLeaves has our own mail enter by every way and leave for a
// server that can carry everything and one that knows no extension: what arrives
// is what was signed, whoever verifies it.
func TestDKIMSignsWhatLeaves(t *testing.T) {
	t.Parallel()
	p := newTrip(t)
	what := map[string]string{}
	far, old := 0, 0
	for shape, text := range tripShapes() {
		for entrance, in := range p.entrances(t) {
			if shape == "10 MiB" && entrance != "the C shim" && entrance != "BDAT" {
				continue
			}
			for _, domain := range []string{"far.example", "old.example"} {
				if domain == "old.example" {
					if old++; len(text) > 1<<20 {
						old--
						continue
					}
				} else {
					far++
				}
				to := fmt.Sprintf("m%d@%s", len(what), domain)
				in("joe@example.org", to, "From: Joe <joe@example.org>\nTo: sue@example.net\n"+text)
				what[to] = shape + " through " + entrance
			}
		}
	}
	for s, count := range map[*smtptest.Server]int{p.far: far, p.old: old} {
		all := p.arrivedAt(t, s, count)
		for to, text := range all {
			if _, is := what[to]; !is || !strings.HasPrefix(text, "DKIM-Signature: ") {
				t.Errorf("%s: %.1000q", to, text)
			}
			shape, _, _ := strings.Cut(what[to], " through ")
			want := message.FromString(tripShapes()[shape])
			if s == p.old { // it takes 7 bits only
				var err error
				if want, err = want.ToSevenBit(nil); err != nil || want.Body().EightBit() {
					t.Fatal(err)
				}
			}
			if !strings.HasSuffix(text, string(want.Bytes())) {
				t.Errorf("%s, %s was changed: %.2000q", to, what[to], text)
			}
		}
		// Debian's Mail::DKIM has no Ed25519, and opendkim tells of one signature.
		p.check(t, all, what, map[string][]string{"postern": {"pass", "pass"}, "dkimpy": {"pass", "pass"}, "Mail::DKIM": {"pass", "invalid"}, "OpenDKIM": {"pass"}})
	}
}
