package move

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// What simscan reads of control/ssattach (simscan.c: init_attach): the first
// word of each line, up to a colon, too, of 100 lines, of 255 bytes of a line.
const (
	attachBlanks = " :\t\r"
	maxAttach    = 100
	maxSuffix    = 99 // bytes
)

// ssattach makes a filter execban of control/ssattach.
func (im *importer) ssattach(f *file) error {
	var names []suffix
	for _, l := range f.lines {
		if l.text == "" {
			continue
		}
		if why := l.unfit(); why != "" {
			f.none(l, "this line cannot be carried over: %s. Instead: mend it and import the file again.", why)
			continue
		}
		words := strings.FieldsFunc(l.text, func(c rune) bool { return strings.ContainsRune(attachBlanks, c) })
		switch {
		case len(words) == 0:
			continue
		case strings.HasPrefix(l.text, "#"):
			if !strings.HasPrefix(l.text, "# ") {
				f.note(l, "simscan knows no comments in this file, and refused names that end in %s. It is taken for a comment here.", words[0])
			}
			continue
		case len(names) == maxAttach:
			f.note(l, "simscan reads %d lines: it never refused this one, and the lines behind it.", maxAttach)
			return im.attachments(f, "ssattach", "", names)
		case len(words[0]) > maxSuffix:
			f.none(l, "a name's end of more than %d bytes, which simscan cut. Instead: write it into a filter pattern with where = \"names\".", maxSuffix)
			continue
		}
		if len(words) > 1 {
			f.note(l, "simscan reads the first name of a line only, so it never refused %s. If they are meant, write a line for each and import the file again.", strings.Join(words[1:], " "))
		}
		names = append(names, suffix{strings.ToLower(words[0]), l})
	}
	if len(names) == 0 {
		f.about = append(f.about, "There is no name in it.")
		return nil
	}
	if im.kinds["simcontrol"] {
		f.remark("a simscan that goes by simcontrol (--enable-per-domain) does not read this file: attach= in simcontrol is in its place. If yours does, take the filters below out of the chain.")
	}
	return im.attachments(f, "ssattach", "", names)
}

// suffix is the end of names that are refused, and the line that says so.
type suffix struct {
	end  string
	line *line
}

// plain is an extension that execban can be told.
var plain = regexp.MustCompile(`^\.[^./\\:\s\x00-\x1f]{1,32}$`)

// attachments makes the filters that refuse attachments by the ends of their
// names: execban for extensions, pattern for the rest.
func (im *importer) attachments(f *file, name, when string, all []suffix) error {
	var extensions []string
	var others []suffix
	seen := map[string]bool{}
	for _, s := range all {
		switch {
		case seen[s.end]:
		case plain.MatchString(s.end):
			extensions = append(extensions, s.end[1:])
		default:
			others = append(others, s)
		}
		seen[s.end] = true
	}
	if len(extensions) > 0 {
		b := im.add(f, name, "execban")
		if when != "" {
			b.line("when = %s", quote(when))
		}
		b.text("", "Attachments with these extensions are refused, and what archives hold with them, into which simscan did not look.")
		b.line("refuse = [%s]", quote(className))
		b.line(`signatures = ""`)
		im.nothingElse(b)
		b.line("[[filter.%s.class]]", f.made[len(f.made)-1])
		b.line("name = %s", quote(className))
		b.list("extensions", extensions)
	}
	for part := range slices.Chunk(others, maxPatterns) {
		im.endings(f, name, when, part)
	}
	return nil
}

// maxPatterns is how many expressions a filter pattern has.
const maxPatterns = 1000

// endings makes a filter pattern that refuses names with these ends.
func (im *importer) endings(f *file, name, when string, all []suffix) {
	b := im.add(f, name+"-names", "pattern")
	if when != "" {
		b.line("when = %s", quote(when))
	}
	b.text("", "Names with these ends are refused, which are no extensions.")
	for i, s := range all {
		b.line("[[filter.%s.match]] # %s:%d", f.made[len(f.made)-1], f.base(), s.line.no)
		b.line("name = %s", quote(fmt.Sprintf("name-%d", i+1)))
		b.line(`where = "names"`)
		b.line("expr = %s", quote(regexp.QuoteMeta(s.end)+"$"))
		b.line(`action = "reject"`)
	}
}

// className is that of what simscan refused.
const className = "by-name"
