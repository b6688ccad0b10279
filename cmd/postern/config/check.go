package config

import (
	"errors"
	"maps"
	"os"
	"os/user"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/rules"
)

// loader is a configuration that is being checked.
type loader struct {
	*Config
	*problems
	root *node
	bad  map[string]bool // values that could not be decoded: they are not complained of twice
}

// checks fill in what was not written and look at what was, in this order:
// later ones use what earlier ones found. A new section has its check here.
var checks = []func(*loader){
	(*loader).checkControl,
	(*loader).checkHostname,
	(*loader).checkTrusted,
	(*loader).checkPaths,
	(*loader).checkDomains,
	(*loader).checkSenders,
	(*loader).checkLimits,
	(*loader).checkTaps,
	(*loader).checkPlugins,
	(*loader).checkChains,
	(*loader).checkCertificates,
	(*loader).checkAuth,
	(*loader).checkListeners,
	(*loader).checkFilters,
	(*loader).checkPluginsUsed,
	(*loader).checkRunsAs,
	(*loader).checkQueue,
	(*loader).checkLimitsAbroad,
	(*loader).checkPools,
	(*loader).checkBounce,
	(*loader).checkMailboxes,
	(*loader).checkRoutes,
	(*loader).checkOutbound,
	(*loader).checkUser,
	(*loader).checkQuarantine,
}

// written reports whether the file has a key.
func (l *loader) written(path string) bool {
	_, ok := l.set[path]
	return ok
}

// at is where a key stands: its own place, or that of the table that should
// have it, or the file's beginning.
func (l *loader) at(path string) place {
	for {
		if at, ok := l.set[path]; ok {
			return at
		}
		i := strings.LastIndexByte(path, '.')
		if i < 0 {
			return l.root.place
		}
		path = path[:i]
	}
}

// misplaced reports keys that are known elsewhere: those of the top that came
// after a table, which in TOML makes them that table's.
func misplaced(p *problems, path, key string, at place) bool {
	if path == "" || !topLevel(key) {
		return false
	}
	p.add(at, "unknown key %s in [%s]; it belongs at the top of the file, before the first [table]", show(key), shown(path))
	return true
}

func (l *loader) checkControl() {
	if !l.written("control") {
		if info, err := os.Stat(l.o.Control); err != nil || !info.IsDir() {
			return
		}
		l.Settings.Control = l.o.Control
	}
	dir := l.Settings.Control
	if dir == "" {
		return
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		if err == nil {
			err = errors.New("it is no directory")
		}
		l.add(l.at("control"), `control = %s: %v; name qmail's control directory, or write control = "" if there is none`, show(dir), cause(err))
		return
	}
	l.Files = readControl(dir, l.problems)
}

var hostRule = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*$`)

func validHost(name string) bool { return len(name) <= 253 && hostRule.MatchString(name) }

func (l *loader) checkHostname() {
	at := l.at("hostname")
	switch me, ok := l.Files.First("me"); {
	case l.bad["hostname"]:
		return
	case l.written("hostname"):
	case ok:
		at = l.Files.at("me", me.No)
		l.Hostname = me.Text
		l.from["hostname"] = l.where(at)
	default:
		name, err := l.o.Hostname()
		if err != nil {
			l.add(l.root.place, `hostname is missing, and the system does not tell its name (%v): write hostname = "mx.example.org"`, err)
			return
		}
		l.Hostname = name
		l.from["hostname"] = "the system"
		if _, there := l.Files.Lines("me"); there {
			l.warn(l.Files.at("me", 1), "is not used: its first line, the only one that counts, is blank or a comment")
		}
	}
	switch {
	case !validHost(l.Hostname):
		l.add(at, "hostname %s is no host name: write one like mx.example.org", show(l.Hostname))
	case !strings.Contains(l.Hostname, "."):
		l.warn(at, "hostname %s has no domain: other hosts will not believe it", show(l.Hostname))
	}
}

// trustedByDefault are the users that programs of a qmail host run as when they
// call qmail-queue for a network client or for a forwarded message.
var trustedByDefault = []string{"root", "qmaild", "alias", "vpopmail"}

func (l *loader) checkTrusted() {
	if !l.written("trusted") {
		for _, name := range trustedByDefault {
			uid, err := l.o.LookupUser(name)
			var unknown user.UnknownUserError
			switch {
			case err == nil:
				l.Trusted = append(l.Trusted, User{name, uid})
			case !errors.As(err, &unknown):
				l.warn(l.root.place, "user %s, who would be trusted, cannot be looked up: %v", name, err)
			}
		}
		return
	}
	for i := range l.Trusted {
		item := "trusted[" + strconv.Itoa(i) + "]"
		u, at := &l.Trusted[i], l.at(item)
		if l.bad[item] {
			continue
		}
		if uid, err := strconv.ParseUint(u.Name, 10, 32); err == nil {
			u.UID = uint32(uid)
			continue
		}
		uid, err := l.o.LookupUser(u.Name)
		var unknown user.UnknownUserError
		switch {
		case err == nil:
			u.UID = uid
		case strings.Trim(u.Name, "0123456789") == "":
			l.add(at, "trusted: %s is no uid: it is too large", u.Name)
		case errors.As(err, &unknown):
			others := slices.DeleteFunc(slices.Clone(trustedByDefault), func(name string) bool { return name == u.Name })
			l.suggest(at, rules.Suggest(u.Name, others), "trusted: there is no user %s: make it, or take it out of the list", show(u.Name))
		default:
			l.add(at, "trusted: user %s cannot be looked up: %v", show(u.Name), err)
		}
	}
}

func (l *loader) checkPaths() {
	if l.bad["state"] {
		return
	}
	if l.State == "" {
		l.add(l.at("state"), "state must name a folder")
	} else if info, err := os.Stat(l.State); err == nil && !info.IsDir() {
		l.add(l.at("state"), "state = %s: it is no directory", show(l.State))
	}
}

// maxSocket is the longest path of a Unix socket, in bytes (unix(7), less the
// NUL at its end).
const maxSocket = 107

func (l *loader) checkSocket(path, socket string) {
	switch {
	case l.bad[path]:
	case socket == "":
		l.add(l.at(path), "%s must be the path of a socket", path)
	case len(socket) > maxSocket:
		l.add(l.at(path), "%s is %d bytes long, a socket's path may have %d: %s", path, len(socket), maxSocket, show(socket))
	}
}

func (l *loader) checkDomains() {
	if l.bad["domains"] && l.Domains == nil {
		return
	}
	if !l.written("domains") {
		l.Config.domains = l.Files.domains()
		l.Domains, l.MoreHosts = l.Files.taken(), l.Files.moreHosts(l.problems)
		if len(l.Domains) > 0 {
			l.from["domains"] = l.where(l.Files.at("rcpthosts", 0))
		}
		l.Config.domains.taken = rules.NewDomainList(l.Domains)
		return
	}
	for i, entry := range l.Domains {
		item := "domains[" + strconv.Itoa(i) + "]"
		if l.bad[item] || validHost(strings.TrimPrefix(entry, ".")) {
			continue
		}
		suggestion := strings.TrimPrefix(strings.TrimPrefix(entry, "*"), "@")
		if !validHost(strings.TrimPrefix(suggestion, ".")) {
			suggestion = ""
		}
		l.suggest(l.at(item), suggestion, "domains: %s is no domain; write example.org, or .example.org for all below it", show(entry))
	}
	l.Config.domains = domains{taken: rules.NewDomainList(l.Domains)}
}

// checkSenders reads control/badmailfrom.
func (l *loader) checkSenders() {
	lines, ok := l.Files.Lines("badmailfrom")
	if !ok {
		return
	}
	list, err := rules.NewAddressList(lines, rules.Globs)
	if err != nil {
		l.add(l.Files.at("badmailfrom", lineOf(err)), "%v", err)
		return
	}
	l.BadMailFrom = list
}

func (l *loader) checkLimits() {
	limit, at, ok := l.Files.databytes(l.problems)
	if ok && !l.written("limits.message") {
		l.Limits.Message = limit
		l.from["limits.message"] = l.where(at)
	}
	if l.Limits.Message > 0 && l.Limits.Head > l.Limits.Message && l.written("limits.head") {
		l.warn(l.at("limits.head"), "limits.head is larger than limits.message, which bounds the head as well")
	}
}

func (l *loader) checkTaps() {
	lines, ok := l.Files.taps(l.problems)
	l.badTaps = !ok
	for _, line := range lines {
		l.taps = append(l.taps, tapLine{l.Files.at("taps", line.No), line.Text})
	}
}

// where names a place, for people.
func (c *Config) where(at place) string {
	file := at.file
	if file == "" {
		file = c.File
	}
	if at.line == 0 {
		return clean(file)
	}
	return clean(file) + ":" + strconv.Itoa(at.line)
}

// sorted are the keys of a map in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
