package config

import (
	"errors"
	"net"
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
