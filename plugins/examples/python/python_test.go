// Package python_test runs the example in Python as Postern does it, and its own
// test.
package python_test

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/postern-mta/postern/plugins/sdk/sdktest"
)

func command(t *testing.T, args ...string) []string {
	t.Helper()
	module, err := filepath.Abs("../../sdk/python")
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{"/usr/bin/env", "PYTHONPATH=" + module, "/usr/bin/python3", "-B"}, args...)
}

func TestTagger(t *testing.T) {
	sdktest.RunProgram(t, command(t, "tagger.py"),
		sdktest.Case{Name: "plain", Text: "X: 1\nsubject: hello\n\nbody\n", Want: sdktest.Want{Message: "X: 1\nSubject: [list] hello\n\nbody\n", Reason: "tagged"}},
		sdktest.Case{Name: "tagged already", Text: "Subject: =?utf-8?q?=5Blist=5D_gr=C3=BC=C3=9Fe?=\n\nx\n"},
		sdktest.Case{Name: "another tag", Text: "Subject: hello\n\n", Options: map[string]any{"tag": "(x)"}, Want: sdktest.Want{Fields: []string{"Subject: (x) hello"}}},
		sdktest.Case{Name: "no tag", Text: "\n", Options: map[string]any{"tag": " "}, Want: sdktest.Want{Problem: "tag: it is empty"}},
	)
}

// The test that an author writes in Python.
func TestInPython(t *testing.T) {
	argv := command(t, "-m", "unittest", "-v", "test_tagger")
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
