package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/queuetest"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store/pebble"
)

// cmdWaitQueue waits until a rule chooses so many messages.
func cmdWaitQueue(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	client := admin.NewClient(filepath.Join(ts.Getenv("RUN"), "admin.sock"))
	n := 0
	for range 400 {
		n = 0
		_, err := client.Queue(context.Background(), admin.QueueQuery{Match: args[0]}, func(*api.QueueMessage) error {
			n++
			return nil
		})
		ts.Check(err)
		if n == want {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	ts.Fatalf("%d messages with %s, not %d", n, args[0], want)
}

// sick is a store with problems.
type sick struct{ problems []string }

func (sick) Stats() pebble.Stats { return pebble.Stats{} }

func (s sick) Verify(_ context.Context, report func(string)) error {
	for _, p := range s.problems {
		report(p)
	}
	return nil
}

type nowhere struct{}

func (nowhere) Deliver(context.Context, *queue.Job) ([]queue.Result, schedule.Health) {
	return nil, schedule.Unchanged
}

// newDoor opens an operator's door on a queue in memory that delivers nothing.
func newDoor(t *testing.T, s admin.Store) (socket string, q *queue.Queue) {
	t.Helper()
	q, err := queue.Open(queue.Options{
		Store: queuetest.NewMemory(nil), Log: slog.New(slog.DiscardHandler), Host: "here.example",
		Route:    func(address string) (channel, domain string) { return remoteChannel, envelope.Domain(address) },
		Channels: []queue.Channel{{Name: remoteChannel, Exit: nowhere{}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(t.TempDir(), "admin.sock")
	door, err := admin.Listen(socket, admin.Daemon{Log: slog.New(slog.DiscardHandler), Status: func() api.Status { return api.Status{} }, Queue: q, Store: s})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- door.Serve() }()
	t.Cleanup(func() {
		if err := errors.Join(door.Shutdown(context.Background()), <-served, q.Close(context.Background())); err != nil {
			t.Error(err)
		}
	})
	return socket, q
}

// postern runs the program.
func postern(args ...string) (exit int, stdout, stderr string) {
	var out, err bytes.Buffer
	exit = run(args, &out, &err)
	return exit, out.String(), err.String()
}

func TestVerifyFinds(t *testing.T) {
	socket, _ := newDoor(t, sick{[]string{"body 1 belongs to no message", "state \x1b[31m"}})
	for _, flag := range []string{"--json=false", "--json"} {
		exit, out, stderr := postern("queue", "verify", "--socket", socket, flag)
		if exit != 1 || !strings.Contains(out, "body 1 belongs to no message") || strings.Contains(out, "\x1b") || stderr != "" {
			t.Errorf("%s: exit %d: %s%s", flag, exit, out, stderr)
		}
	}
}

// TestHostileQueue has the commands tell of a message full of control bytes.
func TestHostileQueue(t *testing.T) {
	socket, q := newDoor(t, sick{})
	address := "a\u009b31m\x9b\u202eb@\u009b\x9b\u202e.example" // the queue takes no other controls
	ids, err := q.Submit(context.Background(), []queue.Submission{{
		Envelope: envelope.To(address, address), Message: message.FromString("Subject: " + hostile + "\n\nbody\n"), Origin: []byte(hostile),
	}})
	if err != nil {
		t.Fatal(err)
	}
	id := ids[0].String()
	for _, args := range [][]string{
		{"queue", "list"},
		{"queue", "list", "--json"},
		{"queue", "show", id},
		{"queue", "show", "--head", id},
		{"queue", "show", "--json", id},
		{"queue", "count", "--by", "sender"},
		{"queue", "count", "--by", "domain", "--json"},
		{"queue", "count", "--by", "site"},
		{"queue", "sites"},
		{"queue", "sites", "--json"},
		{"qread"},
		{"metrics"},
		{"queue", "hold", "--reason", hostile, id},
		{"queue", "show", id},
		{"queue", "count", "--by", "hold"},
		{"queue", "list", "--match", "1 % len(user) == 0"},
		{"queue", "delete", "--match", `sender startsWith "a"`, "--json"},
	} {
		exit, out, stderr := postern(append(args, "--socket", socket)...)
		if exit != 0 {
			t.Errorf("%v: exit %d, %s", args, exit, stderr)
		}
		for _, c := range []string{"\x1b", "\x7f", "\r", "\u009b", "\u202e", "\x9b3", "\x9b\u202e"} {
			if strings.Contains(out+stderr, c) {
				t.Errorf("%v prints %q:\n%q", args, c, out+stderr)
			}
		}
	}
	if exit, out, _ := postern("qstat", "--socket", socket); exit != 0 || out != "messages in queue: 0\nmessages in queue but not yet preprocessed: 0\n" {
		t.Errorf("exit %d: %s", exit, out)
	}
}
