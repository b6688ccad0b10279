package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// TestMain lets the test binary stand in for the processes that tests start.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if role, ok := roles()[os.Args[1]]; ok {
			code := 0
			if err := role(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
			syscall.Exit(code) // os.Exit sleeps for a second under the race detector
		}
	}
	goleak.VerifyTestMain(m)
}

func roles() map[string]func(args []string) error {
	return map[string]func([]string) error{
		"checkpassword-helper": func(args []string) error { return ServeHelper(args[0], slog.Default()) },
		"dropping-daemon":      droppingDaemon,
		"unprivileged-daemon":  unprivilegedDaemon,
		"become-root":          becomeRoot,
	}
}

// cheap is a cost that tests can afford.
var cheap = Cost{Memory: 8, Passes: 1, Lanes: 1}

var bg = context.Background()

// from is a session with a client.
func from(address string) *pipeline.Session {
	return &pipeline.Session{ID: "s1", Entrance: "submission", Peer: netip.AddrPortFrom(netip.MustParseAddr(address), 4711), TLS: "TLS 1.3"}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// is535 checks that credentials were refused, in the words that say nothing.
func is535(t testing.TB, err error) {
	t.Helper()
	if got := reply.Of(err).SMTP(); got != "535 5.7.8 authentication failed" || !errors.Is(err, ErrCredentials) {
		t.Errorf("%q (%v)", got, err)
	}
}

// is454 checks for trouble, whose detail holds a text.
func is454(t testing.TB, err error, text string) {
	t.Helper()
	if got := reply.Of(err).SMTP(); err == nil || got != "454 4.7.0 temporary authentication failure" || !strings.Contains(err.Error(), text) {
		t.Errorf("%q, %v, want %q", got, err, text)
	}
}

// log keeps what is logged.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// take gives what was logged since the last time.
func (l *log) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.b.String()
	l.b.Reset()
	return s
}

// waitFor waits until a text is logged, and takes what was.
func (l *log) waitFor(t *testing.T, text string) {
	t.Helper()
	all := ""
	for range 1000 {
		if all += l.take(); strings.Contains(all, text) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("never logged %q: %s", text, all)
}

// hashed is a cheap hash.
func hashed(t testing.TB, password string, c Cost) string {
	t.Helper()
	return must(Hash(password, c))(t)
}

func save(t testing.TB, path, text string) {
	t.Helper()
	check(t, os.WriteFile(path, []byte(text), 0o600))
}
