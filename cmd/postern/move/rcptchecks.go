package move

import (
	"path/filepath"
	"regexp"
	"strings"
)

// maxChecks is how many checks a filter rcptcheck has.
const maxChecks = 100

// assignment is a line of a run script or of tcprules that names the program.
var assignment = regexp.MustCompile(`^(?:export[ \t]+)?RCPTCHECK=(["']?)([^"']*)(["']?)$`)

// rcptchecks makes a filter rcptcheck of a list of programs.
func (im *importer) rcptchecks(f *file) error {
	var programs []lineText
	for _, l := range f.parsed() {
		text := l.text
		if m := assignment.FindStringSubmatch(text); m != nil && m[1] == m[3] {
			text = m[2]
		}
		path, ok := im.program(f, l, text)
		if !ok {
			continue
		}
		if len(programs) == maxChecks {
			f.none(l, "it and the lines behind it make more than %d programs, which one filter asks. Instead: a second filter of kind rcptcheck with them.", maxChecks)
			break
		}
		programs = append(programs, lineText{l, path})
	}
	if len(programs) == 0 {
		f.about = append(f.about, "There is no program in it.")
		return nil
	}
	f.remark("the programs are asked about recipients in domains of ours, of mail from strangers, as RCPTCHECK is; where it hangs up (exit codes 111 and 120), the recipient is put off here and the session goes on. A program has the variables that postern.toml(5) tells of filter.rcptcheck, a clean environment beside them, and 10 s.")
	b := im.add(f, "rcptcheck", "rcptcheck")
	b.line(`need = "all"`)
	for _, p := range programs {
		b.line("\n[[filter.%s.check]] # %s:%d", f.made[len(f.made)-1], f.base(), p.line.no)
		b.line("program = %s", quote(p.text))
		b.line("each = true # a program may go by the sender and the client, too")
	}
	return nil
}

// program is the path of a program on a line. qmail's programs start in the
// folder above the control directory, so a relative path is from there.
func (im *importer) program(f *file, l *line, text string) (path string, ok bool) {
	path = strings.TrimSpace(text)
	if path == "" {
		f.none(l, "it names no program.")
		return "", false
	}
	if i := strings.IndexAny(path, " \t"); i > 0 && !isFile(im.rooted(path)) {
		f.none(l, "qmail runs a program by its path alone, so that one of this name is not found unless the blank belongs to it. Instead: a script that calls it with its arguments, or the option args.")
		return "", false
	}
	return im.rooted(path), true
}

// rooted makes a path absolute as programs of qmail mean it.
func (im *importer) rooted(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	control, err := filepath.Abs(im.o.control())
	if err != nil || safe(control) != "" {
		control = DefaultControl
	}
	return filepath.Join(filepath.Dir(control), path)
}
