package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
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
	quick string // the same with a short time for reading
	plain bool   // C without sanitizers: runs in little memory
}

// built is what TestMain has made.
var built struct {
	programs []program
	dir      string
}

// roleVariable makes the test binary become a program in as many bytes of
// address space as it says.
const roleVariable = "SHIM_TEST_SPACE"

func TestMain(m *testing.M) {
	if space, ok := os.LookupEnv(roleVariable); ok {
		confine(space)
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

// confine becomes the program that the arguments name, as under softlimit -m.
func confine(space string) {
	n, err := strconv.Atoi(space)
	if err == nil {
		err = syscall.Setrlimit(syscall.RLIMIT_AS, &syscall.Rlimit{Cur: uint64(n), Max: uint64(n)})
	}
	if err == nil {
		os.Unsetenv(roleVariable)
		err = syscall.Exec(os.Args[1], os.Args[1:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, "confine", err)
	os.Exit(125)
}

func buildAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	built.dir = dir
	path := func(name string) string { return filepath.Join(dir, name) }
	goBuild := func(name string, more ...string) error {
		args := append([]string{"build", "-trimpath", "-ldflags", "-s -w -X main.socketPath=" + path("default.sock"), "-o", path(name)}, more...)
		return command("go", append(args, ".")...)
	}
	if err := errors.Join(goBuild("go"), goBuild("go-quick", "-tags", "quick")); err != nil {
		return 0, err
	}
	built.programs = []program{{name: "Go", path: path("go"), quick: path("go-quick")}}
	if _, err := exec.LookPath("cc"); err != nil {
		if os.Getenv("CI") == "true" {
			return 0, errors.New("no C compiler: install cc, the C shim must be tested")
		}
		fmt.Fprintln(os.Stderr, "note: no C compiler, only the Go twin is tested")
		return m.Run(), nil
	}
	cc := func(name string, more ...string) error {
		args := []string{"-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", `-DPOSTERN_REMOTE_SOCKET_PATH="` + path("default.sock") + `"`, "-o", path(name)}
		return command("cc", append(append(args, more...), "c/qmail-remote.c")...)
	}
	if err := errors.Join(cc("c", "-static"), cc("c-quick", "-static", "-DPOSTERN_QUICK")); err != nil {
		return 0, err
	}
	built.programs = append(built.programs, program{name: "C", path: path("c"), quick: path("c-quick"), plain: true})
	sanitize := []string{"-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"}
	if err := errors.Join(cc("san", sanitize...), cc("san-quick", append(sanitize, "-DPOSTERN_QUICK")...)); err != nil {
		fmt.Fprintln(os.Stderr, "note: the C shim is not tested with sanitizers:", err)
	} else {
		built.programs = append(built.programs, program{name: "Sanitized", path: path("san"), quick: path("san-quick")})
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

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// each runs a test for every build of the shim.
func each(t *testing.T, test func(t *testing.T, p program)) {
	t.Parallel()
	for _, p := range built.programs {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			test(t, p)
		})
	}
}
