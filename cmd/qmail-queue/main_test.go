package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// program is one build of the shim; the tests treat all alike.
type program struct {
	name  string
	path  string
	quick string // the same with short waiting times
	cheap bool   // starts fast enough for hundreds of runs
	plain bool   // C without sanitizers: runs in little memory and without threads
}

// built is what TestMain has made.
var built struct {
	programs []program
	dir      string // anybody may enter it
	socket   string // the socket path that is compiled in
}

// roleVariable makes the test binary run a program under limits, see confine.
const roleVariable = "SHIM_TEST_CONFINE"

func TestMain(m *testing.M) {
	if limits, ok := os.LookupEnv(roleVariable); ok {
		confine(limits)
	}
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil { // the tests mostly wait
		panic(err)
	}
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return 0, err
	}
	built.dir, built.socket = dir, filepath.Join(dir, "default.sock")
	goBuild := func(name string, more ...string) error {
		args := append([]string{"build", "-trimpath", "-ldflags", "-s -w -X main.socketPath=" + built.socket, "-o", filepath.Join(dir, name)}, more...)
		return command("go", append(args, ".")...)
	}
	if err := errors.Join(goBuild("go"), goBuild("go-quick", "-tags", "quick")); err != nil {
		return 0, err
	}
	built.programs = []program{{name: "Go", path: filepath.Join(dir, "go"), quick: filepath.Join(dir, "go-quick"), cheap: true}}
	if _, err := exec.LookPath("cc"); err != nil {
		if os.Getenv("CI") == "true" {
			return 0, errors.New("no C compiler: install cc, the C shim must be tested")
		}
		fmt.Fprintln(os.Stderr, "note: no C compiler, only the Go twin is tested")
		return m.Run(), nil
	}
	cc := func(name string, more ...string) error {
		args := []string{"-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", `-DPOSTERN_SOCKET_PATH="` + built.socket + `"`, "-o", filepath.Join(dir, name)}
		return command("cc", append(append(args, more...), "c/qmail-queue.c")...)
	}
	if err := errors.Join(cc("c", "-static"), cc("c-quick", "-static", "-DPOSTERN_QUICK")); err != nil {
		return 0, err
	}
	built.programs = append(built.programs, program{name: "C", path: filepath.Join(dir, "c"), quick: filepath.Join(dir, "c-quick"), cheap: true, plain: true})
	sanitize := []string{"-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"}
	if err := errors.Join(cc("san", sanitize...), cc("san-quick", append(sanitize, "-DPOSTERN_QUICK")...)); err != nil {
		fmt.Fprintln(os.Stderr, "note: the C shim is not tested with sanitizers:", err)
	} else {
		built.programs = append(built.programs, program{name: "Sanitized", path: filepath.Join(dir, "san"), quick: filepath.Join(dir, "san-quick")})
	}
	return m.Run(), nil
}

func command(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// each runs a test for every build of the shim.
func each(t *testing.T, test func(t *testing.T, p program)) {
	eachOf(t, func(program) bool { return true }, test)
}

// eachOf runs a test for the builds that it is about.
func eachOf(t *testing.T, about func(program) bool, test func(t *testing.T, p program)) {
	t.Parallel()
	for _, p := range built.programs {
		if !about(p) {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			test(t, p)
		})
	}
}

// confine becomes the program that the arguments name, under limits such as "uid=65533 nproc=0 as=8000000".
func confine(limits string) {
	set := func(resource int, value uint64) error {
		return syscall.Setrlimit(resource, &syscall.Rlimit{Cur: value, Max: value})
	}
	os.Unsetenv(roleVariable)
	args, env := os.Args[1:], os.Environ()
	var err error
	for _, limit := range strings.Fields(limits) {
		name, value, _ := strings.Cut(limit, "=")
		n, bad := strconv.Atoi(value)
		switch name {
		case "uid":
			err = errors.Join(syscall.Setgroups(nil), syscall.Setgid(n), syscall.Setuid(n))
		case "nproc":
			const nproc = 6
			err = set(nproc, uint64(n))
		case "as":
			err = set(syscall.RLIMIT_AS, uint64(n))
		case "ignore":
			signal.Ignore(syscall.Signal(n))
		default:
			bad = errors.New("unknown limit")
		}
		if err = errors.Join(err, bad); err != nil {
			break
		}
	}
	if err == nil {
		err = syscall.Exec(args[0], args, env)
	}
	fmt.Fprintln(os.Stderr, "confine", limits, err)
	os.Exit(125)
}
