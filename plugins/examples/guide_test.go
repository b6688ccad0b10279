// Package examples_test takes the guide for authors of plugins at its word.
package examples_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// block is one fenced block of the guide.
type block struct {
	kind, text string
	// file is the name that the line before it gives.
	file string
	line int
}

var (
	fence    = regexp.MustCompile("^```([a-z-]*)$")
	fileName = regexp.MustCompile("`([A-Za-z_]+\\.[a-z]+)`[^`]*$")
)

func blocksOf(text string) (blocks []block) {
	var in *block
	before := ""
	for i, line := range strings.Split(text, "\n") {
		m := fence.FindStringSubmatch(line)
		switch {
		case m != nil && in == nil:
			in = &block{kind: m[1], line: i + 1}
			if f := fileName.FindStringSubmatch(before); f != nil {
				in.file = f[1]
			}
		case m != nil:
			blocks, in, before = append(blocks, *in), nil, ""
		case in != nil:
			in.text += line + "\n"
		case strings.TrimSpace(line) != "":
			before += line + "\n"
		default:
			if !strings.HasSuffix(before, ":\n") {
				before = ""
			}
		}
	}
	return blocks
}

// TestGuide does what plugins/README.md says, from an empty directory outside of
// the source and without a network: it writes the files that it shows, runs its
// commands, and looks for what it says that they print.
func TestGuide(t *testing.T) {
	checkout, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	if err := os.Symlink(checkout, filepath.Join(home, "postern")); err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(bin, "postern"), "../../cmd/postern").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	blocks := blocksOf(string(text))
	outputs := run(t, home, bin, blocks)
	commands, expected := 0, 0
	for i, b := range blocks {
		switch b.kind {
		case "sh":
			commands++
		case "text":
			expected++
			out := words(outputs[i-1])
			for line := range strings.Lines(b.text) {
				if want := words(line); !strings.Contains(out, want) {
					t.Errorf("plugins/README.md:%d: nothing prints %q:\n%s", b.line, want, outputs[i-1])
				}
			}
		}
	}
	if commands < 10 || expected < 5 {
		t.Errorf("the guide has %d blocks of commands and %d of what they print", commands, expected)
	}
}

// words are a text's words with one blank between them, and without times.
func words(text string) string {
	return regexp.MustCompile(`\b[0-9.]+(µs|ms|s)( |$)`).ReplaceAllString(strings.Join(strings.Fields(text), " "), "TIME ")
}

// run does what the blocks say in one shell, and gives what each printed.
func run(t *testing.T, home, bin string, blocks []block) map[int]string {
	t.Helper()
	var script strings.Builder
	script.WriteString("set -e\ncd \"$HOME\"\nmkdir scratch\ncd scratch\n")
	for i, b := range blocks {
		fmt.Fprintf(&script, "echo '@@ %d'\n", i)
		switch {
		case b.kind == "sh":
			script.WriteString(b.text)
		case b.kind == "text":
		case b.file == "":
			t.Errorf("plugins/README.md:%d: the block is no file and no command", b.line)
		default:
			fmt.Fprintf(&script, "cat >%s <<'END OF FILE'\n%sEND OF FILE\n", b.file, b.text)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "/bin/sh")
	c.Stdin = strings.NewReader(script.String())
	c.Env = append(goEnvironment(t), "HOME="+home, "PATH="+bin+":"+os.Getenv("PATH"), "PYTHONDONTWRITEBYTECODE=1")
	c.WaitDelay = 10 * time.Second
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		t.Fatalf("the guide's commands: %v\n%s", err, out.Bytes())
	}
	outputs := map[int]string{}
	for _, part := range strings.Split(out.String(), "@@ ")[1:] {
		number, text, _ := strings.Cut(part, "\n")
		var i int
		if _, err := fmt.Sscan(number, &i); err != nil {
			t.Fatal(err)
		}
		outputs[i] = text
	}
	return outputs
}

// goEnvironment is that of the test, with Go's caches where they are, and no
// network.
func goEnvironment(t *testing.T) []string {
	t.Helper()
	env := append(os.Environ(), "GOPROXY=off", "GOFLAGS=", "GONOSUMDB=*", "GOTOOLCHAIN=local", "GOWORK=off")
	for _, name := range []string{"GOCACHE", "GOPATH", "GOMODCACHE"} {
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, name+"="+strings.TrimSpace(string(out)))
	}
	return env
}
