package config

import (
	"errors"
	"maps"
	"os/user"
	"strconv"
)

// RunsAs are the users, by name or number, that programs of filters and plugins
// are run as, by the keys that name them: "filter.spam.user".
func (c *Config) RunsAs() map[string]string { return maps.Clone(c.users) }

// Wrong is an error about a key, at its place in the file, for what cannot be told
// before the configuration is used.
func (c *Config) Wrong(key, text string) error {
	p := &problems{file: c.File}
	return p.make(c.set[key], "", "%s = %s: %s", key, show(c.users[key]), text)
}

// checkRunsAs looks whether the users of programs exist. Who runs programs of
// others as root gives the host away with the first mistake of theirs.
func (l *loader) checkRunsAs() {
	for _, key := range sorted(l.users) {
		name, at := l.users[key], l.at(key)
		var uid uint32
		n, err := strconv.ParseUint(name, 10, 32)
		if err == nil {
			uid, err = uint32(n), l.o.KnowsUID(uint32(n))
		} else {
			uid, err = l.o.LookupUser(name)
		}
		var unknown user.UnknownUserError
		var unknownID user.UnknownUserIdError
		switch {
		case errors.As(err, &unknown), errors.As(err, &unknownID):
			l.add(at, "%s: there is no user %s: make it, for instance with adduser --system", key, show(name))
		case err != nil:
			l.add(at, "%s: user %s cannot be looked up: %v", key, show(name), err)
		case uid == 0:
			l.add(at, "%s: a program is never run as root: make a user for it, for instance with adduser --system", key)
		}
	}
}
