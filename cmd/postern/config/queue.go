package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/queue/schedule"
)

// Queue is the table [queue].
type Queue struct {
	Lifetime time.Duration `toml:"lifetime" doc:"for how long a message is tried before it is given up" unset:"control/queuelifetime, else 7d"`
	Retry    string        `toml:"retry" doc:"how the pauses between attempts grow: qmail [C], exponential BASE FACTOR MOST, or list INTERVAL..., each with jitter N% if the default of ten per cent is not wanted"`
	Remote   int           `toml:"remote" min:"0" doc:"the most deliveries over the network at a time; 0 holds them" unset:"control/concurrencyremote, else 200"`
	Local    int           `toml:"local" min:"0" doc:"the most deliveries to mailboxes at a time; 0 holds them" unset:"control/concurrencylocal, else 10"`
	Domain   int           `toml:"domain" min:"1" doc:"the older name of site.default.connections" unset:"site.default.connections"`
	LowSpace int64         `toml:"low_space" unit:"bytes" min:"0" doc:"what must be free on the disk for new mail to be taken"`
	Resolver []string      `toml:"resolver" doc:"DNS servers, host:port" unset:"those of /etc/resolv.conf"`

	backoff schedule.Backoff
}

// Backoff is Retry, read.
func (q *Queue) Backoff() schedule.Backoff { return q.backoff }

// Bounce is the table [bounce].
type Bounce struct {
	Format      string        `toml:"format" oneof:"mime|qsbmf" doc:"mime: RFC 3464, with qmail's words first; qsbmf: qmail's own format"`
	External    string        `toml:"external" oneof:"verified|always|never" doc:"whether a stranger hears that his message could not be delivered: if his domain was verified (SPF, DKIM), always, or never. What may not be told is held, and the postmaster hears of it"`
	MaxOriginal int64         `toml:"max_original" unit:"bytes" min:"0" doc:"up to which size a report has the whole message; above it, and with 0, only its header"`
	Warn        time.Duration `toml:"warn" doc:"after how long the sender is warned, once, of a delay; 0 is never"`
	From        string        `toml:"from" doc:"the address in a report's From field" unset:"control/bouncefrom and bouncehost, else MAILER-DAEMON and hostname"`
	Postmaster  string        `toml:"postmaster" doc:"who gets the reports that cannot be delivered themselves" unset:"control/doublebounceto and doublebouncehost, else postmaster and hostname"`
}

// Route is where mail for a domain goes in place of its MX.
type Route struct {
	// Host is a name or an address; "" means the domain's MX.
	Host string
	Port uint16
	// CutThrough is set where a client is answered with what the host answers.
	CutThrough bool
	// SMTPS is set where the connection begins with TLS.
	SMTPS bool
	// User and Password are what to log in by; no User: there is no login. Clear lets
	// them go without TLS.
	User, Password string
	Clear          bool
}

// RouteTo is a route as it is written: a text, or a table.
type RouteTo struct {
	To           string `toml:"to" doc:"host or host:port"`
	CutThrough   bool   `toml:"cut_through" doc:"an SMTP entrance answers a message for these domains only when the host has answered it, so that its refusal is ours and nobody gets a bounce; nothing of it is queued"`
	SMTPS        bool   `toml:"smtps" doc:"begin with TLS (RFC 8314); the default port is 465 then"`
	User         string `toml:"user" doc:"log in at the host as this user (AUTH), under TLS with any certificate at least" unset:"no login"`
	Password     string `toml:"password" doc:"the user's password; keep this file from others' eyes, or use password_file"`
	PasswordFile string `toml:"password_file" path:"file" doc:"a file whose first line is the password"`
	Clear        bool   `toml:"login_in_clear" doc:"log in without TLS, too, where everybody on the way can read the password"`
}

func (RouteTo) wants() string { return "host or host:port in quotes, or a table with to" }

// String is the route as it would be written, but for the password.
func (r RouteTo) String() string {
	s := ""
	for _, x := range []struct {
		name string
		on   bool
	}{{"cut_through", r.CutThrough}, {"smtps", r.SMTPS}, {"login_in_clear", r.Clear}} {
		if x.on {
			s += ", " + x.name + " = true"
		}
	}
	if r.User != "" {
		s += ", user = " + strconv.Quote(r.User)
	}
	if r.Password != "" {
		s += `, password = "..."`
	}
	if r.PasswordFile != "" {
		s += ", password_file = " + strconv.Quote(r.PasswordFile)
	}
	if s == "" {
		return strconv.Quote(r.To)
	}
	return "{to = " + strconv.Quote(r.To) + s + "}"
}

// UnmarshalText takes the short form.
func (r *RouteTo) UnmarshalText(text []byte) error {
	r.To = string(text)
	return nil
}

// controlInt takes a number of the control directory as a default.
func (l *loader) controlInt(key, file string, set func(int)) {
	line, ok := l.Files.First(file)
	if l.written(key) || !ok {
		return
	}
	at := l.Files.at(file, line.No)
	n, err := strconv.Atoi(line.Text)
	if err != nil || n < 0 {
		l.add(at, "%s is %s: write a number", file, show(line.Text))
		return
	}
	l.from[key] = l.where(at)
	set(n)
}

func (l *loader) checkQueue() {
	l.controlInt("queue.lifetime", "queuelifetime", func(n int) { l.Queue.Lifetime = time.Duration(n) * time.Second })
	l.controlInt("queue.remote", "concurrencyremote", func(n int) { l.Queue.Remote = n })
	l.controlInt("queue.local", "concurrencylocal", func(n int) { l.Queue.Local = n })
	if l.Queue.Lifetime <= 0 && !l.bad["queue.lifetime"] {
		l.add(l.at("queue.lifetime"), "queue.lifetime must be longer than 0")
	}
	backoff, err := schedule.ParseBackoff(l.Queue.Retry)
	if err != nil && !l.bad["queue.retry"] {
		l.add(l.at("queue.retry"), "queue.retry: %v", err)
	}
	l.Queue.backoff = backoff
	for i, server := range l.Queue.Resolver {
		if _, _, err := net.SplitHostPort(server); err != nil {
			l.add(l.atItem("queue.resolver", i), `queue.resolver: %s: write host:port, like "127.0.0.1:53"`, show(server))
		}
	}
}

func (l *loader) checkBounce() {
	l.address("bounce.from", &l.Bounce.From, "bouncefrom", "MAILER-DAEMON", "bouncehost")
	l.address("bounce.postmaster", &l.Bounce.Postmaster, "doublebounceto", "postmaster", "doublebouncehost")
}

// address completes an address from two control files.
func (l *loader) address(key string, to *string, localFile, local, hostFile string) {
	if l.written(key) {
		if !strings.Contains(*to, "@") && !l.bad[key] {
			l.add(l.at(key), "%s = %s: write an address with a domain", key, show(*to))
		}
		return
	}
	host := l.Hostname
	if line, ok := l.Files.First(localFile); ok {
		local = line.Text
	}
	if line, ok := l.Files.First(hostFile); ok {
		host = line.Text
	}
	*to = local + "@" + host
}

func (l *loader) checkMailboxes() {
	l.mailboxes, l.locals = map[string]string{}, map[string]bool{}
	for _, name := range sorted(l.Mailbox) {
		path, at := l.Mailbox[name], l.at("mailbox."+name)
		i := strings.LastIndexByte(name, '@')
		if i < 0 || !validHost(name[i+1:]) {
			l.add(at, "mailbox: %s is no address: write user@domain, or @domain for all the others of it", show(name))
		}
		if path == "" || strings.IndexByte(path, 0) >= 0 {
			l.add(at, "mailbox: %s needs the path of a Maildir", show(name))
			continue
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(l.folder, path)
			l.Mailbox[name] = path
		}
		l.mailboxes[strings.ToLower(strings.TrimPrefix(name, "@"))] = path
		l.locals[strings.ToLower(name[i+1:])] = true
	}
}

// checkRoutes reads the routes, or control/smtproutes in their place.
func (l *loader) checkRoutes() {
	l.routes = map[string]Route{}
	if l.written("route") {
		for _, name := range sorted(l.Route) {
			l.route(l.at("route."+name), name, l.Route[name])
		}
		return
	}
	lines, _ := l.Files.Lines("smtproutes")
	for _, line := range lines {
		at := l.Files.at("smtproutes", line.No)
		domain, server, found := strings.Cut(line.Text, ":")
		if !found {
			l.warn(at, "has no colon, so it is no route")
			continue
		}
		to := RouteTo{To: server}
		if i := strings.IndexAny(server, "| \t"); i >= 0 {
			// HOST:PORT|USER|PASSWORD, or with blanks between.
			to.To = server[:i]
			words := strings.Fields(server[i:])
			if server[i] == '|' {
				words = strings.Split(server[i+1:], "|")
			}
			if len(words) < 2 || words[0] == "" || words[1] == "" {
				l.warn(at, "names no user and password behind the host, so there is no login")
			} else {
				to.User, to.Password = words[0], words[1]
			}
			if len(words) > 2 {
				l.warn(at, "has more than a user and a password behind the host, which is not used")
			}
		}
		l.route(at, domain, to)
	}
}

func (l *loader) route(at place, domain string, to RouteTo) {
	if domain != "" && !validHost(strings.TrimPrefix(domain, ".")) {
		l.add(at, "route: %s is no domain", show(domain))
		return
	}
	r, err := parseRoute(to.To, to.SMTPS)
	if err == nil {
		r, err = to.complete(r)
	}
	if err != nil {
		l.add(at, "route for %s: %v", show(domain), err)
		return
	}
	domain = strings.ToLower(domain)
	if _, there := l.routes[domain]; !there { // the first line counts (constmap.c)
		l.routes[domain] = r
	}
}

// complete adds what stands beside the host.
func (r RouteTo) complete(to Route) (Route, error) {
	to.CutThrough, to.SMTPS, to.User, to.Password, to.Clear = r.CutThrough, r.SMTPS, r.User, r.Password, r.Clear
	switch {
	case to.Host != "":
	case r.CutThrough:
		return to, errors.New("cut_through needs a host to cut through to")
	case r.SMTPS || r.User != "":
		return to, errors.New("smtps and user need a host")
	}
	if r.PasswordFile != "" {
		if r.Password != "" {
			return to, errors.New("write password or password_file, not both")
		}
		text, err := os.ReadFile(r.PasswordFile)
		if err != nil {
			return to, fmt.Errorf("password_file: %w", cause(err))
		}
		line, _, _ := strings.Cut(string(text), "\n")
		to.Password = strings.TrimSuffix(line, "\r")
	}
	switch {
	case (to.User == "") != (to.Password == ""):
		return to, errors.New("a login needs user, and password or password_file")
	case strings.ContainsRune(to.User+to.Password, 0):
		return to, errors.New("a user or password has no NUL in it")
	}
	return to, nil
}

func parseRoute(server string, smtps bool) (Route, error) {
	r := Route{Host: server, Port: 25}
	if smtps {
		r.Port = 465
	}
	if host, port, err := net.SplitHostPort(server); err == nil {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return Route{}, errors.New("the port must be a number from 1 to 65535")
		}
		r.Host, r.Port = host, uint16(n)
	}
	r.Host = strings.TrimSuffix(strings.TrimPrefix(r.Host, "["), "]")
	if r.Host != "" && !validHost(r.Host) && net.ParseIP(r.Host) == nil {
		return Route{}, errors.New("write host or host:port; an IPv6 address in brackets")
	}
	return r, nil
}

// RouteOf is the route of a domain, if it has one: its own, that of the nearest
// domain above it, or the one for all (qmail-remote.8, smtproutes).
func (c *Config) RouteOf(domain string) (Route, bool) {
	domain = strings.ToLower(domain)
	r, ok := c.routes[domain]
	for at := 0; !ok && at < len(domain); at++ {
		if domain[at] == '.' {
			r, ok = c.routes[domain[at:]]
		}
	}
	if !ok {
		r, ok = c.routes[""]
	}
	return r, ok && r.Host != ""
}

// MailboxOf is the Maildir of an address: its own, or its domain's.
func (c *Config) MailboxOf(address string) (path string, ok bool) {
	address = strings.ToLower(address)
	if path, ok = c.mailboxes[address]; ok {
		return path, ok
	}
	path, ok = c.mailboxes[address[strings.LastIndexByte(address, '@')+1:]]
	return path, ok
}

// HasMailboxes reports whether the table mailbox has any in a domain.
func (c *Config) HasMailboxes(domain string) bool { return c.locals[strings.ToLower(domain)] }

// IsLocal reports whether mail for a domain goes to mailboxes: those of the
// table mailbox, and of control/locals.
func (c *Config) IsLocal(domain string) bool {
	domain = strings.ToLower(domain)
	return c.locals[domain] || c.domains.local[domain]
}

func (l *loader) checkUser() {
	if l.User == "" {
		return
	}
	if _, err := l.o.LookupUser(l.User); err != nil {
		var unknown user.UnknownUserError
		if errors.As(err, &unknown) {
			l.add(l.at("user"), "user: there is no user %s: make it, for instance with adduser --system", show(l.User))
			return
		}
		l.add(l.at("user"), "user %s cannot be looked up: %v", show(l.User), err)
	}
}
