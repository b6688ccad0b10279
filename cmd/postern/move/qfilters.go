package move

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// The limits of a filter qfilter.
const (
	maxPrograms = 100
	maxArgs     = 1000
)

// programName is the program by which a line of a script is known.
const programName = "qmail-qfilter"

var (
	variable = regexp.MustCompile(`^(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]{0,99})=(.*)$`)
	// domainFirst is a line of sagredo's control/qfilters, domain:program:variable.
	domainFirst = regexp.MustCompile(`^([A-Za-z0-9.*-]*):(/[^:]*)(?::([A-Za-z0-9_=]*))?$`)
)

// qfilters makes filters qfilter of command lines of qmail-qfilter: a script that
// calls it, or a file of what stands behind it.
func (im *importer) qfilters(f *file) error {
	f.join()
	q := &queueFilters{im: im, f: f, env: map[string]string{}}
	lines := f.parsed()
	q.script = slices.ContainsFunc(lines, func(l *line) bool { return strings.Contains(l.text, programName) })
	for _, l := range lines {
		q.line(l)
	}
	if len(q.programs) > 0 {
		q.write("", q.programs)
	}
	if len(f.made) == 0 {
		f.about = append(f.about, "There is no program in it.")
		return nil
	}
	f.remark("the programs get the message, the envelope and the variables as from qmail-qfilter; besides these, only what the table env says. They start in / and have the filter's timeout, 30 s unless you write another.")
	return nil
}

// join puts lines that end in a backslash together with the next ones.
func (f *file) join() {
	for i := 0; i+1 < len(f.lines); i++ {
		l := f.lines[i]
		if l.isComment() {
			continue
		}
		for n := i + 1; n < len(f.lines) && strings.HasSuffix(l.text, `\`) && len(l.text) <= maxLine; n++ {
			next := f.lines[n]
			if l.parts == nil {
				l.first = l.text
			}
			l.parts = append(l.parts, part{next.no, next.text})
			l.text = strings.TrimSuffix(l.text, `\`) + " " + next.text
			f.lines = slices.Delete(f.lines, n, n+1)
			n--
		}
	}
}

// queueFilters are the lines of a file as they are read.
type queueFilters struct {
	im       *importer
	f        *file
	script   bool
	env      map[string]string
	programs []program
}

// program is a program with its arguments, and where it stands.
type program struct {
	line *line
	args []string
}

// line takes in a line.
func (q *queueFilters) line(l *line) {
	if !q.script {
		if m := domainFirst.FindStringSubmatch(l.text); m != nil {
			q.ofDomain(l, m[1], m[2], m[3])
			return
		}
	}
	words, rest, err := split(l.text)
	switch m := variable.FindStringSubmatch(l.text); {
	case err != "" && m != nil:
		q.f.none(l, "the value of this variable is worked out by the shell, which does not run here. Instead: write what comes out into the filter's table env.")
		return
	case err != "":
		q.f.none(l, "%s. Instead: write the programs and their arguments as they come out, and import the file again.", err)
		return
	}
	if words = q.before(l, words); len(words) == 0 {
		return
	}
	if rest != "" {
		q.f.none(l, "%s is for the shell, which does not run here. Instead: a script that does it, as a program of the chain.", show(rest))
	}
	for _, args := range chain(words) {
		q.take(l, args)
	}
}

// before takes in what stands before the programs on a line: variables, and in a
// script what runs qmail-qfilter. What is left are the programs.
func (q *queueFilters) before(l *line, words []string) []string {
	for len(words) > 0 && (words[0] == "exec" || words[0] == "export" || words[0] == "env") {
		words = words[1:]
	}
	for len(words) > 0 {
		m := variable.FindStringSubmatch(words[0])
		if m == nil {
			break
		}
		words = words[1:]
		q.variable(l, m[1], m[2])
	}
	if !q.script || len(words) == 0 {
		return words
	}
	at := slices.IndexFunc(words, func(w string) bool { return filepath.Base(w) == programName })
	if at < 0 {
		q.f.none(l, "this line of the script is not about qmail-qfilter, and nothing here runs it. Instead: what it does for the programs belongs into a program of its own, or the table env.")
		return nil
	}
	if before := slices.DeleteFunc(slices.Clone(words[:at]), func(w string) bool { return w == "exec" }); len(before) > 0 {
		q.f.none(l, "%s ran qmail-qfilter, and runs nothing here. Instead: the options memory, cpu and user of the filter, or its table env.", show(strings.Join(before, " ")))
	}
	return words[at+1:]
}

// take adds a program to those that run for all mail.
func (q *queueFilters) take(l *line, args []string) {
	if args, ok := q.check(l, args); ok {
		if len(q.programs) == maxPrograms {
			q.f.none(l, "a filter runs at most %d programs. Instead: a second filter of kind qfilter with this one.", maxPrograms)
			return
		}
		q.programs = append(q.programs, program{l, args})
	}
}

// check makes a program's path absolute.
func (q *queueFilters) check(l *line, args []string) ([]string, bool) {
	switch {
	case len(args) == 0 || args[0] == "":
		q.f.none(l, "there is no program between two --, and qmail-qfilter fails on it. Instead: take one of them out.")
		return nil, false
	case len(args) > maxArgs:
		q.f.none(l, "a program has at most %d arguments here. Instead: a script that calls it.", maxArgs)
		return nil, false
	case strings.Contains(args[0], "/"):
		args[0] = q.im.rooted(args[0])
	}
	return args, true
}

// variable takes in a variable that a script sets. Some qmails have a whole command
// line in QMAILQUEUE.
func (q *queueFilters) variable(l *line, name, value string) {
	switch {
	case name == "QQF_QMAILQUEUE":
		q.f.none(l, "it named the program that qmail-qfilter hands the message to. Instead: next in [listen.queue].")
	case name == "QMAILQUEUE" && strings.Contains(value, programName+" "):
		words, _, err := split(value)
		if err == "" {
			words = q.before(l, words)
		}
		for _, args := range chain(words) {
			q.take(l, args)
		}
	case name == "QMAILQUEUE":
		q.f.none(l, "it named the program that takes mail. Instead: next in [listen.queue].")
	default:
		q.env[name] = value
	}
}

// ofDomain makes a filter of a line of sagredo's file, for the mail that a domain
// sends.
func (q *queueFilters) ofDomain(l *line, domain, text, set string) {
	when := ""
	switch {
	case domain == "" || domain == "*":
	case strings.Contains(domain, "*"):
		when = fmt.Sprintf("like(domain(sender), %q)", strings.ToLower(domain))
	default:
		when = fmt.Sprintf("domain(sender) == %q", strings.ToLower(domain))
	}
	if set != "" {
		q.f.none(l, "%s is a variable that this program was given or went by. Instead: write it into the filter's table env.", show(set))
	}
	words, rest, err := split(text)
	if err != "" || rest != "" {
		q.f.none(l, "the program needs a shell. Instead: a script that does it.")
		return
	}
	args, ok := q.check(l, words)
	switch {
	case !ok:
	case when == "":
		q.take(l, args)
	default:
		q.write(when, []program{{l, args}})
	}
}

// write makes a filter.
func (q *queueFilters) write(when string, programs []program) {
	b := q.im.add(q.f, "qfilter", "qfilter")
	if when != "" {
		b.line("when = %s", quote(when))
	}
	b.line("programs = [")
	for _, p := range programs {
		b.line("  %s, # %s:%d", quoteAll(p.args), q.f.base(), p.line.no)
	}
	b.line("]")
	if len(q.env) > 0 {
		b.line("[filter.%s.env]", q.f.made[len(q.f.made)-1])
		for _, name := range sorted(q.env) {
			b.line("%s = %s", name, quote(q.env[name]))
		}
	}
}

// chain splits words at each "--", as qmail-qfilter does.
func chain(words []string) (all [][]string) {
	for len(words) > 0 {
		end := slices.Index(words, "--")
		if end < 0 {
			return append(all, words)
		}
		all, words = append(all, words[:end:end]), words[end+1:]
	}
	return all
}

// split makes words of a line as the shell does, up to what is an operator of it,
// which is the rest. err is what a shell alone can work out.
func split(s string) (words []string, rest, err string) {
	var word strings.Builder
	inWord, glued := false, false // glued: something stands before it, be it nothing in the end
	end := func() {
		if inWord {
			words = append(words, word.String())
		}
		word.Reset()
		inWord, glued = false, false
	}
	for i := 0; i < len(s); i++ {
		first := !glued
		glued = true
		switch c := s[i]; {
		case c == ' ' || c == '\t':
			end()
		case c == '#' && first:
			return words, "", ""
		case strings.IndexByte("|&;<>()", c) >= 0:
			end()
			return words, s[i:], ""
		case c == '$' && strings.HasPrefix(s[i:], `$@`):
			i++ // a script's own arguments: qmail gives none
		case strings.IndexByte("$`*?[~", c) >= 0 && (c != '~' || first):
			return nil, "", fmt.Sprintf("the shell works out what %q stands for", c)
		case c == '\\':
			if i++; i == len(s) {
				return nil, "", "it ends in a backslash"
			}
			inWord = true
			word.WriteByte(s[i])
		case c == '\'' || c == '"':
			n, text, wrong := quoted(s[i:])
			if wrong != "" {
				return nil, "", wrong
			}
			inWord = inWord || s[i:i+n] != `"$@"`
			i += n - 1
			word.WriteString(text)
		default:
			inWord = true
			word.WriteByte(c)
		}
	}
	end()
	return words, "", ""
}

// quoted reads a text in quotes, of n bytes with them.
func quoted(s string) (n int, text, err string) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == s[0]:
			return i + 1, b.String(), ""
		case s[0] == '"' && c == '\\' && i+1 < len(s) && strings.IndexByte("$`\"\\", s[i+1]) >= 0:
			i++
			b.WriteByte(s[i])
		case s[0] == '"' && strings.HasPrefix(s[i:], `$@`):
			i++
		case s[0] == '"' && (c == '$' || c == '`'):
			return 0, "", fmt.Sprintf("the shell works out what %q stands for", c)
		default:
			b.WriteByte(c)
		}
	}
	return 0, "", "a quote has no end"
}
