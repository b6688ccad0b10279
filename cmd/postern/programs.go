package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"slices"
	"strconv"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline/program"
)

// programs start what filters and plugins run that is not ours: as the daemon's
// user, and as the users that the configuration named when the daemon, as root,
// was started. It is safe for concurrent use, but for startOthers.
type programs struct {
	log *slog.Logger
	own *program.Starter
	// others runs programs as users; nil: as none.
	others *program.Starter
	users  []program.Account
	// me is the user that the daemon is or becomes, and as, if it is not "", one
	// of users in whose name a command that stays root runs what has no user.
	me int
	as string
	// env is what all programs are told beside their own environment.
	env []string
}

// forShow tells a program that it is asked by postern explain, so that it may
// leave out what it does beside its answer.
const forShow = "POSTERN_EXPLAIN=1"

func newPrograms(log *slog.Logger) *programs {
	return &programs{log: log, me: os.Geteuid(), own: program.New(program.Options{Died: func(err error) {
		log.Warn("the process that starts programs died, and its programs with it; it is started again when it is needed", "error", err)
	}})}
}

// startOthers is called before the daemon gives up root: it starts the process
// that runs programs as the users that a configuration names. No other user can
// be added later.
func (p *programs) startOthers(c *config.Config) error {
	h, err := heir(c)
	if err != nil {
		return err
	}
	if h != nil {
		p.me = h.uid
	}
	runs := c.RunsAs()
	for _, key := range sortedKeys(runs) {
		a, err := program.LookupAccount(runs[key])
		if err != nil {
			return c.Wrong(key, err.Error())
		}
		if int(a.UID) == p.me {
			continue
		}
		if os.Geteuid() != 0 {
			return c.Wrong(key, fmt.Sprintf("this daemon runs as uid %d and may not run a program as another user: start it as root, or leave this out", os.Geteuid()))
		}
		if !slices.ContainsFunc(p.users, func(b program.Account) bool { return b.UID == a.UID }) {
			p.users = append(p.users, a)
		}
	}
	return p.ready()
}

// instead is for a command that stays root: it runs programs as the daemon would,
// also those that have no user of their own.
func (p *programs) instead(c *config.Config) error {
	h, err := heir(c)
	if err == nil && h != nil && h.uid != 0 {
		var a program.Account
		if a, err = program.LookupAccount(c.User); err == nil {
			p.users, p.as = append(p.users, a), c.User
		}
	}
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return nil // as much as can be shown
	}
	return p.startOthers(c)
}

// ready starts the process for the users, if there are any.
func (p *programs) ready() error {
	if len(p.users) == 0 {
		return nil
	}
	p.others = program.New(program.Options{Users: p.users, Died: func(err error) {
		p.log.Warn("the process that starts programs as other users died, and its programs with it; it is started again", "error", err)
	}})
	if err := p.others.Ready(); err != nil {
		return fmt.Errorf("programs as other users: %w", err)
	}
	return nil
}

// check refuses a configuration that names a user whom this daemon cannot run a
// program as.
func (p *programs) check(c *config.Config) error {
	runs := c.RunsAs()
	for _, key := range sortedKeys(runs) {
		if !p.isOwn(runs[key]) && !slices.ContainsFunc(p.users, func(a program.Account) bool { return a.Is(runs[key]) }) {
			return c.Wrong(key, "programs run only as the users that were named when the daemon was started: restart it")
		}
	}
	return nil
}

// isOwn reports whether a user is the daemon's own.
func (p *programs) isOwn(name string) bool {
	if name == "" || name == strconv.Itoa(p.me) {
		return true
	}
	u, err := user.Lookup(name)
	return err == nil && u.Uid == strconv.Itoa(p.me)
}

// Start starts a program.
func (p *programs) Start(spec program.Spec) (*program.Process, error) {
	if spec.User == "" {
		spec.User = p.as
	}
	spec.Env = slices.Concat(spec.Env, p.env)
	if i := slices.IndexFunc(p.users, func(a program.Account) bool { return spec.User != "" && a.Is(spec.User) }); i >= 0 && p.others != nil {
		return p.others.Start(spec)
	}
	if !p.isOwn(spec.User) {
		return nil, &program.StartError{Path: spec.Path, Kind: program.ErrUser, Err: fmt.Errorf("user %q was not named when root started the daemon: name it, and restart the daemon", spec.User)}
	}
	spec.User = ""
	return p.own.Start(spec)
}

// close ends all programs.
func (p *programs) close() {
	if p == nil {
		return
	}
	err := p.own.Close()
	if p.others != nil {
		err = errors.Join(err, p.others.Close())
	}
	if err != nil {
		p.log.Warn("ending the programs", "error", err)
	}
}
