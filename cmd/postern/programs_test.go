package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline/program"
)

// runsAs is a configuration whose programs run as users.
func runsAs(t *testing.T, head string, users ...string) *config.Config {
	t.Helper()
	text := head + "[filter.rcptcheck]\n"
	for _, u := range users {
		text += "[[filter.rcptcheck.check]]\nprogram = \"/bin/true\"\nuser = \"" + u + "\"\n"
	}
	c, err := config.Parse("postern.toml", []byte(text), loadOptions(quietEnv()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What a command tells all programs stands beside what they have.
func TestProgramsTold(t *testing.T) {
	p := newPrograms(slog.New(slog.DiscardHandler))
	defer p.close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	env := append(make([]string, 0, 8), "A=1")
	for want, tell := range [][]string{nil, {forShow}} {
		p.env = tell
		q, err := p.Start(program.Spec{Path: "/bin/sh", Args: []string{"sh", "-c", "exit $((A * ${POSTERN_EXPLAIN-0}))"}, Env: env})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := q.Wait(ctx); err != nil || e.Exit != want {
			t.Errorf("%q: %v %v", tell, e, err)
		}
	}
}

// A program goes to the starter that its user wants, and to none if there is none.
func TestProgramsByUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
	p := newPrograms(slog.New(slog.DiscardHandler))
	defer p.close()
	if err := p.startOthers(runsAs(t, "user = \"nobody\"\n", "nobody", "mail", "8", "65534")); err != nil {
		t.Fatal(err)
	}
	if len(p.users) != 1 || p.users[0].Name != "mail" || p.others == nil {
		t.Errorf("%+v", p.users)
	}
	nobody, err := user.Lookup("nobody")
	if err != nil || nobody.Uid != strconv.Itoa(p.me) {
		t.Fatal(p.me, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// We have not given up root: what the daemon's own user runs, root runs here.
	for who, code := range map[string]int{"": 0, "nobody": 0, "65534": 0, "mail": 8, "8": 8} {
		q, err := p.Start(program.Spec{Path: "/bin/sh", Args: []string{"sh", "-c", "exit $(/usr/bin/id -u)"}, User: who})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := q.Wait(ctx); err != nil || e.Exit != code {
			t.Errorf("%q: %v %v", who, e, err)
		}
	}
	for _, who := range []string{"games", "5", "root", "0", "no such user"} {
		if _, err := p.Start(program.Spec{Path: "/bin/true", User: who}); !errors.Is(err, program.ErrUser) {
			t.Errorf("%q: %v", who, err)
		}
	}
	if err := p.check(runsAs(t, "", "65534", "8")); err != nil {
		t.Error(err)
	}
	if err := p.check(runsAs(t, "", "mail", "games")); err == nil || err.Error() != `postern.toml:7: filter.rcptcheck.check[1].user = "games": programs run only as the users that were named when the daemon was started: restart it` {
		t.Error(err)
	}
}
