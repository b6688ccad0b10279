package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/postern-mta/postern/pipeline"
)

// badAddressKind is the kind of filter whose lists are control/badmailfrom and
// control/badrcptto by default.
const badAddressKind = "badaddress"

// badAddressLists are the keys of its lists, with the control file that stands
// for each where none of them is written.
var badAddressLists = []struct{ key, file string }{
	{"sender_files", "badmailfrom"}, {"recipient_files", "badrcptto"}, {"senders", ""}, {"recipients", ""},
}

// withBadAddresses gives a badaddress without lists those of the control
// directory. A file that cannot be read is the filter's to tell.
func (c *Config) withBadAddresses(own *node, kind *pipeline.Kind) *node {
	if kind.Name != badAddressKind || c.Files.Dir == "" {
		return own
	}
	for _, l := range badAddressLists {
		if own.kids[l.key] != nil {
			return own
		}
	}
	for _, l := range badAddressLists {
		if l.file == "" {
			continue
		}
		file, err := filepath.Abs(filepath.Join(c.Files.Dir, l.file))
		if err != nil {
			continue
		}
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		place := c.Files.at(l.file, 0)
		own = own.with(l.key, &node{place: place, value: []any{file}, elems: []*node{{place: place, value: file}}})
	}
	return own
}
