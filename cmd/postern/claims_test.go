package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// claimed is what testdata/claims.txt must speak of: promises of
// pipeline/DESIGN.md, bad inputs, duties.
var claimed = map[string][]string{
	"promise": {"1", "2", "3", "4", "5", "6", "7", "8", "9"},
	"input":   {"1", "2", "3", "4", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19", "20", "21", "22", "23", "24", "25", "26", "27", "28", "30", "33", "35"},
	"duty":    {"1", "2", "3", "4", "5", "6", "7", "8"},
}

// TestClaims holds the list of claims against the tests that there are: each
// promise has one, and each that is named exists.
func TestClaims(t *testing.T) {
	b, err := os.ReadFile("testdata/claims.txt")
	if err != nil {
		t.Fatal(err)
	}
	tests := testsOf(t)
	shown, lines := map[string]bool{}, map[string]bool{}
	line := regexp.MustCompile(`^((promise|input|duty) [0-9]+) \| ([^|]+) \| (?:((?:Test|Fuzz)\w+) in (\S+)|(\w+\.txtar))$`)
	for i, text := range strings.Split(string(b), "\n") {
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		m := line.FindStringSubmatch(text)
		if m == nil {
			t.Errorf("claims.txt:%d: %q is no claim", i+1, text)
			continue
		}
		if lines[text] {
			t.Errorf("claims.txt:%d: %q stands there twice", i+1, text)
		}
		lines[text], shown[m[1]] = true, true
		if m[6] != "" {
			if _, err := os.Stat(filepath.Join("testdata", "script", m[6])); err != nil {
				t.Errorf("claims.txt:%d: %v", i+1, err)
			}
		} else if !tests[path.Join(m[5], m[4])] {
			t.Errorf("claims.txt:%d: there is no %s in %s", i+1, m[4], m[5])
		}
	}
	for kind, numbers := range claimed {
		for _, n := range numbers {
			if !shown[kind+" "+n] {
				t.Errorf("claims.txt: no test shows %s %s", kind, n)
			}
		}
	}
}

// testsOf are the tests of the tree, as "folder/TestName".
func testsOf(t *testing.T) map[string]bool {
	t.Helper()
	root := filepath.Join("..", "..")
	tests := map[string]bool{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git" || d.Name() == "run"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		folder, err := filepath.Rel(root, filepath.Dir(name))
		if err != nil {
			return err
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				tests[path.Join(filepath.ToSlash(folder), fn.Name.Name)] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests
}
