package config

import (
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/rules"
)

// SMTP are the keys of a table [listen.NAME] with an address.
type SMTP struct {
	Address     string   `toml:"address" doc:"host:port or :port to listen on: this makes the entrance an SMTP server"`
	Service     string   `toml:"service" oneof:"mx|submission|lmtp" doc:"mx takes mail from the Internet; submission from our own users, who must log in, and mends what their programs leave out; lmtp from a server in front of us, and answers for each recipient" unset:"submission on the ports 587 and 465, else mx"`
	Greeting    string   `toml:"greeting" doc:"the text of the greeting, which begins with our name" unset:"control/smtpgreeting, else hostname"`
	Timeout     duration `toml:"timeout" doc:"the longest wait for a client's next bytes" unset:"control/timeoutsmtpd, else 5m"`
	Transaction duration `toml:"transaction" doc:"the longest that one message may take to arrive"`
	GreetPause  duration `toml:"greet_pause" doc:"how long the greeting is held back; a client that talks before it is refused. Not for the exempt"`
	Tarpit      duration `toml:"tarpit" doc:"the pause before each answer to a client that has made many errors"`
	Errors      int      `toml:"errors" min:"1" doc:"how many commands may fail before the connection is closed"`
	Refused     int      `toml:"refused" min:"1" doc:"how many recipients may be refused for good, as unknown ones are, before the connection is closed"`
	Late        bool     `toml:"late" doc:"hold the refusal of a client, its name or a sender back until it names recipients, so that the log has them"`
	MaxRcpts    int      `toml:"recipients" min:"1" doc:"the most recipients of one message; more are put off with 452 and come with another"`
	MaxMails    int      `toml:"messages" min:"0" doc:"the most messages of one session; 0 is no limit"`
	RequireTLS  bool     `toml:"requiretls" doc:"offer REQUIRETLS (RFC 8689) to clients under TLS; a message that asks for it is refused by an exit that cannot give it"`
	ReverseDNS  *bool    `toml:"reverse_dns" doc:"look up the client's name, and confirm it" unset:"true for mx"`
	Transcript  string   `toml:"transcript" doc:"a rule, like cidr(ip, \"192.0.2.0/24\"); of sessions that match, what is said is written to a file in the folder transcripts of state, without passwords and contents"`

	TLS          string   `toml:"tls" oneof:"off|offer|require|implicit" doc:"off: none; offer: STARTTLS; require: STARTTLS before any mail; implicit: TLS from the first byte" unset:"implicit on port 465, require for submission, offer elsewhere; off where there is no certificate"`
	TLSMin       string   `toml:"tls_min" oneof:"1.0|1.1|1.2|1.3" doc:"the lowest version of TLS"`
	TLSCiphers   []string `toml:"tls_ciphers" doc:"the cipher suites of TLS 1.2 and before, by their IANA names; those of TLS 1.3 are fixed" unset:"those that Go holds secure"`
	Certificates []string `toml:"certificates" doc:"the names of the [certificate.NAME] tables to use, the first for clients that name no host of ours" unset:"all, and those of [acme]"`
	TLSClient    bool     `toml:"tls_client" doc:"ask clients for a certificate, for the log and for rules; none is required"`

	Auth      []string `toml:"auth" doc:"the names of the [auth.NAME] tables that users log in by, in order" unset:"all for submission, none elsewhere"`
	AuthClear bool     `toml:"auth_clear" doc:"allow logins without TLS: passwords can be read on the way"`

	Relay    string   `toml:"relay" doc:"a rule about the session; clients that it matches may send anywhere, like cidr(ip, \"10.0.0.0/8\")"`
	TCPRules string   `toml:"tcprules" path:"file" doc:"rules of tcpserver, as text or compiled (.cdb): whom they deny is refused, whom they give RELAYCLIENT may relay, and what else they assign is in the session's environment"`
	Exempt   []Prefix `toml:"exempt" doc:"networks that the limits of connections, greet_pause and tarpit are not for"`
	Proxy    []Prefix `toml:"proxy" doc:"networks of proxies that must begin with a PROXY header (version 1 or 2), which is believed"`
	XClient  []Prefix `toml:"xclient" doc:"networks that may say XCLIENT"`

	Connections int `toml:"connections" min:"1" doc:"the most connections to this entrance at a time"`
	PerAddress  int `toml:"per_address" min:"0" doc:"the most connections at a time from one address (IPv6: one /64); 0 is no limit"`
	PerNetwork  int `toml:"per_network" min:"0" doc:"the most connections at a time from one /24 (IPv6: one /48); 0 is no limit"`
	Rate        int `toml:"rate" min:"0" doc:"the most new connections a minute from one address; 0 is no limit"`

	// relay, transcript are the rules, compiled; nil if there is none.
	relay, transcript *rules.Rule
}

// duration is short for the declarations above.
type duration = time.Duration

func prepareSMTP() SMTP {
	return SMTP{
		Timeout: 5 * time.Minute, Transaction: time.Hour, Tarpit: 2 * time.Second, Errors: 20, Refused: 50, MaxRcpts: 1000, MaxMails: 1000,
		TLSMin: "1.2", Connections: 2000, PerAddress: 50, PerNetwork: 200, Rate: 300,
	}
}

// RelayRule is Relay, compiled; nil if there is none.
func (s *SMTP) RelayRule() *rules.Rule { return s.relay }

// TranscriptRule is Transcript, compiled; nil if there is none.
func (s *SMTP) TranscriptRule() *rules.Rule { return s.transcript }

// IsSMTP reports whether the entrance is an SMTP server.
func (l *Listen) IsSMTP() bool { return l.Address != "" }

// shimKeys are the keys of a table [listen.NAME] that are for the shim alone.
var shimKeys = []string{"socket", "socket_mode", "local", "next_mode", "dialect", "slow", "program", "ours", "argv", "mark"}

// applies tells the keys of the two sorts of entrances apart.
func (l Listen) applies(key string) bool {
	if l.IsSMTP() {
		return !slices.Contains(shimKeys, key)
	}
	if l.IsRemote() && slices.Contains(queueKeys, key) || !l.IsRemote() && slices.Contains(remoteKeys, key) {
		return false
	}
	return !slices.ContainsFunc(fieldsOf(reflect.TypeFor[SMTP]()), func(f field) bool { return f.name == key })
}

// Plain is the table without what was made of it, so that two of them can be
// compared.
func (l Listen) Plain() Listen {
	l.relay, l.transcript, l.ours = nil, nil, nil
	return l
}

// Certificate is a table [certificate.NAME].
type Certificate struct {
	Cert string `toml:"cert" path:"file" doc:"the certificate and its chain, PEM"`
	Key  string `toml:"key" path:"file" doc:"its private key, PEM; read before the daemon gives up root"`
}

// ACME is the table [acme].
type ACME struct {
	Names     []string `toml:"names" doc:"the host names to get certificates for" unset:"none: no certificates are fetched"`
	Email     string   `toml:"email" doc:"the address that the authority may write to" unset:"postmaster and hostname"`
	Directory string   `toml:"directory" doc:"the URL of the authority's directory"`
	Agree     bool     `toml:"agree" doc:"that you agree to the authority's terms, without which there is no certificate"`
	Address   string   `toml:"address" doc:"where the authority's questions are answered (http-01); it asks port 80"`
	CA        string   `toml:"ca" path:"file" doc:"the certificates that the authority's own server is checked by, PEM" unset:"the system's"`
	Fallback  string   `toml:"fallback" oneof:"none|self-signed" doc:"what clients see until there is a certificate: no TLS, or one that nobody vouches for"`
}

// Auth is a table [auth.NAME].
type Auth struct {
	Kind    string        `toml:"kind" oneof:"file|checkpassword|dovecot" doc:"file: a password file of ours, see postern password; checkpassword: a program; dovecot: Dovecot's authentication socket" unset:"the table's name"`
	File    string        `toml:"file" path:"file" doc:"the password file"`
	Program []string      `toml:"program" doc:"the checkpassword program with its arguments, like [\"/bin/checkpassword\", \"/bin/true\"]"`
	Root    bool          `toml:"root" doc:"run the program as root, by a small helper that is started before the daemon gives up root"`
	Socket  string        `toml:"socket" path:"file" doc:"Dovecot's socket, like /var/run/dovecot/auth-client"`
	Timeout time.Duration `toml:"timeout" doc:"the longest that one login may take"`
}

func (a *Auth) prepare() { *a = Auth{Timeout: 30 * time.Second} }

// Prefix is a network, or one address.
type Prefix struct{ netip.Prefix }

func (Prefix) wants() string { return `a network or an address, like "192.0.2.0/24"` }

// String is the network as it would be written.
func (p Prefix) String() string { return strconv.Quote(p.Prefix.String()) }

// UnmarshalText reads ADDRESS or ADDRESS/BITS.
func (p *Prefix) UnmarshalText(text []byte) error {
	if a, err := netip.ParseAddr(string(text)); err == nil && a.Zone() == "" {
		p.Prefix = netip.PrefixFrom(a, a.BitLen())
		return nil
	}
	got, err := netip.ParsePrefix(string(text))
	if err != nil {
		return errWantsPrefix
	}
	p.Prefix = got.Masked()
	return nil
}

var errWantsPrefix = wantsError(`write a network or an address, like "192.0.2.0/24"`)

type wantsError string

func (e wantsError) Error() string { return string(e) }

// Prefixes are the networks of a list.
func Prefixes(all []Prefix) []netip.Prefix {
	out := make([]netip.Prefix, len(all))
	for i, p := range all {
		out[i] = p.Prefix
	}
	return out
}

// checkAddress completes and checks an SMTP entrance.
func (l *loader) checkAddress(listen *Listen, path string) {
	host, port, err := net.SplitHostPort(listen.Address)
	n, errPort := strconv.ParseUint(port, 10, 16)
	if err != nil || errPort != nil {
		l.add(l.at(path+".address"), `%s.address = %s: write host:port or :port, like ":25"; an IPv6 address in brackets`, path, show(listen.Address))
		return
	}
	if host != "" && !validHost(host) && net.ParseIP(host) == nil {
		l.add(l.at(path+".address"), "%s.address: %s is neither an address nor a host name", path, show(host))
	}
	for _, key := range shimKeys {
		if l.written(path + "." + key) {
			l.add(l.at(path+"."+key), "%s.%s is for the shims, and [%s] is an SMTP server: remove it, or make two entrances", path, key, path)
		}
	}
	l.defaultService(listen, path, uint16(n))
	l.defaultTLS(listen, path, uint16(n))
	l.defaultAuth(listen, path)
	l.checkSMTPChain(listen, path)
	listen.relay = l.sessionRule(path+".relay", listen.SMTP.Relay)
	listen.transcript = l.sessionRule(path+".transcript", listen.Transcript)
	l.checkSMTPNext(listen, path)
	if listen.Service != "submission" && len(l.Domains) == 0 && l.MoreHosts == "" && listen.SMTP.Relay == "" && listen.TCPRules == "" && len(listen.Auth) == 0 {
		l.warn(l.at(path), `[%s] takes mail for nobody: write domains = ["example.org"], or the domains into control/rcpthosts`, path)
	}
}

func (l *loader) defaultService(listen *Listen, path string, port uint16) {
	if listen.Service == "" {
		listen.Service = "mx"
		if port == 587 || port == 465 {
			listen.Service = "submission"
		}
	}
	if line, ok := l.Files.First("smtpgreeting"); ok && !l.written(path+".greeting") {
		listen.Greeting = line.Text
		l.from[path+".greeting"] = l.where(l.Files.at("smtpgreeting", line.No))
	}
	if listen.Greeting == "" {
		listen.Greeting = l.Hostname
	}
	if len(listen.Greeting) > 400 || strings.ContainsFunc(listen.Greeting, func(r rune) bool { return r < ' ' || r > '~' }) {
		l.add(l.at(path+".greeting"), "%s.greeting: at most 400 printable ASCII characters", path)
	}
	l.controlInt(path+".timeout", "timeoutsmtpd", func(n int) { listen.Timeout = time.Duration(n) * time.Second })
	for key, d := range map[string]time.Duration{"timeout": listen.Timeout, "transaction": listen.Transaction} {
		if d <= 0 && !l.bad[path+"."+key] {
			l.add(l.at(path+"."+key), "%s.%s must be longer than 0", path, key)
		}
	}
	if listen.ReverseDNS == nil {
		yes := listen.Service == "mx"
		listen.ReverseDNS = &yes
	}
	if !l.written(path + ".lines") {
		listen.Lines = message.Refuse
	}
	if listen.Lines == message.Keep {
		l.add(l.at(path+".lines"), `%s.lines = "keep": an SMTP server refuses or repairs bare carriage returns and NUL bytes; keep would let one message pass for two`, path)
	}
}

// hasCertificates reports whether TLS can be offered at all.
func (l *loader) hasCertificates() bool { return len(l.Certificate) > 0 || len(l.ACME.Names) > 0 }

func (l *loader) defaultTLS(listen *Listen, path string, port uint16) {
	if listen.TLS == "" {
		switch {
		case !l.hasCertificates():
			listen.TLS = "off"
		case port == 465:
			listen.TLS = "implicit"
		case listen.Service == "submission":
			listen.TLS = "require"
		default:
			listen.TLS = "offer"
		}
	}
	if listen.TLS != "off" && !l.hasCertificates() {
		l.add(l.at(path+".tls"), "%s.tls = %s needs a certificate: write a [certificate.NAME] table with cert and key, or [acme] with names", path, show(listen.TLS))
	}
	if !l.written(path + ".certificates") {
		listen.Certificates = sorted(l.Certificate)
	}
	for i, name := range listen.Certificates {
		if _, ok := l.Certificate[name]; !ok {
			l.suggest(l.atItem(path+".certificates", i), rules.Suggest(name, sorted(l.Certificate)), "%s.certificates: there is no table [certificate.%s]", path, clean(name))
		}
	}
}

func (l *loader) defaultAuth(listen *Listen, path string) {
	if listen.Service == "submission" && !l.written(path+".auth") {
		listen.Auth = sorted(l.Config.Auth)
		if len(listen.Auth) == 0 && listen.SMTP.Relay == "" && listen.TCPRules == "" {
			l.warn(l.at(path), "[%s] takes submissions and nobody can log in: write a table [auth.file] with file = PATH, see postern password", path)
		}
	}
	for i, name := range listen.Auth {
		if _, ok := l.Config.Auth[name]; !ok {
			l.suggest(l.atItem(path+".auth", i), rules.Suggest(name, sorted(l.Config.Auth)), "%s.auth: there is no table [auth.%s]", path, clean(name))
		}
	}
	if len(listen.Auth) > 0 && listen.TLS == "off" && !listen.AuthClear {
		l.warn(l.at(path), "[%s] has no TLS, so nobody can log in: give it a certificate, or set auth_clear = true if the network is yours alone", path)
	}
}

func (l *loader) checkSMTPChain(listen *Listen, path string) {
	if listen.Chain == "" {
		listen.Chain = InboundChain
	}
	l.checkChainName(path+".chain", listen.Chain)
	listen.Local = listen.Chain
}

func (l *loader) checkSMTPNext(listen *Listen, path string) {
	key := path + ".next"
	switch {
	case l.bad[key]:
	case listen.Next == "":
		listen.Next = NextQueue
	case listen.Next == NextDiscard:
		l.warn(l.at(key), "%s = %q: mail is answered with success and thrown away", key, NextDiscard)
	case listen.Next == NextQueue:
	default:
		l.add(l.at(key), "%s = %s: an SMTP entrance hands its mail to our own queue: write %q", key, show(listen.Next), NextQueue)
	}
}

// sessionRule compiles a rule about a session.
func (l *loader) sessionRule(path, src string) *rules.Rule {
	if src == "" || l.bad[path] {
		return nil
	}
	rule, err := rules.Compile(pipeline.Facts(), src)
	if err != nil {
		l.add(l.at(path), "%s: %v", path, err)
		return nil
	}
	if stage := pipeline.Stage(rule.Since()); stage > pipeline.AtConnect {
		l.add(l.at(path), "%s: %s asks for what is known only at the %v stage; a rule about a session can ask for what is known when it begins", path, show(src), stage)
		return nil
	}
	return rule
}

// checkCertificates looks at the tables about TLS.
func (l *loader) checkCertificates() {
	for _, name := range sorted(l.Certificate) {
		for _, key := range []struct{ name, value string }{{"cert", l.Certificate[name].Cert}, {"key", l.Certificate[name].Key}} {
			if path := "certificate." + name + "." + key.name; key.value == "" && !l.bad[path] {
				l.add(l.at(path), "%s is missing: write the path of a PEM file", path)
			}
		}
	}
	a := &l.ACME
	for i, name := range a.Names {
		if !validHost(name) || !strings.Contains(name, ".") {
			l.add(l.atItem("acme.names", i), "acme.names: %s is no host name that an authority would certify", show(name))
		}
	}
	if len(a.Names) == 0 {
		return
	}
	if a.Email == "" {
		a.Email = "postmaster@" + l.Hostname
	}
	if !a.Agree {
		l.add(l.at("acme.agree"), "acme.agree: write agree = true once you have read the terms of %s", show(a.Directory))
	}
	if !strings.HasPrefix(a.Directory, "https://") {
		l.add(l.at("acme.directory"), "acme.directory = %s: it must begin with https://", show(a.Directory))
	}
	if _, _, err := net.SplitHostPort(a.Address); err != nil {
		l.add(l.at("acme.address"), `acme.address = %s: write host:port or :port, like ":80"`, show(a.Address))
	}
}

// authNeeds are the keys that a kind of [auth.NAME] must have.
var authNeeds = map[string]string{"file": "file", "checkpassword": "program", "dovecot": "socket"}

func (l *loader) checkAuth() {
	for _, name := range sorted(l.Config.Auth) {
		a, path := l.Config.Auth[name], "auth."+name
		if a.Kind == "" {
			a.Kind = name
		}
		need, ok := authNeeds[a.Kind]
		if !ok {
			l.suggest(l.at(path), rules.Suggest(a.Kind, sorted(authNeeds)), `[%s]: write kind = "file", "checkpassword" or "dovecot"`, path)
			continue
		}
		has := map[string]bool{"file": a.File != "", "program": len(a.Program) > 0, "socket": a.Socket != ""}
		for _, key := range sorted(has) {
			switch at := l.at(path + "." + key); {
			case l.bad[path+"."+key]:
			case key == need && !has[key]:
				l.add(at, "%s.%s is missing: %s needs it", path, key, a.Kind)
			case key != need && has[key]:
				l.add(at, "%s.%s is not for %s", path, key, a.Kind)
			}
		}
		if len(a.Program) > 0 {
			if !filepath.IsAbs(a.Program[0]) {
				l.add(l.at(path+".program"), "%s.program: %s: write the program's full path", path, show(a.Program[0]))
			} else if err := checkProgram(a.Program[0], nil); err != nil {
				l.add(l.at(path+".program"), "%s.program: %s: %v", path, show(a.Program[0]), err)
			}
		}
		if a.Root && a.Kind != "checkpassword" {
			l.add(l.at(path+".root"), "%s.root is for checkpassword programs", path)
		}
		if a.Timeout <= 0 && !l.bad[path+".timeout"] {
			l.add(l.at(path+".timeout"), "%s.timeout must be longer than 0", path)
		}
	}
}

// Submits reports whether an entrance takes submissions.
func (c *Config) Submits() bool {
	return slices.ContainsFunc(sorted(c.Listen), func(name string) bool { return c.Listen[name].Service == "submission" })
}
