package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/postern-mta/postern/pipeline"
)

// sppKind is the kind of filter whose programs are those of control/smtpplugins
// by default.
const sppKind = "spp"

// sppKeys are the keys that name its programs.
var sppKeys = []string{"file", "connection", "helo", "auth", "mail", "rcpt", "pass", "data"}

// withPlugins gives an spp without programs those of the control directory. A
// file that cannot be read is the filter's to tell.
func (c *Config) withPlugins(own *node, kind *pipeline.Kind) *node {
	if kind.Name != sppKind || c.Files.Dir == "" {
		return own
	}
	for _, key := range sppKeys {
		if own.kids[key] != nil {
			return own
		}
	}
	file, err := filepath.Abs(filepath.Join(c.Files.Dir, "smtpplugins"))
	if err != nil {
		return own
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return own
	}
	return own.with("file", &node{place: c.Files.at("smtpplugins", 0), value: file})
}
