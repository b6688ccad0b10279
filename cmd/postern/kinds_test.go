package main

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
)

// TestEveryKindIsShown walks the built-in filters: each has the suite of
// filtertest in its folder, a script with the real daemon, which runs with both
// shims (or a test that does), one in which postern explain is asked, and, where it judges before the
// message, a test with the SMTP server.
func TestEveryKindIsShown(t *testing.T) {
	atExit := map[string]bool{"dkim-sign": true} // explain runs the chain of an entrance
	scripts, programs := textsOf(t, "testdata/script/*.txtar"), textsOf(t, "*_test.go")
	for _, kind := range kinds() {
		dir := folderOf(t, kind)
		suite := textsOf(t, filepath.Join(dir, "*_test.go"))
		if !slices.ContainsFunc(suite, func(s string) bool { return strings.Contains(s, "filtertest.Run(") }) {
			t.Errorf("%s: no test in %s runs filtertest's suite", kind.Name, dir)
		}
		named := regexp.MustCompile(`(?m)^\[\[?filter\.` + regexp.QuoteMeta(kind.Name) + `[.\]]|kind = "` + regexp.QuoteMeta(kind.Name) + `"|(?:inbound|local|delivery) *= *\[[^\]]*"` + regexp.QuoteMeta(kind.Name) + `"`)
		shows := func(all []string, words ...string) bool {
			return slices.ContainsFunc(all, func(s string) bool {
				return named.MatchString(s) && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(s, w) })
			})
		}
		if !shows(scripts, "postern serve", "inject ") && !shows(programs, "buildShims(") {
			t.Errorf("%s: nothing here sends it a message through the shims", kind.Name)
		}
		if !atExit[kind.Name] && !shows(scripts, "postern explain") {
			t.Errorf("%s: no script in testdata/script explains it", kind.Name)
		}
		if early := earlyStages(t, dir); len(early) > 0 && !shows(programs, "newGateway(") {
			t.Errorf("%s judges at %v, and no test here has it in the SMTP server", kind.Name, early)
		}
	}
}

// folderOf is where a kind's package lies: that of its options.
func folderOf(t *testing.T, kind pipeline.Kind) string {
	t.Helper()
	var path string
	_, err := kind.New(quietEnv(), func(into any) error {
		path = reflect.TypeOf(into).Elem().PkgPath()
		return errors.New("only asked for its package")
	})
	folder, ok := strings.CutPrefix(path, module)
	if err == nil || !ok || !strings.HasPrefix(folder, "filters/") && !strings.HasPrefix(folder, "plugins/") {
		t.Fatalf("%s has the options of %q, which is in no folder of filters or plugins", kind.Name, path)
	}
	return filepath.Join("..", "..", folder)
}

func textsOf(t *testing.T, pattern string) (texts []string) {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(b))
	}
	return texts
}

// earlyStages are the methods by which types of a package judge before the
// message.
func earlyStages(t *testing.T, dir string) (stages []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if ok && fn.Recv != nil && slices.Contains([]string{"Connect", "Helo", "Sender", "Recipient"}, fn.Name.Name) && fn.Type.Params.NumFields() >= 2 {
				stages = append(stages, fn.Name.Name)
			}
		}
	}
	return stages
}
