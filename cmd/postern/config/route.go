package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/queue/egress/smtp"
)

// Route is where mail for a domain goes in place of its MX.
type Route struct {
	// Hops are tried in order. One that IsMX is alone.
	Hops []smtp.Hop
	// CutThrough is set where a client is answered with what the host answers.
	CutThrough bool
	// User and Password are what to log in by; no User: there is no login. Clear lets
	// them go without TLS.
	User, Password string
	Clear          bool
}

// Hops are the places of a route as they are written: a text, or a list.
type Hops []string

func (Hops) wants() string { return "host or host:port in quotes, or a list of them" }

// UnmarshalText takes one.
func (h *Hops) UnmarshalText(text []byte) error {
	*h = Hops{string(text)}
	return nil
}

// UnmarshalTexts takes several.
func (h *Hops) UnmarshalTexts(all []string) error {
	if len(all) == 0 || len(all) > maxHops {
		return fmt.Errorf("write 1 to %d places", maxHops)
	}
	*h = all
	return nil
}

// String is the hops as they would be written.
func (h Hops) String() string {
	if len(h) == 1 {
		return strconv.Quote(h[0])
	}
	quoted := make([]string, len(h))
	for i, text := range h {
		quoted[i] = strconv.Quote(text)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// maxHops is how many hops a route may have.
const maxHops = 10

// RouteTo is a route as it is written: a text, a list, or a table.
type RouteTo struct {
	To           Hops   `toml:"to" doc:"where to: host, host:port or [address]:port; transport://host:port, where transport is smtp, smtps (begins with TLS, port 465), lmtp (port 24), qmtp (209) or qmqp (628), whose server must trust us; lmtp:unix:/path, a Unix socket; or discard:, which takes mail and drops it. In a list the next one is tried where there is no session with the one before"`
	CutThrough   bool   `toml:"cut_through" doc:"an SMTP entrance answers a message for these domains only when the host has answered it, so that its refusal is ours and nobody gets a bounce; nothing of it is queued"`
	SMTPS        bool   `toml:"smtps" doc:"begin with TLS (RFC 8314); the default port is 465 then"`
	User         string `toml:"user" doc:"log in at the host as this user (AUTH), under TLS with any certificate at least" unset:"no login"`
	Password     string `toml:"password" doc:"the user's password; keep this file from others' eyes, or use password_file"`
	PasswordFile string `toml:"password_file" path:"file" doc:"a file whose first line is the password"`
	Clear        bool   `toml:"login_in_clear" doc:"log in without TLS, too, where everybody on the way can read the password"`
}

func (RouteTo) wants() string {
	return "host or host:port in quotes, a list of them, or a table with to"
}

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
		return r.To.String()
	}
	return "{to = " + r.To.String() + s + "}"
}

// UnmarshalText takes the short form.
func (r *RouteTo) UnmarshalText(text []byte) error {
	return r.To.UnmarshalText(text)
}

// UnmarshalTexts takes the short form of several.
func (r *RouteTo) UnmarshalTexts(all []string) error { return r.To.UnmarshalTexts(all) }

// checkRoutes reads the routes, or control/smtproutes in their place.
func (l *loader) checkRoutes() {
	l.routes = map[string]Route{}
	if l.written("route") {
		for _, name := range sorted(l.Route) {
			if !l.bad["route."+name] {
				l.route(l.at("route."+name), name, l.Route[name])
			}
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
		to := RouteTo{To: Hops{server}}
		if i := strings.IndexAny(server, "| \t"); i >= 0 {
			// HOST:PORT|USER|PASSWORD, or with blanks between.
			to.To = Hops{server[:i]}
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
	r, err := to.read()
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
	to.CutThrough, to.User, to.Password, to.Clear = r.CutThrough, r.User, r.Password, r.Clear
	if r.CutThrough && to.Hops[0].IsMX() {
		return to, errors.New("cut_through needs a host to cut through to")
	}
	if r.User != "" && (to.Hops[0].IsMX() || to.Hops[0].Transport >= smtp.Discard) {
		return to, errors.New("user needs a host that is spoken to by SMTP or LMTP")
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

// read reads the hops.
func (r RouteTo) read() (Route, error) {
	var to Route
	for _, text := range r.To {
		h, err := smtp.ParseHop(text)
		if err != nil {
			return to, fmt.Errorf("%s: %w", show(text), err)
		}
		if r.SMTPS {
			if h.Transport > smtp.SMTPS || h.Socket != "" || h.IsMX() {
				return to, errors.New("smtps needs a host that is spoken to by SMTP")
			}
			h.Transport = smtp.SMTPS
		}
		to.Hops = append(to.Hops, h)
		switch {
		case len(r.To) == 1:
		case h.IsMX() || h.Transport == smtp.Discard:
			return to, fmt.Errorf("%s cannot stand in a list", show(text))
		case slices.Contains(to.Hops[:len(to.Hops)-1], h):
			return to, fmt.Errorf("%s stands twice in the list", show(text))
		}
	}
	if len(to.Hops) == 0 {
		return to, errors.New("to is missing")
	}
	return to, nil
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
	return r, ok && (!r.Hops[0].IsMX() || r.Hops[0].Port != 0)
}
