package worker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Main(testJobs())
	goleak.VerifyTestMain(m)
}

// simple makes a job of a function that looks at its arguments only.
func simple(f func(args string) (string, error)) Job {
	return func(_ context.Context, args []byte, _ io.ReaderAt, _ int64, _ *Scratch) ([]byte, error) {
		s, err := f(string(args))
		return []byte(s), err
	}
}

func testJobs() map[string]Job {
	jobs := map[string]Job{
		"sum":     sum,
		"scratch": useScratch,
		"overdue": func(ctx context.Context, _ []byte, _ io.ReaderAt, _ int64, _ *Scratch) ([]byte, error) {
			<-ctx.Done()
			return []byte("in time"), nil
		},
	}
	for name, f := range probes() {
		jobs[name] = simple(f)
	}
	for name, f := range crimes() {
		jobs[name] = simple(f)
	}
	return jobs
}

// sum answers with a digest of args and body.
func sum(_ context.Context, args []byte, body io.ReaderAt, size int64, _ *Scratch) ([]byte, error) {
	h := sha256.New()
	h.Write(args)
	if n, err := io.Copy(h, io.NewSectionReader(body, 0, size)); err != nil || n != size {
		return nil, fmt.Errorf("%d bytes of %d: %w", n, size, err)
	}
	return h.Sum(nil), nil
}

// useScratch writes the body to temporary files of many sizes at once and reads
// it back, then asks for more than there is.
func useScratch(_ context.Context, _ []byte, body io.ReaderAt, size int64, scratch *Scratch) ([]byte, error) {
	if scratch.Used() != 0 {
		return nil, errors.New("the space is not empty")
	}
	a, b := scratch.Temp(), scratch.Temp()
	for _, w := range []io.Writer{a, b, a} {
		if _, err := io.Copy(w, io.NewSectionReader(body, 0, size)); err != nil {
			return nil, err
		}
	}
	h := sha256.New()
	for _, t := range []*Temp{a, b} {
		if _, err := io.Copy(h, io.NewSectionReader(t, 0, t.Size())); err != nil {
			return nil, err
		}
	}
	a.Close()
	more, zeros := scratch.Temp(), make([]byte, 1<<20)
	for range 1 << 10 {
		if _, err := more.Write(zeros); errors.Is(err, ErrScratch) {
			return h.Sum(nil), nil
		} else if err != nil {
			return nil, err
		}
	}
	return nil, errors.New("the space does not end")
}

func errorText(err error) (string, error) {
	if err == nil {
		return "done", nil
	}
	return err.Error(), nil
}

// probes try something that the sandbox forbids without harm, and answer with
// what came of it.
func probes() map[string]func(string) (string, error) {
	return map[string]func(string) (string, error){
		"echo": func(s string) (string, error) { return s, nil },
		"fail": func(s string) (string, error) { return "", errors.New(s) },
		"open": func(s string) (string, error) {
			_, err := os.ReadFile(s)
			return errorText(err)
		},
		"create": func(s string) (string, error) { return errorText(os.WriteFile(s, []byte("x"), 0o600)) },
		"memory file": func(string) (string, error) {
			_, err := unix.MemfdCreate("x", 0)
			return errorText(err)
		},
		"executable": func(string) (string, error) {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
			return errorText(err)
		},
		"write body": func(fd string) (string, error) {
			_, err := unix.Pwrite(int(fd[0]), []byte("x"), 0)
			return errorText(err)
		},
		"self": func(string) (string, error) {
			open := 0
			for fd := range 256 {
				if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
					open++
				}
			}
			return fmt.Sprintf("env=%d fds=%d", len(os.Environ()), open), nil
		},
	}
}

// crimes end badly.
func crimes() map[string]func(string) (string, error) {
	return map[string]func(string) (string, error){
		"socket": func(string) (string, error) {
			_, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			return errorText(err)
		},
		"execute": func(string) (string, error) {
			return errorText(syscall.Exec("/bin/true", []string{"true"}, nil))
		},
		"fork": func(string) (string, error) {
			for range 10_000 {
				if pid, _, _ := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0); pid == 0 {
					time.Sleep(time.Minute)
				}
			}
			return "forked", nil
		},
		"ptrace": func(string) (string, error) { return errorText(syscall.PtraceAttach(os.Getppid())) },
		"kill":   func(string) (string, error) { return errorText(unix.Kill(os.Getppid(), 0)) },
		"allocate": func(string) (string, error) {
			var all [][]byte
			for range 4 << 10 {
				b := make([]byte, 1<<20)
				for i := 0; i < len(b); i += 4096 {
					b[i] = 1
				}
				all = append(all, b)
			}
			return fmt.Sprint(len(all)), nil
		},
		"write 1 GiB": func(string) (string, error) {
			b := make([]byte, 1<<20)
			for i := range 1 << 10 {
				if _, err := unix.Pwrite(scratchFD, b, int64(i)<<20); err != nil {
					return err.Error(), nil
				}
			}
			return "written", nil
		},
		"loop": func(string) (string, error) {
			for i := 0; ; i++ {
				if i < 0 {
					return "", nil
				}
			}
		},
		"stop": func(string) (string, error) {
			_, _, _ = syscall.Syscall(unix.SYS_TGKILL, uintptr(os.Getpid()), uintptr(os.Getpid()), uintptr(unix.SIGSTOP))
			time.Sleep(time.Minute) // the signal may find another thread first
			return "stopped", nil
		},
		"exit 0": func(string) (string, error) { os.Exit(0); return "", nil },
		"panic":  func(s string) (string, error) { panic(s) },
		"overflow": func(string) (string, error) {
			var f func(int) int
			f = func(n int) int { return f(n+1) + f(n+2) }
			return fmt.Sprint(f(0)), nil
		},
		"close": func(string) (string, error) {
			for fd := range 64 {
				unix.Close(fd)
			}
			time.Sleep(time.Minute)
			return "", nil
		},
		"garbage":     func(string) (string, error) { return "", raw(strings.Repeat("garbage", 100)) },
		"truncated":   func(string) (string, error) { return "", raw("short") },
		"long":        func(string) (string, error) { return "", raw(answer(kindAnswer, 1, 1<<30, "x")) },
		"oversize":    func(string) (string, error) { return "", raw(strings.Repeat("x", answerHead+piece+1)) },
		"overlong":    func(string) (string, error) { return "", raw(answer(kindAnswer, 1, 3, "four")) },
		"out of turn": func(string) (string, error) { return "", raw(answer(kindAnswer, 7, 1, "x")) },
		"no kind":     func(string) (string, error) { return "", raw(answer('?', 1, 1, "x")) },
		"hello":       func(string) (string, error) { return "", raw(answer(kindHello, 1, 8, "12345678")) },
		"partial": func(string) (string, error) {
			_ = raw(answer(kindAnswer, 1, 100, "half"))
			time.Sleep(time.Minute)
			return "", nil
		},
		"long error": func(string) (string, error) {
			return "", raw(answer(kindError, 1, maxLine+1, strings.Repeat("e", maxLine+1)))
		},
	}
}

// raw writes to the socket behind the server's back.
func raw(packet string) error {
	_ = write([]byte(packet))
	time.Sleep(time.Minute) // the pool kills
	return nil
}

func answer(kind byte, sequence uint64, length uint32, content string) string {
	b := make([]byte, answerHead)
	answerHeader{kind: kind, sequence: sequence, length: length}.encode(b)
	return string(b) + content
}

func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		io.WriteString(h, p)
	}
	return hex.EncodeToString(h.Sum(nil))
}
