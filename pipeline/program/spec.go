package program

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Spec is what to start, and what it has.
type Spec struct {
	// Path is the program's absolute path.
	Path string
	// Args includes argv[0]; if it is empty, the path is the only one.
	Args []string
	// Env is the whole environment, NAME=VALUE; nil is an empty one.
	Env []string
	// Dir is the absolute path of the working directory, "/" if it is "".
	Dir string
	// Files are the program's descriptors by number, 0 to MaxFile, lent for the
	// call of Start. 0, 1 and 2 that are missing are /dev/null; nothing else is
	// open. As by exec.Cmd they are put into blocking mode.
	Files map[int]*os.File
	// User is the name or number of one of Options.Users; "" is the daemon's own.
	User string
	// Limits are what each of its processes may use.
	Limits Limits
}

// Limits are what each process of a program may use. A field that is 0 has its
// default, Unlimited leaves what the daemon itself may use.
type Limits struct {
	Memory   int64 // private and writable, in bytes (RLIMIT_DATA)
	FileSize int64 // of the files that it writes, in bytes (RLIMIT_FSIZE)
	Files    int64 // open descriptors (RLIMIT_NOFILE)
	CPU      int64 // processor time, in seconds (RLIMIT_CPU); then SIGXCPU, a second later SIGKILL
}

// Unlimited is the value of a limit that is none.
const Unlimited = -1

// The defaults of Limits. A program that runs for long, as a server does, needs
// another one for its processor time.
const (
	DefaultMemory   = 2 << 30
	DefaultFileSize = 4 << 30
	DefaultFiles    = 512
	DefaultCPU      = 300
)

// The bounds of a Spec.
const (
	// MaxFile is the highest number of a program's descriptor.
	MaxFile = 250
	// MaxSpec is how long path, directory, arguments and environment may be
	// together, in bytes. The kernel may take less.
	MaxSpec  = 8 << 20
	maxWords = 100_000
)

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		value *int64
		or    int64
	}{{&l.Memory, DefaultMemory}, {&l.FileSize, DefaultFileSize}, {&l.Files, DefaultFiles}, {&l.CPU, DefaultCPU}} {
		if *f.value == 0 {
			*f.value = f.or
		}
	}
	return l
}

// check says what is wrong with a spec.
func (s *Spec) check() error {
	size := len(s.Path) + len(s.Dir)
	if !filepath.IsAbs(s.Path) {
		return &StartError{Path: s.Path, Err: errors.New("its path is not absolute"), Kind: ErrNotFound}
	}
	if s.Dir != "" && !filepath.IsAbs(s.Dir) {
		return fmt.Errorf("the directory of %s: %q is not an absolute path", s.Path, s.Dir)
	}
	for _, words := range [][]string{{s.Path, s.Dir}, s.Args, s.Env} {
		if len(words) > maxWords {
			return &StartError{Path: s.Path, Err: fmt.Errorf("%d arguments or variables", len(words)), Kind: ErrShortage}
		}
		for _, w := range words {
			if strings.IndexByte(w, 0) >= 0 {
				return fmt.Errorf("%s: an argument or variable holds a NUL", s.Path)
			}
			size += len(w)
		}
	}
	if size > MaxSpec {
		return &StartError{Path: s.Path, Err: fmt.Errorf("arguments and environment have %d bytes", size), Kind: ErrShortage}
	}
	for n, f := range s.Files {
		if n < 0 || n > MaxFile {
			return fmt.Errorf("%s: it cannot have a descriptor %d: 0 to %d", s.Path, n, MaxFile)
		}
		if f == nil {
			return fmt.Errorf("%s: descriptor %d: %w", s.Path, n, os.ErrInvalid)
		}
	}
	l := s.Limits
	for _, n := range []int64{l.Memory, l.FileSize, l.Files, l.CPU} {
		if n < Unlimited {
			return fmt.Errorf("%s: a limit of %d", s.Path, n)
		}
	}
	return nil
}
