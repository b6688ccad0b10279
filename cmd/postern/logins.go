package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline/ingress/auth"
	"github.com/postern-mta/postern/pipeline/ingress/smtp"
)

// logins are what users log in by. They belong to the daemon: a reload makes
// anew only what it changes, so that nobody's failures are forgotten by it.
type logins struct {
	log      *slog.Logger
	backends map[string]backend
	guards   map[string]guard // by the names of their backends
	// helpers run checkpassword programs as root; they were started while the
	// daemon was root itself, and cannot be started again.
	helpers map[string]*auth.Helper
}

type backend struct {
	auth.Backend
	of config.Auth
}

type guard struct {
	*auth.Guard
	of []auth.Backend
}

func newLogins(log *slog.Logger) *logins {
	return &logins{log: log, backends: map[string]backend{}, guards: map[string]guard{}, helpers: map[string]*auth.Helper{}}
}

// startHelpers starts the processes that stay root.
func (l *logins) startHelpers(c *config.Config) error {
	for _, name := range sortedKeys(c.Auth) {
		a := c.Auth[name]
		if !a.Root {
			continue
		}
		h, err := auth.StartHelper(auth.HelperOptions{Program: programOf(a), Log: l.log})
		if err != nil {
			return fmt.Errorf("auth.%s: %w", name, err)
		}
		l.helpers[name] = h
		l.backends[name] = backend{h, *a}
	}
	return nil
}

func programOf(a *config.Auth) auth.ProgramOptions {
	return auth.ProgramOptions{Argv: a.Program, Timeout: a.Timeout}
}

// of is what an entrance's users log in by, nil if they cannot.
func (l *logins) of(c *config.Config, listen *config.Listen) (smtp.Authenticator, error) {
	if len(listen.Auth) == 0 {
		return nil, nil
	}
	var chain auth.Chain
	for _, name := range listen.Auth {
		b, err := l.backend(name, c.Auth[name])
		if err != nil {
			return nil, fmt.Errorf("auth.%s: %w", name, err)
		}
		chain = append(chain, b)
	}
	key := strings.Join(listen.Auth, " ")
	if g, ok := l.guards[key]; ok && slices.Equal(g.of, chain) {
		return g.Guard, nil
	}
	g := guard{auth.NewGuard(chain, auth.GuardOptions{Log: l.log}), chain}
	l.guards[key] = g
	return g.Guard, nil
}

// backend is that of a table [auth.NAME], made anew if the table has changed.
func (l *logins) backend(name string, a *config.Auth) (auth.Backend, error) {
	if b, ok := l.backends[name]; ok && reflect.DeepEqual(b.of, *a) {
		return b.Backend, nil
	}
	if a.Root || l.helpers[name] != nil {
		return nil, errors.New("a program that runs as root is started with the daemon: restart it")
	}
	made, err := l.open(a)
	if err != nil {
		return nil, err
	}
	l.backends[name] = backend{made, *a}
	return made, nil
}

func (l *logins) open(a *config.Auth) (auth.Backend, error) {
	switch a.Kind {
	case "file":
		return auth.OpenFile(auth.FileOptions{Path: a.File, Log: l.log})
	case "checkpassword":
		return auth.NewProgram(programOf(a), l.log)
	case "dovecot":
		return auth.NewDovecot(auth.DovecotOptions{Socket: a.Socket, Timeout: a.Timeout, Log: l.log})
	}
	return nil, fmt.Errorf("kind %q is not in this version", a.Kind)
}

// held are what there is at one time.
type held struct {
	backends map[string]backend
	guards   map[string]guard
}

func (l *logins) hold() held { return held{maps.Clone(l.backends), maps.Clone(l.guards)} }

// undo takes back what was made since.
func (l *logins) undo(before held) {
	now := l.backends
	l.backends, l.guards = before.backends, before.guards
	closeReplaced(now, l.backends)
}

// settle gives up what was replaced since.
func (l *logins) settle(before held) { closeReplaced(before.backends, l.backends) }

// closeReplaced closes what is no longer there.
func closeReplaced(before, now map[string]backend) {
	for name, b := range before {
		if c, ok := b.Backend.(io.Closer); ok && now[name].Backend != b.Backend {
			c.Close() //nolint:errcheck // it is not used any more
		}
	}
}

// close ends helpers and connections.
func (l *logins) close() {
	if l == nil {
		return
	}
	closeReplaced(l.backends, nil)
}
