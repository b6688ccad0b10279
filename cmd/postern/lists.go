package main

import (
	"fmt"
	"log/slog"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/rules"
)

// lists are the domains of a configuration, with those of morercpthosts.cdb,
// which may be many and change while the daemon runs. A nil more has none.
type lists struct {
	config *config.Config
	more   *rules.CDBFile
	log    *slog.Logger
}

// openLists opens morercpthosts.cdb if it counts.
func openLists(c *config.Config, log *slog.Logger) (*lists, error) {
	l := &lists{config: c, log: log}
	if c.MoreHosts == "" {
		return l, nil
	}
	var err error
	if l.more, err = rules.OpenCDBFile(c.MoreHosts, rules.FileOptions{}); err != nil {
		return nil, fmt.Errorf("morercpthosts.cdb: %w: make it with qmail-newmrh", err)
	}
	return l, nil
}

// ours is Session.Ours.
func (l *lists) ours(domain string) bool {
	if l.config.Ours(domain) {
		return true
	}
	if l.more == nil {
		return false
	}
	_, ok, err := rules.MatchDomain(l.more, domain)
	if err != nil {
		l.log.Error("morercpthosts.cdb cannot be read; its domains are not ours meanwhile", "error", err)
	}
	return ok
}

// close closes the files.
func (l *lists) close() {
	if l != nil && l.more != nil {
		l.more.Close() //nolint:errcheck // it was only read
	}
}
