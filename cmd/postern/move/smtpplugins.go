package move

import (
	"path/filepath"
	"strings"
)

// sections are those of control/smtpplugins, of whose names the first letter
// counts (qmail-spp.c).
var sections = []string{"connection", "helo", "auth", "mail", "rcpt", "pass", "data"}

// maxPlugins is how many programs a section of a filter spp has.
const maxPlugins = 100

// smtpplugins makes a filter spp of control/smtpplugins.
func (im *importer) smtpplugins(f *file) error {
	programs := map[string][]lineText{}
	section, begun, some := "", false, false
	for _, l := range f.parsed() {
		if strings.HasPrefix(l.text, "[") {
			begun = true
			if section = sectionOf(l.text); section == "" {
				f.none(l, "there is no such section: qmail-spp passes over it and the lines in it, and so does this. Instead: name it connection, helo, auth, mail, rcpt, pass or data.")
			}
			continue
		}
		if section == "" && begun {
			continue
		}
		if section == "" {
			f.none(l, "this line is in no section, so qmail-spp never ran it. Instead: put it below a section, and import the file again.")
			continue
		}
		text := l.text
		switch {
		case strings.TrimPrefix(text, ":") == "":
			f.none(l, "there is no command behind the colon.")
			continue
		case text[0] == ':':
			f.note(l, "the shell that runs this starts in / here, and with qmail in %s.", tidy(filepath.Dir(im.o.control()), 100))
		default:
			text = im.rooted(text)
		}
		if len(programs[section]) == maxPlugins {
			f.none(l, "a section has at most %d programs here. Instead: a second filter of kind spp with this one.", maxPlugins)
			continue
		}
		programs[section] = append(programs[section], lineText{l, text})
		some = true
	}
	if !some {
		f.about = append(f.about, "There is no program in it.")
		return nil
	}
	f.remark("the programs run in Postern's own SMTP server. Where a qmail-smtpd with qmail-spp stays in front, it runs them itself: leave this filter out of the chain then. What differs for them, such as [auth], [data] and the answer O, stands in the manual of the filter spp.")
	if len(programs["pass"]) > 0 {
		f.remark("only sagredo's qmail has a section [pass], and it runs programs only where ENABLE_SPP is set; here they run for everybody. With variant = \"sagredo\" it is as there.")
	}
	b := im.add(f, "spp", "spp")
	im.notLocal(b)
	for _, name := range sections {
		if len(programs[name]) > 0 {
			b.lines(name, f, programs[name])
		}
	}
	return nil
}

// sectionOf is the section that a line begins, "" if there is no such.
func sectionOf(text string) string {
	for _, name := range sections {
		if len(text) > 1 && text[1] == name[0] {
			return name
		}
	}
	return ""
}
