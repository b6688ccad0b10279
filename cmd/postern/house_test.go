package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/postern-mta/postern/"

// leaves are the rooms of pipeline that know nothing of it, left to right: each
// may import those to its left.
var leaves = []string{"pipeline/reply", "pipeline/envelope", "pipeline/smtp", "pipeline/message", "pipeline/mime"}

// alone are leaves that stand by themselves.
var alone = []string{"pipeline/resolve", "pipeline/state", "pipeline/worker", "pipeline/program", "pipeline/servers"}

func allLeaves() []string { return slices.Concat(leaves, alone, []string{"pipeline/spam"}) }

// doors is the import table of pipeline/DESIGN.md: who may open which door. The
// first row whose pattern matches a package rules it; a pattern or a permission
// that ends in /* takes in what lies below.
var doors = []door{
	{"pipeline/reply", nil},
	{"pipeline/envelope", leaves[:1]},
	{"pipeline/smtp", leaves[:2]},
	{"pipeline/smtp/*", leaves[:3]},
	{"pipeline/message", leaves[:3]},
	{"pipeline/mime", leaves[:4]},
	{"pipeline/resolve", nil},
	{"pipeline/state", nil},
	{"pipeline/worker", nil},
	{"pipeline/program", nil},
	{"pipeline/servers", nil},
	{"pipeline/servers/*", nil},
	{"pipeline/spam", []string{"pipeline/reply", "pipeline/message"}},
	{"rules", nil},
	{"pipeline", slices.Concat(allLeaves(), []string{"rules"})},
	{"pipeline/filtertest", slices.Concat(allLeaves(), []string{"rules", "pipeline"})},
	{"pipeline/ingress/handoff/wire", nil},
	{"pipeline/ingress/handoff", slices.Concat(allLeaves(), []string{"rules", "pipeline", "pipeline/ingress/handoff/wire"})},
	{"pipeline/ingress/*", slices.Concat(allLeaves(), []string{"rules", "pipeline"})},
	{"filters", []string{"filters/*", "pipeline"}},
	{"filters/execban", slices.Concat(allLeaves(), []string{"rules", "pipeline", "filters/execban/*"})},
	{"filters/*", slices.Concat(allLeaves(), []string{"rules", "pipeline"})},
	{"plugins/wire", nil},
	{"plugins/sdk", []string{"plugins/wire"}},
	{"plugins/sdk/sdktest", []string{"plugins/wire", "plugins/sdk"}},
	{"plugins/sdk/*", nil},
	{"plugins/examples/*", []string{"plugins/sdk"}},
	{"plugins/*", slices.Concat(allLeaves(), []string{"rules", "pipeline", "plugins/wire"})},
	{"queue/egress/site", allLeaves()},
	{"queue/egress/smtp", slices.Concat(allLeaves(), []string{"queue/egress/site"})},
	{"queue/egress/*", slices.Concat(allLeaves(), []string{"queue/egress/site", "queue/egress/smtp"})},
	{"queue/store", allLeaves()},
	{"queue/store/*", slices.Concat(allLeaves(), []string{"queue/store"})},
	{"queue/schedule", allLeaves()},
	{"queue/limit", allLeaves()},
	{"queue/dsn", allLeaves()},
	{"queue/queuetest", slices.Concat(allLeaves(), []string{"queue", "queue/*"})},
	{"queue/queuetest/internet", slices.Concat(allLeaves(), []string{"pipeline/smtp/smtptest"})},
	{"queue/queuetest/*", slices.Concat(allLeaves(), []string{"queue", "queue/*"})},
	{"queue", slices.Concat(allLeaves(), []string{"queue/*"})},
	{"cmd/internal/shim", []string{"pipeline/ingress/handoff/wire"}},
	{"cmd/qmail-queue", []string{"pipeline/ingress/handoff/wire", "cmd/internal/shim"}},
	{"cmd/qmail-remote", []string{"pipeline/ingress/handoff/wire", "cmd/internal/shim"}},
	{"cmd/postern/admin/api", nil},
	{"cmd/postern", []string{"*"}},
	{"cmd/postern/*", []string{"*"}},
}

type door struct {
	room string
	may  []string
}

func matches(pattern, pkg string) bool {
	if pattern == "*" {
		return true
	}
	if base, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(pkg, base)
	}
	return pattern == pkg
}

type listed struct {
	ImportPath string
	Imports    []string
	Module     *struct{ Path string }
}

func goList(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Module"}, args...)...)
	cmd.Dir = filepath.Join("..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.Bytes())
	}
	var all []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// TestImportTable checks who imports whom, over non-test files.
func TestImportTable(t *testing.T) {
	for _, p := range goList(t, "./...") {
		room := strings.TrimPrefix(p.ImportPath, module)
		i := slices.IndexFunc(doors, func(d door) bool { return matches(d.room, room) })
		if i < 0 {
			t.Errorf("%s is in no room of the import table: add it to DESIGN.md and to this test", room)
			continue
		}
		for _, imported := range p.Imports {
			other, ours := strings.CutPrefix(imported, module)
			if !ours {
				continue
			}
			if !slices.ContainsFunc(doors[i].may, func(may string) bool { return matches(may, other) }) {
				t.Errorf("%s imports %s, which the import table of pipeline/DESIGN.md forbids (row %q)", room, other, doors[i].room)
			}
		}
	}
}

// TestWireIsThin keeps what the shims link free of everything but syscall, which
// is what a Go shim can afford to start with.
func TestWireIsThin(t *testing.T) {
	const wire = module + "pipeline/ingress/handoff/wire"
	for _, p := range goList(t, "./pipeline/ingress/handoff/wire", "./cmd/internal/shim") {
		for _, i := range p.Imports {
			if i != "syscall" && i != "unsafe" && i != wire {
				t.Errorf("%s imports %s; it may import syscall only, because the shims link it", p.ImportPath, i)
			}
		}
	}
}

// TestBudgets keeps files and functions small enough to read.
func TestBudgets(t *testing.T) {
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && name != root {
			return filepath.SkipDir
		}
		if path.Ext(name) == ".go" && !strings.HasSuffix(name, ".pb.go") {
			budget(t, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

const (
	maxFileLines = 600
	maxFuncLines = 120
)

func budget(t *testing.T, name string) {
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines, start, fn := 0, 0, ""
	for s := bufio.NewScanner(f); s.Scan(); {
		lines++
		switch text := s.Text(); {
		case strings.HasPrefix(text, "func init()"):
			t.Errorf("%s:%d: no init functions", name, lines)
		case strings.HasPrefix(text, "func "):
			start, fn = lines, text
		case text == "}" && fn != "":
			if n := lines - start + 1; n > maxFuncLines && !strings.HasSuffix(name, "_test.go") {
				t.Errorf("%s:%d: %d lines in one function, at most %d", name, start, n, maxFuncLines)
			}
			fn = ""
		}
	}
	if lines > maxFileLines {
		t.Errorf("%s has %d lines, at most %d: split it by noun", name, lines, maxFileLines)
	}
}
