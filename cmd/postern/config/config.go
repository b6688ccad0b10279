// Package config reads the configuration: one strict TOML file, and the files
// of qmail's control directory as its defaults.
//
// It promises that a configuration is taken as a whole or not at all; that
// everything that is wrong with it is told at once, with file and line and the
// name that was meant; that nothing in a file reaches a message raw; and that
// reading it starts nothing and changes nothing. The keys are documented where
// they are declared, in Settings, and listed by Reference.
package config

import (
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"reflect"
	"strconv"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/rules"
)

// MaxFile is the longest configuration file, in bytes.
const MaxFile = 1 << 20

// Options say in what surroundings a configuration is read. The zero value
// knows no filters and asks the operating system.
type Options struct {
	// Kinds are the filters that there are.
	Kinds []pipeline.Kind
	// Env is what filters are made with. Its logger gets the filter's name.
	Env pipeline.Env
	// Plugins starts plugins, to ask what they are; nil does not ask them, and
	// their filters can then only be looked at.
	Plugins Plugins
	// State, if set, gives each filter its own name space in place of Env.State.
	State func(filter string) pipeline.State
	// LookupUser finds a user. For one that does not exist, the error is a
	// user.UnknownUserError. Nil asks the system.
	LookupUser func(name string) (uid uint32, err error)
	// KnowsUID reports whether there is a user of that number; the error, if not, is
	// a user.UnknownUserIdError. Nil asks the system.
	KnowsUID func(uid uint32) error
	// Hostname is the system's name. Nil means os.Hostname.
	Hostname func() (string, error)
	// HasQueue is set where next = "queue" works, and is then the default.
	HasQueue bool
	// Shims are the paths of our own shims, which must not be called next.
	Shims []string
	// Control is the control directory if the file names none; it need not
	// exist. "" means DefaultControl.
	Control string
}

// Config is a configuration that was found to be right. It does not change and
// is safe for concurrent use.
type Config struct {
	// File is its path, as it was given.
	File string
	Settings
	// Files are the files of the control directory.
	Files Control
	// MoreHosts is the path of control/morercpthosts.cdb, whose domains strangers
	// may send to as well; "" if it does not count.
	MoreHosts string
	// BadMailFrom is control/badmailfrom; nil if there is none.
	BadMailFrom *rules.AddressList
	// Warnings are what looks wrong and does not stand in the way.
	Warnings []*Error

	o       Options
	folder  string
	domains domains
	taps    []tapLine
	badTaps bool
	// routes, mailboxes (by address or domain) and locals are what the tables of
	// those names come to.
	routes    map[string]Route
	mailboxes map[string]string
	locals    map[string]bool
	tls       map[string]*TLS // by domain
	limits    siteLimits
	pools     pools
	set       map[string]place         // of what was written, by path
	from      map[string]string        // of what was not, if it is no plain default
	options   map[string]reflect.Value // the filters' own structs, for Effective
	users     map[string]string        // that programs are run as, by path
}

type tapLine struct {
	place
	text string
}

// Load reads and checks a configuration file. The error is an *Errors, with
// everything that is wrong.
func Load(path string, o Options) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &Errors{List: []*Error{{File: path, Text: clean("cannot be read: " + cause(err).Error())}}}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, &Errors{List: []*Error{{File: path, Text: clean("cannot be read: " + cause(err).Error())}}}
	}
	return Parse(path, data, o)
}

// Parse is Load for a file that was read already. Relative paths are from the
// folder of path.
func Parse(path string, data []byte, o Options) (*Config, error) {
	p := &problems{file: path}
	if len(data) > MaxFile {
		p.add(place{}, "longer than %d bytes", MaxFile)
		return nil, p.err()
	}
	full, err := filepath.Abs(path)
	if err != nil {
		p.add(place{}, "the current folder is not known: %v", err)
		return nil, p.err()
	}
	root := parseTree(data, p)
	if root == nil {
		return nil, p.err()
	}
	c := &Config{
		File: path, Settings: defaults(), o: withDefaults(o), folder: filepath.Dir(full),
		set: map[string]place{}, from: map[string]string{}, options: map[string]reflect.Value{}, users: map[string]string{},
	}
	l := &loader{Config: c, problems: p, root: root, bad: map[string]bool{}}
	d := decoder{problems: p, folder: c.folder, set: c.set, bad: l.bad, unknown: misplaced, users: c.users}
	d.table(root, "", reflect.ValueOf(&c.Settings).Elem())
	for _, check := range checks {
		check(l)
	}
	p.sort(p.warnings)
	c.Warnings = p.warnings
	if err := p.err(); err != nil {
		return nil, err
	}
	return c, nil
}

func withDefaults(o Options) Options {
	if o.Hostname == nil {
		o.Hostname = os.Hostname
	}
	if o.LookupUser == nil {
		o.LookupUser = lookupUser
	}
	if o.KnowsUID == nil {
		o.KnowsUID = func(uid uint32) error {
			_, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
			return err
		}
	}
	if o.Control == "" {
		o.Control = DefaultControl
	}
	return o
}

func lookupUser(name string) (uint32, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("uid %q is no number", u.Uid)
	}
	return uint32(uid), nil
}

// Ours reports whether mail for a domain is our business: those of domains, or
// of rcpthosts, locals and virtualdomains; those of MoreHosts are not asked for.
func (c *Config) Ours(domain string) bool { return c.domains.ours(domain) || c.IsLocal(domain) }

// Accepts reports whether strangers may send to a domain: those of domains, or
// of rcpthosts; those of MoreHosts are not asked for. Where neither is there, to
// none.
func (c *Config) Accepts(domain string) bool {
	_, ok := c.domains.taken.Match(domain)
	return ok
}

// Trusts reports whether a uid is one of the trusted users.
func (c *Config) Trusts(uid uint32) bool {
	for _, u := range c.Trusted {
		if u.UID == uid {
			return true
		}
	}
	return false
}
