// Package skeleton writes the beginnings of a plugin of Postern in Go: a module
// that compiles and passes its test, to be changed by its author.
package skeleton

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

//go:embed template
var templates embed.FS

// files are the templates, and what they are called in the module.
var files = []struct{ template, name string }{
	{"go.mod.txt", "go.mod"},
	{"main.go.txt", "main.go"},
	{"main_test.go.txt", "main_test.go"},
	{"hello.eml", filepath.Join("testdata", "hello.eml")},
	{"postern.toml", "postern.toml"},
	{"README.md", "README.md"},
	{"gitignore", ".gitignore"},
}

// placeholder stands for the plugin's name in the templates.
const placeholder = "PLUGIN_NAME"

// names are what a plugin, its module and its table in the configuration may be
// called.
var names = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)

// reserved are names that Go or Postern has a meaning of its own for.
var reserved = map[string]bool{"main": true, "test": true, "std": true, "cmd": true, "go": true, "testdata": true, "vendor": true}

// Write writes a plugin of that name into a directory, which must not exist, or
// must be empty. After an error nothing is left of what it has written.
func Write(dir, name string) (err error) {
	if !names.MatchString(name) || reserved[name] {
		return fmt.Errorf("%q cannot be the name of a plugin: take small letters, digits and -, a letter first, and no word that Go has a meaning for", name)
	}
	there, err := os.ReadDir(dir)
	switch {
	case len(there) > 0:
		return fmt.Errorf("%s is not empty: name a directory that is, or is not there", dir)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	made := err != nil
	defer func() {
		if err != nil {
			undo(dir, made)
		}
	}()
	for _, f := range files {
		content, err := templates.ReadFile("template/" + f.template)
		if err != nil {
			return err
		}
		path := filepath.Join(dir, f.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(content), placeholder, name)), 0o666); err != nil {
			return err
		}
	}
	return nil
}

// undo removes the files, and the directories that are empty then.
func undo(dir string, made bool) {
	for _, f := range files {
		_ = os.Remove(filepath.Join(dir, f.name))
	}
	_ = os.Remove(filepath.Join(dir, "testdata"))
	if made {
		_ = os.Remove(dir)
	}
}
