package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/postern-mta/postern/cmd/postern/config"
)

// keptDir is where the copies wait that the next program of an entrance is
// still to take.
func keptDir(c *config.Config, entrance string) string {
	return filepath.Join(c.State, "kept", entrance)
}

// warnStranded tells of kept copies that nobody tries any more, because their
// entrance was renamed or its mail goes elsewhere.
func warnStranded(c *config.Config, log *slog.Logger) {
	dirs, err := os.ReadDir(filepath.Join(c.State, "kept"))
	if err != nil {
		return // there are none
	}
	for _, dir := range dirs {
		l := c.Listen[dir.Name()]
		if l != nil && isProgram(l) {
			continue
		}
		waiting := 0
		files, _ := os.ReadDir(keptDir(c, dir.Name()))
		for _, f := range files {
			if strings.HasSuffix(f.Name(), ".env") {
				waiting++
			}
		}
		if waiting > 0 {
			log.Error("copies wait for an entrance that is gone, and nobody tries them: give the entrance its name and next back, or send them by hand",
				"entrance", clean(dir.Name()), "copies", waiting, "directory", keptDir(c, dir.Name()))
		}
	}
}
