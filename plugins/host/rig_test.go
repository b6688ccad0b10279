package host

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/program"
)

// rig is a host of the test's own, whose plugins are this program.
type rig struct {
	*Host
	dir   string
	log   *filtertest.Log
	spool *message.Directory
	self  string
}

// newRig makes a host in a directory of the spool's file system, whose path is
// short enough for sockets.
func newRig(t testing.TB) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "ph")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	r := &rig{dir: filepath.Join(dir, "p"), log: new(filtertest.Log)}
	if r.spool, err = message.OpenDirectory(filepath.Join(dir, "spool")); err != nil {
		t.Fatal(err)
	}
	var o program.Options
	if os.Getuid() == 0 {
		for _, name := range []string{"nobody"} {
			account, err := program.LookupAccount(name)
			if err != nil {
				t.Fatal(err)
			}
			o.Users = append(o.Users, account)
		}
	}
	own, others := program.New(program.Options{}), program.New(o)
	r.Host, err = New(Options{
		Programs: starters{own, others}, Dir: r.dir, Version: "test",
		Log: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.self, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close() //nolint:errcheck // it has nothing to say
		own.Close()
		others.Close()
		left := r.left(t)
		os.RemoveAll(dir)
		if len(left) > 0 {
			t.Errorf("files are left: %q", left)
		}
		if t.Failed() {
			t.Logf("the log:\n%s", r.log)
		}
	})
	return r
}

// left are the files of plugins that should be gone.
func (r *rig) left(t testing.TB) (all []string) {
	t.Helper()
	for _, pattern := range []string{"*/r/*", "*/b/*", "plugin-dir*"} {
		names, err := filepath.Glob(filepath.Join(r.dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, names...)
	}
	return all
}

// starters start programs of our own user and of others.
type starters struct{ own, others *program.Starter }

func (s starters) Start(spec program.Spec) (*program.Process, error) {
	if spec.User != "" {
		return s.others.Start(spec)
	}
	return s.own.Start(spec)
}

// settings are those of the player, with its arguments.
func (r *rig) settings(args ...string) Settings {
	return Settings{Name: "player", Command: append([]string{r.self}, args...), Memory: testMemory, Timeout: 20 * time.Second}
}

// env is a filter's.
func (r *rig) env(t testing.TB) pipeline.Env {
	e := filtertest.Env(t)
	e.Spool = r.spool
	return e
}

// filter makes a filter of a plugin, or fails.
func (r *rig) filter(t testing.TB, s Settings, config string) pipeline.Filter {
	t.Helper()
	f, err := r.try(t, s, config)
	if err != nil {
		t.Fatalf("%v\n%s", err, r.log)
	}
	t.Cleanup(func() { f.(io.Closer).Close() })
	return f
}

func (r *rig) try(t testing.TB, s Settings, config string) (pipeline.Filter, error) {
	t.Helper()
	kind, err := r.Kind(s)
	if err != nil {
		return nil, err
	}
	r.Settle(true)
	return kind.New(r.env(t), filtertest.Decode(config))
}

// do is the configuration of a filter that does something.
func do(what string, with ...string) string {
	return fmt.Sprintf("do = %q\nwith = [%s]\n", what, strings.Trim(strings.ReplaceAll(fmt.Sprintf("%q", with), `" "`, `", "`), "[]"))
}

const plainHead = "From: a@example.net\nSubject: hello\n"

// read is a message in the rig's spool, with a body of so many bytes.
func (r *rig) read(t testing.TB, size int) message.Message {
	t.Helper()
	body := strings.Repeat(strings.Repeat("x", 63)+"\n", size/64+1)[:size]
	if size > 0 {
		body = body[:size-1] + "\n"
	}
	m, err := message.Read(strings.NewReader(plainHead+"\n"+body), message.Options{Spool: r.spool})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// ask asks a filter about a message, as the chain does.
func (r *rig) ask(t testing.TB, f pipeline.Filter, m message.Message, within time.Duration) (pipeline.Verdict, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	i, err := f.Open(ctx, filtertest.Stranger())
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	tx := &pipeline.Transaction{ID: "t1", Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", "b@example.org", "c@example.org"), Active: []int{0, 1}, Chain: "inbound"}
	return i.(pipeline.Messager).Message(ctx, tx, m)
}

// soon waits until something is so.
func soon(t testing.TB, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if so() {
			return
		}
	}
	t.Fatalf("it does not come: %s", what)
}

// users are those that plugins can run as here: our own, and another one where
// we are root.
func users() []string {
	if os.Getuid() == 0 {
		return []string{"", "nobody"}
	}
	return []string{""}
}

func recipients(addresses ...string) []envelope.Recipient {
	return envelope.To("", addresses...).Recipients
}

func goroutines() int { return runtime.NumGoroutine() }

func itoa(n int) string { return fmt.Sprint(n) }
