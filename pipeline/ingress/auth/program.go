package auth

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// ProgramOptions of a Program and of a Helper. Only Argv is needed. They hold
// nothing but what can be handed to another process.
type ProgramOptions struct {
	// Argv is the checkpassword program by its absolute path, and its arguments:
	// the program that it becomes after it has said yes, "true" for most.
	Argv []string
	// Env are further variables, "NAME=VALUE", for programs that ask for some
	// (vchkpw for TCPLOCALPORT).
	Env []string
	// Timeout is the longest time that the program may take (0: 30 s).
	Timeout time.Duration
	// Concurrency bounds how many run at a time (0: 10). Further logins wait.
	Concurrency int
	// Memory, CPU and Files are the limits of each: address space in bytes
	// (0: 1 GiB), time, rounded up to seconds (0: 10 s), open files (0: 64). What
	// it writes to one file is bounded too, by 64 MiB, and it dumps no core.
	Memory uint64
	CPU    time.Duration
	Files  uint64
}

// Bounds of the interface (checkpassword's): what is written to descriptor 3,
// and what is kept of what the program prints, in bytes.
const (
	maxRequest = 512
	maxPrinted = 400
)

// maxFileSize is RLIMIT_FSIZE of a checkpassword program.
const maxFileSize = 64 << 20

func (o ProgramOptions) withDefaults() ProgramOptions {
	orTime(&o.Timeout, 30*time.Second)
	orNumber(&o.Concurrency, 10)
	orNumber(&o.Memory, 1<<30)
	orTime(&o.CPU, 10*time.Second)
	orNumber(&o.Files, 64)
	return o
}

// check reports options that no program could be run with.
func (o *ProgramOptions) check() error {
	if len(o.Argv) == 0 || !filepath.IsAbs(o.Argv[0]) {
		return fmt.Errorf("checkpassword program %q: it must be named by its absolute path", o.Argv)
	}
	if slices.ContainsFunc(slices.Concat(o.Argv, o.Env), func(s string) bool { return strings.ContainsRune(s, 0) }) {
		return fmt.Errorf("checkpassword program %q: an argument or a variable holds a NUL", o.Argv)
	}
	for _, v := range o.Env {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" {
			return fmt.Errorf("checkpassword program %q: %q is not NAME=VALUE", o.Argv, v)
		}
	}
	info, err := os.Stat(o.Argv[0])
	switch {
	case err != nil:
		return fmt.Errorf("checkpassword program: %w", err)
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fmt.Errorf("checkpassword program %s: it is not an executable file", o.Argv[0])
	case os.Geteuid() == 0:
		return ownedByRoot(o.Argv[0])
	}
	return nil
}

// ownedByRoot reports a program that somebody other than root could replace, be
// it by a directory above it.
func ownedByRoot(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("checkpassword program: %w", err)
	}
	for {
		info, err := os.Stat(real)
		if err != nil {
			return fmt.Errorf("checkpassword program: %w", err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		// Others cannot replace what is not theirs in a sticky directory.
		open := info.Mode()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0
		if !ok || st.Uid != 0 || open {
			return fmt.Errorf("checkpassword program %s: it would run as root, and %s can be changed by others: chown root, chmod go-w", path, real)
		}
		if real == "/" {
			return nil
		}
		real = filepath.Dir(real)
	}
}

// Program asks a checkpassword program, run as the user that we are. Descriptor
// 3 holds the user, the password and an empty timestamp, each ended by a NUL, as
// the AUTH patches of qmail-smtpd write them for PLAIN and LOGIN; exit 0 is yes,
// 1 is no, 111 and everything else is trouble, and so is a yes from a program
// that did not read what it was to judge.
//
// The program runs in a process group of its own, at the root directory, with
// PATH, PROTO, TCPREMOTEIP and TCPREMOTEPORT (and TCP6REMOTEIP, PROTO=TCP6) and
// ProgramOptions.Env for its environment. Its limits are set before it is given
// the password; a setuid program cannot be given any, and is logged once. What
// it prints is kept in part for the log. At its deadline, or when the client is
// gone, the group is killed, and also when the program itself has ended.
type Program struct {
	o       ProgramOptions
	log     *slog.Logger
	running slots
	noLimit sync.Once
}

// NewProgram checks the options. The program is not run. A nil log means
// slog.Default.
func NewProgram(o ProgramOptions, log *slog.Logger) (*Program, error) {
	if log == nil {
		log = slog.Default()
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	return &Program{o: o, log: log, running: make(slots, o.Concurrency)}, nil
}

// Authenticate runs the program.
func (p *Program) Authenticate(ctx context.Context, s *pipeline.Session, user, password string) (string, error) {
	q := question{user: user, password: password, peer: s.Peer}
	if err := q.check(); err != nil {
		return "", err
	}
	if err := p.running.take(ctx); err != nil {
		return "", trouble(err)
	}
	return p.ask(ctx, q).result(user)
}

// question is what a checkpassword program is asked.
type question struct {
	user, password string
	peer           netip.AddrPort
}

// check refuses what the interface cannot carry.
func (q question) check() error {
	if err := plausible(q.user, q.password); err != nil {
		return err
	}
	if len(q.user)+len(q.password)+3 > maxRequest {
		return refused("user and password are too long for a checkpassword program")
	}
	return nil
}

// answer is what came of a question.
type answer struct {
	code   answerCode
	detail string // for the log, one clean line
}

type answerCode uint8

// The answers; the zero one is trouble.
const (
	answerTrouble answerCode = iota
	answerYes
	answerNo
)

// result is the answer as a Backend gives it.
func (a answer) result(user string) (string, error) {
	switch a.code {
	case answerYes:
		return user, nil
	case answerNo:
		return "", refused(a.detail)
	}
	return "", trouble(errors.New(a.detail))
}

func troubled(format string, args ...any) answer {
	return answer{detail: reply.Clean("checkpassword program: "+fmt.Sprintf(format, args...), maxPrinted+200)}
}

// unkillable is how long a program that was killed may take to be gone.
const unkillable = 2 * time.Second

// ask runs the program and gives back the slot that the caller took. A program
// that cannot be killed, because it has become somebody else, keeps its slot.
func (p *Program) ask(ctx context.Context, q question) answer {
	ctx, cancel := context.WithTimeout(ctx, p.o.Timeout)
	done := make(chan answer, 1)
	go func() {
		defer cancel()
		defer p.running.give()
		done <- p.run(ctx, q)
	}()
	select {
	case a := <-done:
		return a
	case <-ctx.Done():
	}
	late := time.NewTimer(unkillable)
	defer late.Stop()
	select {
	case a := <-done:
		return a
	case <-late.C:
		return troubled("it did not end in time, and cannot be killed: it runs as another user; a helper that runs as root could")
	}
}

// environment is what the program gets.
func (p *Program) environment(peer netip.AddrPort) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	address := peer.Addr().Unmap().WithZone("")
	switch {
	case !address.IsValid():
	case address.Is4():
		env = append(env, "PROTO=TCP", "TCPREMOTEIP="+address.String(), fmt.Sprintf("TCPREMOTEPORT=%d", peer.Port()))
	default:
		env = append(env, "PROTO=TCP6", "TCPREMOTEIP="+address.String(), "TCP6REMOTEIP="+address.String(), fmt.Sprintf("TCPREMOTEPORT=%d", peer.Port()))
	}
	return append(env, p.o.Env...)
}

// limits sets the limits of a process that has not read its password yet.
func (p *Program) limits(pid int) error {
	seconds := uint64((p.o.CPU + time.Second - 1) / time.Second)
	for _, l := range []struct {
		resource int
		most     uint64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_AS, p.o.Memory},
		{unix.RLIMIT_CPU, seconds},
		{unix.RLIMIT_NOFILE, p.o.Files},
		{unix.RLIMIT_FSIZE, maxFileSize},
	} {
		// Nobody but root may raise a limit, and nobody needs to here.
		var old unix.Rlimit
		if err := unix.Prlimit(pid, l.resource, nil, &old); err != nil {
			return err
		}
		most := min(l.most, old.Max)
		if err := unix.Prlimit(pid, l.resource, &unix.Rlimit{Cur: most, Max: most}, nil); err != nil {
			return err
		}
	}
	return nil
}
