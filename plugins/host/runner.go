package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline/program"
)

// maxHandshake bounds the line by which a plugin says where it listens.
const maxHandshake = 4 << 10

// binaryFile is the descriptor by which a plugin's program is executed, and
// that an interpreter reads it from.
const binaryFile = 3

// runner is a plugin's program as go-plugin wants to start it: a runner.Runner.
// It hands its standard output to go-plugin as far as the first line, and what
// comes after that, and its standard error, to the log.
type runner struct {
	settings *Settings
	place    *place
	programs Programs
	log      *slog.Logger
	out, err *lines
	env      []string // go-plugin's own

	binary *binary
	// process is set when it has been started, by go-plugin's goroutine, and
	// aborted by who has lost patience.
	process   atomic.Pointer[program.Process]
	aborted   atomic.Bool
	killed    atomic.Bool // before it had ended by itself
	handshake *io.PipeReader
	reading   sync.WaitGroup
	sockets   string // the directory of its sockets
	address   string // of the one where it listens
}

func newRunner(s *Settings, p *place, number uint64, programs Programs, log *slog.Logger, now func() time.Time) *runner {
	return &runner{
		settings: s, place: p, programs: programs, log: log, sockets: filepath.Join(p.run, strconv.FormatUint(number, 36)),
		out: newLines(log, "stdout", slog.LevelInfo, now), err: newLines(log, "stderr", slog.LevelInfo, now),
	}
}

// Start starts the program.
func (r *runner) Start(context.Context) (err error) {
	if r.binary, err = openBinary(r.settings.Command[0], r.settings.SHA256); err != nil {
		return err
	}
	if err := makeSockets(r.sockets); err != nil {
		return errors.Join(err, r.undo())
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return errors.Join(err, r.undo())
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return errors.Join(err, outR.Close(), outW.Close(), r.undo())
	}
	started, err := r.programs.Start(r.spec(outW, errW))
	outW.Close()
	errW.Close()
	if err != nil {
		outR.Close()
		errR.Close()
		return errors.Join(r.reword(err), r.undo())
	}
	if r.process.Store(started); r.aborted.Load() {
		r.killed.Store(true)
		started.Kill()
	}
	handshake, first := io.Pipe()
	r.handshake = handshake
	r.reading.Add(2)
	go func() {
		defer r.reading.Done()
		defer outR.Close()
		r.readOut(outR, first)
	}()
	go func() {
		defer r.reading.Done()
		defer errR.Close()
		r.err.drain(errR)
	}()
	return nil
}

// undo gives up what a program that is not started would have had.
func (r *runner) undo() error { return errors.Join(r.binary.Close(), os.RemoveAll(r.sockets)) }

// makeSockets makes the directory of a process's sockets, which is ours so that
// we can remove whatever the process leaves in it. Those who may not enter the
// one above it do not come here either. That one is the plugin's, who may put
// something else here at any time: what is opened is changed, and nothing that a
// link points to.
func makeSockets(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return errors.Join(unix.Fchmod(fd, 0o777|unix.S_ISGID), unix.Close(fd))
}

// reword tells of an error without the descriptor's path.
func (r *runner) reword(err error) error {
	var e *program.StartError
	if errors.As(err, &e) {
		return fmt.Errorf("%w: %w", e.Kind, e.Err)
	}
	return err
}

func (r *runner) spec(out, errs *os.File) program.Spec {
	s := r.settings
	limits := program.Limits{Memory: max(s.Memory, program.Unlimited), CPU: program.Unlimited, Files: maxFiles}
	if s.CPU > 0 {
		limits.CPU = max(1, int64(s.CPU/time.Second))
	}
	return program.Spec{
		Path: "/proc/self/fd/" + strconv.Itoa(binaryFile), Args: s.Command, Env: r.environment(), Dir: r.place.state,
		Files: map[int]*os.File{1: out, 2: errs, binaryFile: r.binary.File}, User: s.User, Limits: limits,
	}
}

// maxFiles is how many descriptors a plugin may have open.
const maxFiles = 4096

// environment is a plugin's: what go-plugin tells it, a few variables that
// programs cannot do without, and what the administrator names.
func (r *runner) environment() []string {
	env := map[string]string{"PATH": searchPath, "HOME": r.place.state, "TMPDIR": r.place.state, "LANG": "C.UTF-8"}
	for name, value := range r.settings.Env {
		env[name] = value
	}
	for _, v := range r.env {
		if name, value, ok := strings.Cut(v, "="); ok {
			env[name] = value
		}
	}
	env[plugin.EnvUnixSocketDir] = r.sockets
	if !r.place.own {
		// The directory gives the socket our group; this has the plugin let it in.
		env[plugin.EnvUnixSocketGroup] = strconv.Itoa(os.Getegid())
	}
	all := make([]string, 0, len(env))
	for name, value := range env {
		all = append(all, name+"="+value)
	}
	slices.Sort(all)
	return all
}

// searchPath is where plugins find programs.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// readOut gives the first line to go-plugin and the rest to the log.
func (r *runner) readOut(out io.Reader, first *io.PipeWriter) {
	b := bufio.NewReaderSize(out, maxHandshake)
	line, err := b.ReadSlice('\n')
	switch {
	case err == nil:
		first.Write(line) //nolint:errcheck // nobody listens any more
	case len(line) > 0:
		r.out.Write(line) //nolint:errcheck // it never fails
	}
	first.Close()
	r.out.drain(b)
}

// Stdout is the first line.
func (r *runner) Stdout() io.ReadCloser { return r.handshake }

// Stderr is empty: it goes to the log by itself.
func (r *runner) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name is the program.
func (r *runner) Name() string { return r.settings.Command[0] }

// ID is the process number.
func (r *runner) ID() string {
	if p := r.process.Load(); p != nil {
		return strconv.Itoa(p.Pid())
	}
	return "" // it has not been started, and there is nothing to kill
}

// Diagnose has nothing to add.
func (r *runner) Diagnose(context.Context) string { return "" }

// Wait waits for the program's end.
func (r *runner) Wait(context.Context) error {
	<-r.process.Load().Done()
	return nil
}

// Kill kills it, with all that it has started.
func (r *runner) Kill(context.Context) error {
	r.abort()
	return nil
}

// abort kills it, or has it be killed as soon as it is started.
func (r *runner) abort() {
	r.aborted.Store(true)
	p := r.process.Load()
	if p == nil {
		return
	}
	select {
	case <-p.Done():
	default:
		r.killed.Store(true)
		p.Kill()
	}
}

// HostToPlugin is of no use here.
func (r *runner) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

// PluginToHost looks at where the plugin says that it listens: a socket in the
// directory that it was given. We talk to nobody else.
func (r *runner) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" || filepath.Dir(address) != r.sockets || filepath.Clean(address) != address {
		return "", "", fmt.Errorf("it says that it listens on %.80q %.200q, which is no Unix socket in the directory of $%s", network, address, plugin.EnvUnixSocketDir)
	}
	info, err := os.Lstat(address)
	if err != nil {
		return "", "", fmt.Errorf("its socket: %w", err)
	}
	if info.Mode()&os.ModeType != os.ModeSocket {
		return "", "", fmt.Errorf("it says that it listens on %.200q, which is no socket", address)
	}
	r.address = address
	return network, address, nil
}

// dial connects to the plugin. What stands at the address is the plugin's to
// choose, and may be a link to somebody else's socket, who talks to us because of
// who we are; so the listener must be the plugin's user.
func (r *runner) dial(ctx context.Context, _ string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", r.address)
	if err != nil {
		return nil, err
	}
	if err := r.listens(c); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// listens looks whether the plugin is at the other end.
func (r *runner) listens(c net.Conn) error {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("a connection that is a %T", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	if raised := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); raised != nil {
		return raised
	}
	if err == nil && peer.Uid != r.place.plugin {
		err = fmt.Errorf("uid %d listens on its socket, not %d", peer.Uid, r.place.plugin)
	}
	return err
}

// end waits until nothing of the program is left, and tidies up.
func (r *runner) end() {
	p := r.process.Load()
	if p == nil {
		return
	}
	<-p.Done()
	r.handshake.Close()
	r.reading.Wait()
	os.RemoveAll(r.sockets) //nolint:errcheck // the next start sweeps what is left behind
	r.binary.Close()
}
