package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// relayMain is Postfix's configuration for relaying, behind postfixMain. Where
// there is a choice it is the faster one for Postfix, or what ours has, too: no
// lookups in the DNS, no log, no chroot, as many deliveries at a time and to a
// destination from the beginning, processes that live as long as there is work,
// connections that are kept where there is more to send over them.
const relayMain = `defer_transports =
relay_domains =
maximal_queue_lifetime = 7d
qmgr_message_active_limit = 100000
qmgr_message_recipient_limit = 100000
default_destination_concurrency_limit = $EACH
initial_destination_concurrency = $EACH
default_process_limit = $REMOTE
max_use = 10000
smtp_connection_cache_on_demand = yes
smtp_connection_cache_time_limit = 5s
smtp_tls_security_level = $LEVEL
smtpd_tls_security_level = $OFFER
smtpd_tls_cert_file = $CERT/mx.crt
smtpd_tls_key_file = $CERT/mx.key
tls_append_default_CA = no
smtpd_client_connection_count_limit = 0
smtpd_relay_restrictions = permit_mynetworks,reject
smtpd_milters = $MILTER
milter_default_action = tempfail
transport_maps = texthash:$DIR/transport
`

// relayMaster are its services, beside those that postfixMaster has.
const relayMaster = `tlsmgr unix - - n 1000? 1 tlsmgr
tlsproxy unix - - n - 0 tlsproxy
scache unix - - n - 1 scache
`

// signerConfig is OpenDKIM as a milter that signs with the key that we sign with.
const signerConfig = `Mode s
Domain client.example
Selector s1
KeyFile $CERT/keys/client.example/s1.pem
Canonicalization relaxed/relaxed
Socket inet:$PORT@127.0.0.1
Background no
Syslog no
RequireSafeKeys no
InternalHosts 127.0.0.0/8
UMask 000
`

// postfixProcesses bounds how many deliveries Postfix makes at a time, because each
// is a process, with a mebibyte or two.
const postfixProcesses = 1000

// startRelayingPostfix starts Postfix as a relay to a sink. Certificates and keys
// are in cert.
func startRelayingPostfix(b testing.TB, dir, cert string, e errand, sink *relaySink) (measured, dialer) {
	b.Helper()
	d := dialer{address: benchAddress(b)}
	values := map[string]string{
		"DIR": dir, "CERT": cert, "EACH": fmt.Sprint(e.each), "REMOTE": fmt.Sprint(min(e.remote, postfixProcesses)),
		"DEFER": d.address, "HOLD": benchAddress(b), "OFFER": "none", "LEVEL": "none",
	}
	var signer *os.Process
	if e.full {
		values["OFFER"], values["LEVEL"] = "may", "may"
		signer = startSigner(b, dir, values)
	}
	var transports strings.Builder
	for i := range e.domains {
		fmt.Fprintf(&transports, "%s smtp:[%s]:%s\n", domainOf(i), addressOf(i), sink.port)
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "transport"), []byte(transports.String()), 0o644)); err != nil {
		b.Fatal(err)
	}
	m := launchPostfix(b, dir, postfixMain+relayMain, postfixMaster+relayMaster, values)
	await(b, d.address)
	p := &postfix{measured: m, queue: filepath.Join(dir, "queue")}
	m.settle = p.drain
	m.beside = signer
	return m, d
}

// startSigner starts OpenDKIM and puts where it listens into values.
func startSigner(b testing.TB, dir string, values map[string]string) *os.Process {
	b.Helper()
	at := benchAddress(b)
	host, port, _ := strings.Cut(at, ":")
	values["PORT"] = port
	values["MILTER"] = "inet:" + host + ":" + port
	file := filepath.Join(dir, "opendkim.conf")
	text := strings.ReplaceAll(os.Expand(signerConfig, func(n string) string { return values[n] }), "@127.0.0.1", "@"+host)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
		b.Fatal(err)
	}
	s, _ := startServer(b, "opendkim", filepath.Join(dir, "opendkim.log"), exec.Command("opendkim", "-f", "-x", file))
	await(b, at)
	return s.process
}
