package host

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// Settings are a plugin as configured, the table [plugin.NAME].
type Settings struct {
	// Name is the plugin's, and that of its kind of filter.
	Name string
	// Command is the program's absolute path, and its arguments.
	Command []string
	// SHA256 is what the program's file must be, in hexadecimal; "" is anything.
	SHA256 string
	// User is who it runs as; "" is the daemon's own.
	User string
	// Instances is how many processes of it there are, Concurrency how many calls
	// each of them gets at one time. 0 means the default.
	Instances, Concurrency int
	// Timeout is how long a process may take until it can be asked; 0 means
	// DefaultTimeout.
	Timeout time.Duration
	// Memory bounds each process in bytes, CPU its processor time, at the end of
	// which another one takes its place. 0 is the default, which for CPU is no
	// bound; a negative Memory is none.
	Memory int64
	CPU    time.Duration
	// Env is what stands in its environment beside a few variables.
	Env map[string]string
	// Dir is where it works and keeps what it keeps; "" is a directory that the
	// host makes.
	Dir string
}

// The defaults of Settings.
const (
	DefaultInstances   = 1
	DefaultConcurrency = 16
	DefaultTimeout     = 10 * time.Second
	DefaultMemory      = 1 << 30
)

// The bounds of Settings.
const (
	MaxInstances   = 64
	MaxConcurrency = 1000
)

var pluginName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

func (s Settings) withDefaults() (Settings, error) {
	for _, f := range []struct {
		value *int
		or    int
		most  int
	}{{&s.Instances, DefaultInstances, MaxInstances}, {&s.Concurrency, DefaultConcurrency, MaxConcurrency}} {
		if *f.value == 0 {
			*f.value = f.or
		}
		if *f.value < 1 || *f.value > f.most {
			return s, fmt.Errorf("a number of %d, from 1 to %d", *f.value, f.most)
		}
	}
	if s.Timeout <= 0 {
		s.Timeout = DefaultTimeout
	}
	if s.Memory == 0 {
		s.Memory = DefaultMemory
	}
	switch {
	case !pluginName.MatchString(s.Name):
		return s, fmt.Errorf("the name %q of a plugin: small letters, digits and -, at most 64", s.Name)
	case len(s.Command) == 0 || !filepath.IsAbs(s.Command[0]):
		return s, errors.New("the command of a plugin begins with the absolute path of its program")
	case s.SHA256 != "":
		if sum, err := hex.DecodeString(s.SHA256); err != nil || len(sum) != sha256.Size {
			return s, errors.New("the SHA-256 of a program has 64 hexadecimal digits")
		}
	}
	return s, nil
}

// fingerprint is the same for two plugins that need not be told apart: their
// settings, the program's content, and that of the files which its arguments
// name by absolute paths, as a script's.
func (s Settings) fingerprint() (string, error) {
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(s); err != nil {
		return "", err
	}
	for i, word := range s.Command {
		if !filepath.IsAbs(word) {
			continue
		}
		info, err := os.Stat(word)
		if err == nil && info.Mode().IsRegular() {
			var sum []byte
			if sum, err = sumOf(word); err == nil {
				fmt.Fprintf(h, "%d %x\n", i, sum)
			}
		}
		if err != nil && i == 0 {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func sumOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return sumFile(f)
}

func sumFile(f *os.File) ([]byte, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<40)); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}
