package skeleton_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-mta/postern/plugins/sdk/skeleton"
)

// The skeleton compiles and passes its test with the commands of its own README,
// but for those of the program postern, with no network.
func TestWrite(t *testing.T) {
	checkout, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "new", "spam-trap")
	if err := skeleton.Write(dir, "spam-trap"); err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for line := range strings.Lines(string(readme)) {
		if command, ok := strings.CutPrefix(line, "    go "); ok {
			ran++
			c := exec.Command("/bin/sh", "-c", "go "+command)
			c.Dir = dir
			c.Env = append(os.Environ(), "POSTERN="+checkout, "GOPROXY=off", "GOFLAGS=", "GONOSUMDB=*", "GOTOOLCHAIN=local", "GOWORK=off")
			if out, err := c.CombinedOutput(); err != nil {
				t.Fatalf("go %s%v\n%s", command, err, out)
			}
		}
	}
	if ran != 4 {
		t.Errorf("README.md has %d commands", ran)
	}
	out, err := exec.Command(filepath.Join(dir, "spam-trap"), "--version").Output()
	if err != nil || string(out) != "spam-trap 0.1 (postern.plugin.v1)\n" {
		t.Errorf("%q, %v", out, err)
	}
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "spam-trap" {
			return err
		}
		content, err := os.ReadFile(path)
		if strings.Contains(string(content), "PLUGIN_NAME") {
			t.Errorf("%s has the name of no plugin", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := skeleton.Write(dir, "spam-trap"); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("written over another: %v", err)
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"", "A", "a b", "../a", "1a", "-a", "a.b", "test", "main", strings.Repeat("a", 65)} {
		dir := filepath.Join(t.TempDir(), "x")
		if err := skeleton.Write(dir, name); err == nil || !strings.Contains(err.Error(), "cannot be the name") {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%q: something was written", name)
		}
	}
}

// What cannot be written leaves nothing behind.
func TestNoRoom(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := skeleton.Write(file, "a"); err == nil {
		t.Error("written into a file")
	}
	if err := skeleton.Write(filepath.Join(file, "below"), "a"); err == nil {
		t.Error("written below a file")
	}
	if there, err := os.ReadDir(base); err != nil || len(there) != 1 {
		t.Errorf("%v, %v", there, err)
	}
	empty := filepath.Join(base, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := skeleton.Write(empty, "a"); err != nil {
		t.Errorf("into an empty directory: %v", err)
	}
}
