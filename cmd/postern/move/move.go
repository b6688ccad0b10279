// Package move turns the files by which simscan, qmail-qfilter, qmail-spp and
// patched qmails are told what to do into a configuration of Postern.
//
// What comes out is a whole configuration as TOML: a chain, and filters that do
// what the files had done. Every file is listed in comments, line by line with
// its own comments, and under each line that has no equal stands what it did,
// why there is no equal, and what to do instead ("NO EQUAL"); where Postern does
// something in another way, that stands there too ("NOTE").
//
// It promises that what it makes passes config.Parse, whatever the files hold;
// that the same files make the same bytes; that a file is bounded before it is
// read and a line before it is parsed; and that no control byte of a file gets
// into what it makes. It reads files and changes nothing.
package move

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Source is a file to be turned into configuration.
type Source struct {
	// Kind is the name of its Format.
	Kind string
	// Path is where it is; "" is where qmail has it.
	Path string
}

// Options say in what surroundings files are read. The zero value is that of a
// plain qmail.
type Options struct {
	// Control is qmail's control directory; "" means DefaultControl.
	Control string
	// Clamd and Spamd are the addresses of clamd and spamd, as in the filters'
	// option address; nil leaves them at their defaults.
	Clamd, Spamd []string
	// SpamHits is what simscan was built with (--enable-spam-hits), the score that
	// holds for those without spam_hits. Nil means 10, simscan's own default, if
	// the file says spam_hits anywhere, and else that simscan refuses what
	// SpamAssassin calls spam.
	SpamHits *float64
}

// DefaultControl is where qmail has its control directory.
const DefaultControl = "/var/qmail/control"

// Format is a kind of file that can be read.
type Format struct {
	// Name is its name as a Source's Kind.
	Name string
	// Files are the names that it may have in the control directory, the best
	// first.
	Files []string
	// Whose says which program reads it, What what becomes of it.
	Whose, What string

	// order is the place of its filters in a chain: what is asked first in an SMTP
	// session comes first.
	order int
	// binary is the name's end of a file that is no text.
	binary string
	make   func(*importer, *file) error
}

// formats is the one list of what can be read.
var formats = []Format{
	{Name: "simcontrol", Files: []string{"simcontrol", "simcontrol.cdb"}, Whose: "simscan", What: "clamav, spamassassin, execban and pattern, by recipient and sender", order: 4, binary: ".cdb", make: (*importer).simcontrol},
	{Name: "ssattach", Files: []string{"ssattach"}, Whose: "simscan", What: "execban, by the names of attachments", order: 5, make: (*importer).ssattach},
	{Name: "qfilters", Files: []string{"qfilters"}, Whose: "qmail-qfilter", What: "qfilter, with the same programs", order: 6, make: (*importer).qfilters},
	{Name: "taps", Files: []string{"taps"}, Whose: "qmail-queue with qmail-taps", What: "tap", order: 7, make: (*importer).taps},
	{Name: "signatures", Files: []string{"signatures"}, Whose: "qmail-smtpd with viruscan, qmail-ldap", What: "execban, by the first lines of parts", order: 3, make: (*importer).signatures},
	{Name: "smtpplugins", Files: []string{"smtpplugins"}, Whose: "qmail-smtpd with qmail-spp", What: "spp, with the same programs", order: 1, make: (*importer).smtpplugins},
	{Name: "rcptchecks", Files: []string{"rcptchecks"}, Whose: "qmail-rcptcheck, RCPTCHECK", What: "rcptcheck, with the same programs", order: 2, make: (*importer).rcptchecks},
}

// Formats are the kinds of files that can be read. The slice is the caller's.
func Formats() []Format { return slices.Clone(formats) }

// Result is what was made of files.
type Result struct {
	// TOML is the configuration.
	TOML []byte
	// Files are the paths that were read, in the order of the sources.
	Files []string
	// NoEqual counts what could not be carried over, Notes what is done in another
	// way.
	NoEqual, Notes int
}

// maxSources bounds how many files make one configuration.
const maxSources = 100

// Find is the path of a source: its own, or the first of its format's names that
// is in the control directory. The error is for an administrator.
func Find(s Source, o Options) (string, error) {
	f := formatOf(s.Kind)
	if f == nil {
		return "", fmt.Errorf("%s cannot be imported: write %s", show(s.Kind), names())
	}
	if s.Path != "" {
		return filepath.Abs(s.Path)
	}
	control := o.control()
	for _, name := range f.Files {
		path := filepath.Join(control, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%s cannot be read: %w", show(path), cause(err))
		}
	}
	return "", fmt.Errorf("there is no %s in %s: write the file behind %s, or the directory with --control", strings.Join(f.Files, " and no "), show(control), s.Kind)
}

func (o Options) control() string {
	if o.Control == "" {
		return DefaultControl
	}
	return filepath.Clean(o.Control)
}

func formatOf(name string) *Format {
	for i := range formats {
		if formats[i].Name == name {
			return &formats[i]
		}
	}
	return nil
}

func names() string {
	var all []string
	for _, f := range formats {
		all = append(all, f.Name)
	}
	return strings.Join(all[:len(all)-1], ", ") + " or " + all[len(all)-1]
}

// importer makes a configuration of files.
type importer struct {
	o       Options
	kinds   map[string]bool // of the sources
	names   map[string]bool // of the filters
	filters []filter
	result  Result
}

// filter is a filter that was made, as text, and its place.
type filter struct {
	name  string
	order int
}

// Import turns files into a configuration. Where one cannot be read, or would make
// more than a configuration may hold, there is an error, which names it.
func Import(sources []Source, o Options) (*Result, error) {
	switch {
	case len(sources) == 0:
		return nil, fmt.Errorf("there is nothing to import: write %s", names())
	case len(sources) > maxSources:
		return nil, fmt.Errorf("%d files, at most %d make one configuration", len(sources), maxSources)
	}
	im := &importer{o: o, kinds: map[string]bool{}, names: map[string]bool{}}
	var read []*file
	for _, s := range sources {
		path, err := Find(s, o)
		if err != nil {
			return nil, err
		}
		f, err := readFile(path, formatOf(s.Kind))
		if err != nil {
			return nil, err
		}
		im.kinds[s.Kind] = true
		im.result.Files = append(im.result.Files, path)
		read = append(read, f)
	}
	for _, f := range read {
		if err := f.format.make(im, f); err != nil {
			return nil, fmt.Errorf("%s: %w", show(f.path), err)
		}
	}
	return im.finish(read)
}

// limits of a configuration: see config.MaxFile, and the filters of a chain.
const (
	maxConfig  = 1 << 20
	maxFilters = 256
)

// finish puts the sections together.
func (im *importer) finish(read []*file) (*Result, error) {
	slices.SortStableFunc(im.filters, func(a, b filter) int { return a.order - b.order })
	if len(im.filters) > maxFilters {
		return nil, fmt.Errorf("these files come to %d filters, and a chain holds %d: fewer different settings in simcontrol, or several runs, make several chains", len(im.filters), maxFilters)
	}
	var p page
	p.head(im, read)
	if c := im.o.control(); c != DefaultControl && safe(c) == "" {
		abs, err := filepath.Abs(c)
		if err != nil {
			return nil, err
		}
		p.line("# control = %s # take the # off if Postern is to read its defaults there, too\n", quote(abs))
	}
	p.line("[chain]")
	var chain []string
	for _, f := range im.filters {
		chain = append(chain, quote(f.name))
	}
	p.line("inbound = [%s]", strings.Join(chain, ", "))
	for _, f := range read {
		p.line("")
		p.section(f)
		im.result.NoEqual += f.noEqual
		im.result.Notes += f.notes
	}
	if p.b.Len() > maxConfig {
		return nil, fmt.Errorf("these files come to a configuration of %d bytes, and one holds %d", p.b.Len(), maxConfig)
	}
	im.result.TOML = []byte(p.b.String())
	return &im.result, nil
}

// name is a name for a filter that no other has: the one that is wanted, or with
// a number behind it.
func (im *importer) name(wanted string) string {
	name := wanted
	for n := 2; im.names[name]; n++ {
		name = fmt.Sprintf("%s-%d", wanted, n)
	}
	im.names[name] = true
	return name
}

// add begins a filter of a kind in a file's section, and puts it into the chain.
func (im *importer) add(f *file, wanted, kind string) *page {
	name := im.name(wanted)
	im.filters = append(im.filters, filter{name, f.format.order})
	f.body.line("\n[filter.%s]", name)
	if name != kind {
		f.body.line("kind = %s", quote(kind))
	}
	f.made = append(f.made, name)
	return &f.body
}
