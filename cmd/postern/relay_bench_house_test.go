package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// relayConfig is a daemon that relays. Its limits are lifted as far as those of
// the Postfix beside it.
const relayConfig = `hostname = "mx.example.org"
control = "$DIR/control"
domains = []
state = "$DIR/state"
admin.socket = "$DIR/admin.sock"
[certificate.mx]
cert = "$DIR/mx.crt"
key = "$DIR/mx.key"
[listen.mx]
address = "$AT"
chain = "inbound"
next = "queue"
relay = 'cidr(ip, "127.0.0.0/8")'
tls = "$OFFER"
messages = 0
connections = 10000
reverse_dns = false
exempt = ["127.0.0.0/8"]
[chain]
inbound = [$INBOUND]
delivery = [$DELIVERY]
[filter.dkim-sign]
keys = ["$DIR/keys"]
[queue]
remote = $REMOTE
resolver = ["127.0.0.1:1"]
[site.default]
connections = $EACH
connection_rate = "none"
message_rate = "none"
messages_per_connection = $MESSAGES
recipients_per_connection = "none"
[address.default]
connections = $EACH
[outbound]
messages = $MESSAGES
[tls.default]
level = "$LEVEL"
`

// errand is what servers are to relay, and how.
type errand struct {
	name    string
	program string // ours
	// domains have an address each. full is with filters, signatures and TLS on both
	// sides.
	domains int
	full    bool
	// remote and each are the most deliveries at a time: of all, and to one domain.
	remote, each int
	// messages is the most over one connection; ours only, 0 for no bound.
	messages int
	// secret has TLS on the way out.
	secret bool
}

// buildProgram builds the program that is measured.
func buildProgram(b testing.TB) string {
	b.Helper()
	program := filepath.Join(b.TempDir(), "postern")
	if err := command("go", "build", "-trimpath", "-ldflags", "-w", "-o", program, "."); err != nil {
		b.Fatal(err)
	}
	return program
}

// startRelay starts a daemon of ours that relays to a sink.
func startRelay(b testing.TB, dir string, e errand, sink *relaySink) (*heavy, dialer) {
	b.Helper()
	h := &heavy{dir: dir, program: e.program}
	d := dialer{address: benchAddress(b)}
	trust := h.certify(b)
	values := map[string]string{
		"DIR": dir, "AT": d.address, "REMOTE": fmt.Sprint(e.remote), "EACH": fmt.Sprint(e.each),
		"MESSAGES": fmt.Sprint(cmp.Or(e.messages, 1_000_000)),
		"OFFER":    "off", "LEVEL": "none", "INBOUND": "", "DELIVERY": "",
	}
	if e.secret {
		values["LEVEL"] = "opportunistic"
	}
	if e.full {
		d.tls = trust
		values["OFFER"], values["LEVEL"], values["INBOUND"], values["DELIVERY"] = "offer", "opportunistic", `"execban"`, `"dkim-sign"`
		if err := command(h.program, "dkim", "keygen", "client.example", "--keys", h.at("keys"), "--type", "rsa", "--selector", "s1"); err != nil {
			b.Fatal(err)
		}
	}
	var routes strings.Builder
	for i := range e.domains {
		fmt.Fprintf(&routes, "%s:%s:%s\n", domainOf(i), addressOf(i), sink.port)
	}
	config := os.Expand(relayConfig, func(name string) string { return values[name] })
	if err := errors.Join(
		os.MkdirAll(h.at("control"), 0o755), os.WriteFile(h.at("control/smtproutes"), []byte(routes.String()), 0o644),
		os.WriteFile(h.at("postern.toml"), []byte(config), 0o600),
	); err != nil {
		b.Fatal(err)
	}
	h.measured, h.stop = startServer(b, "postern", h.at("log"), exec.Command(h.program, "serve", "--config", h.at("postern.toml")))
	h.settle = func() {
		for h.metric(b, "postern_queue_messages") > 0 {
			pauseToLook()
		}
	}
	await(b, d.address)
	return h, d
}
