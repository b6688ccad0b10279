package handoff

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// shimRole makes the test binary a shim, a process of its own; its value is
// the socket's path.
const shimRole = "HANDOFF_TEST_SHIM"

// privilegedRole has it say that it runs with more rights than its caller.
const privilegedRole = "HANDOFF_TEST_PRIVILEGED"

func TestMain(m *testing.M) {
	if path, ok := os.LookupEnv(shimRole); ok {
		shimMain(path)
	}
	goleak.VerifyTestMain(m)
}

// shimMain does what the shim does, without its care for daemons that fail.
func shimMain(path string) {
	os.Unsetenv(shimRole)
	var flags wire.Flags
	if _, ok := os.LookupEnv(privilegedRole); ok {
		flags = wire.FlagPrivileged
	}
	c, err := dial(path)
	if err == nil {
		err = c.hello(os.Environ(), flags, 0, 1)
	}
	if err != nil {
		syscall.Exit(71)
	}
	r, err := c.converse()
	switch {
	case err != nil:
		syscall.Exit(71)
	case r.exit != nil:
		fmt.Fprint(os.Stderr, r.exit.Text)
		syscall.Exit(int(r.exit.Code))
	case r.next.Mode == wire.ModeExec:
		p := r.pairs[0]
		if unix.Dup2(int(p.message.Fd()), 0) == nil && unix.Dup2(int(p.envelope.Fd()), 1) == nil {
			syscall.Exec(r.next.Path, []string{r.next.Path}, os.Environ())
		}
		c.send(wire.Result{Exit: 71}.Append(nil))
		syscall.Exit(71)
	}
	syscall.Exit(71)
}

// client is the shim's end of a connection.
type client struct {
	conn *net.UnixConn
	in   []byte
	oob  []byte
}

func dial(path string) (*client, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: path})
	if err != nil {
		return nil, err
	}
	return &client{conn, make([]byte, wire.MaxPacket+1), make([]byte, 1024)}, nil
}

func (c *client) send(packet []byte, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := c.conn.WriteMsgUnix(packet, oob, nil)
	return err
}

// hello sends it whole.
func (c *client) hello(env []string, flags wire.Flags, fds ...int) error {
	args := wire.AppendEntries(nil, "qmail-queue")
	lists, cut := wire.AppendEnvironment(args, env)
	h := wire.Hello{Program: wire.ProgramQueue, Flags: flags, PPID: 1, Argc: 1, ArgsLen: uint32(len(args)), EnvLen: uint32(len(lists) - len(args))}
	if cut {
		h.Flags |= wire.FlagEnvironmentCut
	}
	k := min(len(lists), wire.MaxChunk)
	h.Chunk = lists[:k]
	err := c.send(h.Append(nil), fds...)
	for lists = lists[k:]; err == nil && len(lists) > 0; lists = lists[k:] {
		k = min(len(lists), wire.MaxChunk)
		err = c.send(wire.Data{Chunk: lists[:k]}.Append(nil))
	}
	return err
}

// result is what the daemon said in the end.
type result struct {
	accepted wire.Accepted
	beats    int
	envelope bool
	exit     *wire.Exit
	next     *wire.Next
	pairs    []pair
}

func (r *result) close() {
	for _, p := range r.pairs {
		p.close()
	}
}

// packet receives one.
func (c *client) packet() ([]byte, []int, error) {
	c.conn.SetReadDeadline(time.Now().Add(patience))
	n, oobn, flags, _, err := c.conn.ReadMsgUnix(c.in, c.oob)
	if err != nil {
		return nil, nil, err
	}
	if n == 0 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return nil, nil, io.ErrUnexpectedEOF
	}
	fds, err := descriptors(c.oob[:oobn])
	return c.in[:n], fds, err
}

// step takes one packet into account; done is after X or the last P.
func (c *client) step(r *result) (done bool, err error) {
	packet, fds, err := c.packet()
	if err != nil {
		return false, err
	}
	switch wire.KindOf(packet) {
	case wire.KindAccepted:
		r.accepted, err = wire.ParseAccepted(packet)
	case wire.KindBeat:
		r.beats++
		_, err = wire.ParseBeat(packet)
	case wire.KindEnvelope:
		r.envelope = true
	case wire.KindExit:
		var x wire.Exit
		x, err = wire.ParseExit(packet)
		r.exit = &x
		return true, err
	case wire.KindNext:
		var next wire.Next
		next, err = wire.ParseNext(packet)
		r.next = &next
	case wire.KindPair:
		p, err := wire.ParsePair(packet)
		if err != nil || len(fds) != 2 || int(p.Index) != len(r.pairs) {
			return false, errors.Join(err, errors.New("bad pair"))
		}
		r.pairs = append(r.pairs, pair{os.NewFile(uintptr(fds[0]), "message"), os.NewFile(uintptr(fds[1]), "envelope")})
		return len(r.pairs) == int(r.next.Count), nil
	default:
		err = fmt.Errorf("packet %q", packet)
	}
	return false, err
}

func (c *client) converse() (r result, err error) {
	for done := false; !done && err == nil; {
		done, err = c.step(&r)
	}
	return r, err
}

// daemon is a server with a sink and a log that tests can look into.
type daemon struct {
	t    *testing.T
	srv  *Server
	path string
	dir  string
	sink *sink
	log  *journal
	done chan error
	// of slowDaemon: a filter has begun; it may end
	judging, judged chan struct{}
}

// newDaemon serves with a chain of filters under both names, and stops in the
// end.
func newDaemon(t *testing.T, change func(*Options), steps ...pipeline.Step) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "handoff")
	check(t, err)
	check(t, os.Chmod(dir, 0o755))
	d := &daemon{t: t, dir: dir, path: filepath.Join(dir, "s"), sink: &sink{}, log: &journal{lines: make(chan map[string]any, 1000)}, done: make(chan error, 1)}
	spool, err := message.OpenDirectory(filepath.Join(dir, "spool"))
	check(t, err)
	o := Options{
		Log: slog.New(slog.NewJSONHandler(d.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Path: d.path,
		Chains: chains(t, steps...), Sink: d.sink, Spool: spool, Trusted: []uint32{0},
		MaxPerUser: 100, Beat: time.Minute, Dialect: wire.DialectNotqmail,
	}
	if change != nil {
		change(&o)
	}
	d.srv, err = New(o)
	check(t, err)
	go func() { d.done <- d.srv.Serve(context.Background()) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := d.srv.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-d.done; err != nil {
			t.Error(err)
		}
		if left := d.spooled(); len(left) > 0 {
			t.Errorf("left in the spool: %v", left)
		}
		os.RemoveAll(dir)
	})
	return d
}

func (d *daemon) spooled() []string {
	entries, err := os.ReadDir(filepath.Join(d.dir, "spool"))
	if err != nil {
		d.t.Error(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func chains(t *testing.T, steps ...pipeline.Step) *pipeline.Generations {
	t.Helper()
	var all []*pipeline.Chain
	for _, name := range []string{"inbound", "local"} {
		c, err := pipeline.NewChain(name, steps, pipeline.ChainOptions{})
		check(t, err)
		all = append(all, c)
	}
	gs := &pipeline.Generations{}
	check(t, gs.Swap(pipeline.NewGeneration(1, all...)))
	return gs
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// connect is a shim that has not said hello.
func (d *daemon) connect() *client {
	d.t.Helper()
	c, err := dial(d.path)
	check(d.t, err)
	d.t.Cleanup(func() { c.conn.Close() })
	return c
}

// pipe makes a pipe whose ends are closed in the end.
func (d *daemon) pipe() (r, w *os.File) {
	d.t.Helper()
	var fds [2]int
	check(d.t, unix.Pipe2(fds[:], unix.O_CLOEXEC)) // blocking, as a caller's
	r, w = os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	d.t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// fed is a pipe's reading end with content in it.
func (d *daemon) fed(content string) *os.File {
	d.t.Helper()
	r, w := d.pipe()
	go func() {
		io.WriteString(w, content)
		w.Close()
	}()
	return r
}

// call hands a message over and returns what came back.
func (d *daemon) call(env []string, content, list string) result {
	d.t.Helper()
	return d.callWith(env, d.fed(content), d.fed(list))
}

func (d *daemon) callWith(env []string, content, list *os.File) result {
	d.t.Helper()
	c := d.connect()
	check(d.t, c.hello(env, 0, int(content.Fd()), int(list.Fd())))
	content.Close()
	list.Close()
	r, err := c.converse()
	check(d.t, err)
	d.t.Cleanup(r.close)
	if r.exit != nil {
		c.conn.Close()
	}
	return r
}

// exits is call for where an exit code is wanted.
func (d *daemon) exits(want int, content, list string) map[string]any {
	d.t.Helper()
	r := d.call(nil, content, list)
	if r.exit == nil || int(r.exit.Code) != want {
		d.t.Fatalf("%+v, want exit %d", r.exit, want)
	}
	return d.log.line(d.t)
}

// hangsUp waits until the daemon has closed the connection.
func (c *client) hangsUp(t *testing.T) {
	t.Helper()
	for {
		_, fds, err := c.packet()
		closeAll(fds)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the daemon does not hang up")
		}
		if err != nil {
			return
		}
	}
}

// until waits for a condition.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

// journal takes log lines in JSON.
type journal struct {
	lines chan map[string]any
	mu    sync.Mutex
	all   []map[string]any
	raw   bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	var line map[string]any
	if err := json.Unmarshal(b, &line); err != nil {
		return 0, err
	}
	j.mu.Lock()
	j.all = append(j.all, line)
	j.raw.Write(b)
	j.mu.Unlock()
	if line["msg"] == "message" {
		j.lines <- line
	}
	return len(b), nil
}

// line is the next message's.
func (j *journal) line(t *testing.T) map[string]any {
	t.Helper()
	select {
	case l := <-j.lines:
		return l
	case <-time.After(patience):
		t.Fatal("no line for the message in the log")
	}
	return nil
}

// has reports whether a line's text holds some words.
func (j *journal) has(words string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.ContainsFunc(j.all, func(l map[string]any) bool { return strings.Contains(fmt.Sprint(l), words) })
}

// sink keeps what it is given as text.
type sink struct {
	mu     sync.Mutex
	stored []stored
	reply  reply.Reply
	err    error
	// begun, if set, is sent to when Submit begins; it then waits for ctx or resume.
	begun, resume chan struct{}
	// deaf has it store the message though ctx has ended: it had begun to commit.
	deaf bool
}

type stored struct {
	pipeline.Outgoing
	text string
}

func (s *sink) Submit(ctx context.Context, all []pipeline.Outgoing) (reply.Reply, error) {
	if s.begun != nil {
		s.begun <- struct{}{}
		select {
		case <-ctx.Done():
		case <-s.resume:
		}
	}
	if ctx.Err() != nil && !s.deaf {
		return reply.Trouble, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return reply.Reply{}, s.err
	}
	for _, o := range all {
		s.stored = append(s.stored, stored{o, string(o.Message.Bytes())})
	}
	if s.reply != (reply.Reply{}) {
		return s.reply, nil
	}
	return reply.OK, nil
}

func (s *sink) all() []stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.stored)
}

// filter is a filter of one function.
type filter func(context.Context, *pipeline.Transaction, message.Message) (pipeline.Verdict, error)

func (f filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return f, nil }
func (f filter) Close() error                                                       { return nil }

func (f filter) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	return f(ctx, tx, m)
}

func step(f filter) pipeline.Step { return pipeline.Step{Name: "stub", Filter: f} }

// says is a filter with one verdict.
func says(v pipeline.Verdict) pipeline.Step {
	return step(func(context.Context, *pipeline.Transaction, message.Message) (pipeline.Verdict, error) { return v, nil })
}

const (
	mail = "From: a@example.org\nMessage-ID: <1@example.org>\n\nbody\n"
	list = "Fa@example.org\x00Tb@example.net\x00\x00"
)
