package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
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
	if g, ok := l.guards[key]; ok && reflect.DeepEqual(g.of, []auth.Backend(chain)) {
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
	if old, ok := l.backends[name].Backend.(io.Closer); ok {
		old.Close() //nolint:errcheck // it is not used any more
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
	}
	return nil, fmt.Errorf("kind %q is not in this version", a.Kind)
}

// close ends helpers and connections.
func (l *logins) close() {
	if l == nil {
		return
	}
	for _, b := range l.backends {
		if c, ok := b.Backend.(io.Closer); ok {
			c.Close() //nolint:errcheck // it is not used any more
		}
	}
}
