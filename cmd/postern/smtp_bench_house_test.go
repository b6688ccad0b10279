package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// heavyConfig is the configuration of daemons under load. Nothing is delivered
// meanwhile.
const heavyConfig = `hostname = "mx.example.org"
control = ""
domains = ["example.org"]
state = "$DIR/state"
admin.socket = "$DIR/admin.sock"
[certificate.mx]
cert = "$DIR/mx.crt"
key = "$DIR/mx.key"
[listen.discard]
address = "$DISCARD"
chain = "none"
next = "discard"
tls = "off"
messages = 0
connections = 10000
reverse_dns = false
exempt = ["127.0.0.0/8"]
[listen.queue]
address = "$QUEUE"
chain = "none"
next = "queue"
tls = "off"
messages = 0
connections = 10000
reverse_dns = false
exempt = ["127.0.0.0/8"]
[listen.chain]
address = "$CHAIN"
chain = "inbound"
next = "queue"
tls = "offer"
messages = 0
connections = 10000
reverse_dns = false
exempt = ["127.0.0.0/8"]
[chain]
none = []
inbound = ["header", "tap"]
[filter.header]
rule = [{op = "add", name = "X-Checked", value = "yes"}]
[filter.tap]
rules = ["T:^boss@example\\.org$:archive@example.org", "F:@sales\\.example\\.org$:archive@example.org"]
[queue]
remote = 0
local = 0
resolver = ["127.0.0.1:1"]
`

// heavy is the daemon under load: the program itself, as a process.
type heavy struct {
	measured
	dir                   string
	program               string
	stop                  func()
	discard, queue, chain dialer
}

// startHeavy builds the program and starts the daemon in a directory of its own.
func startHeavy(b testing.TB, dir string) *heavy {
	b.Helper()
	h := &heavy{dir: dir, program: filepath.Join(dir, "postern")}
	if err := command("go", "build", "-trimpath", "-ldflags", "-w", "-o", h.program, "."); err != nil {
		b.Fatal(err)
	}
	h.discard.address, h.queue.address, h.chain.address = benchAddress(b), benchAddress(b), benchAddress(b)
	h.chain.tls = h.certify(b)
	values := map[string]string{"DIR": dir, "DISCARD": h.discard.address, "QUEUE": h.queue.address, "CHAIN": h.chain.address}
	config := os.Expand(heavyConfig, func(name string) string { return values[name] })
	if err := os.WriteFile(h.at("postern.toml"), []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	h.measured, h.stop = startServer(b, "postern", h.at("log"), exec.Command(h.program, "serve", "--config", h.at("postern.toml")))
	for _, d := range []dialer{h.discard, h.queue, h.chain} {
		await(b, d.address)
	}
	return h
}

func (h *heavy) at(name string) string { return filepath.Join(h.dir, name) }

// certify makes the certificate that clients trust.
func (h *heavy) certify(b testing.TB) *tls.Config {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"mx.example.org"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 1, 0)}
	cert, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		b.Fatal(err)
	}
	pool := x509.NewCertPool()
	for name, block := range map[string]pem.Block{"mx.crt": {Type: "CERTIFICATE", Bytes: cert}, "mx.key": {Type: "PRIVATE KEY", Bytes: private}} {
		text := pem.EncodeToMemory(&block)
		pool.AppendCertsFromPEM(text)
		if err := os.WriteFile(h.at(name), text, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return &tls.Config{RootCAs: pool, ServerName: "mx.example.org"}
}

// said is what a command of the operator's prints.
func (h *heavy) said(b testing.TB, args ...string) []byte {
	b.Helper()
	out, err := exec.Command(h.program, append(args, "--config", h.at("postern.toml"))...).Output()
	if err != nil {
		b.Fatalf("postern %v: %v", args, err)
	}
	return out
}

// metric is a number that the daemon counts.
func (h *heavy) metric(b testing.TB, name string) int64 {
	b.Helper()
	out := h.said(b, "metrics")
	found := regexp.MustCompile(`(?m)^` + name + ` ([0-9.e+]+)$`).FindSubmatch(out)
	if found == nil {
		b.Fatalf("there is no metric %s:\n%s", name, out)
	}
	n, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return int64(n)
}

// resident is the daemon's memory in bytes, as the system counts it.
func (h *heavy) resident(b testing.TB) int64 { return h.status(b, "VmRSS") << 10 }

// status is a number in the process's status.
func (h *heavy) status(b testing.TB, name string) int64 {
	b.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(h.process.Pid), "status"))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, ok := bytes.Cut(text, []byte("\n"+name+":"))
	f := bytes.Fields(rest)
	if !ok || len(f) == 0 {
		b.Fatalf("no %s in the status of the daemon", name)
	}
	n, err := strconv.ParseInt(string(f[0]), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}
