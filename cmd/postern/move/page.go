package move

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// page is a piece of a configuration as it is written.
type page struct{ b strings.Builder }

// maxWidth is where comments are folded.
const maxWidth = 118

// line writes a line.
func (p *page) line(format string, args ...any) {
	fmt.Fprintf(&p.b, format, args...)
	p.b.WriteByte('\n')
}

// text writes a comment, folded; what follows the first line is indented.
func (p *page) text(indent, s string) {
	const mark = "#"
	line := mark + indent
	begun := false
	for _, word := range strings.Fields(tidy(s, maxComment)) {
		if begun && len(line)+1+len(word) > maxWidth {
			p.line("%s", line)
			line = mark + indent
		}
		line, begun = line+" "+word, true
	}
	if begun {
		p.line("%s", line)
	}
}

// maxComment bounds a comment of ours, in bytes: words of a file may be in it.
const maxComment = 2000

// head is what stands on top.
func (p *page) head(im *importer, read []*file) {
	var files []string
	noEqual := 0
	for _, f := range read {
		files = append(files, show(f.path))
		noEqual += f.noEqual
	}
	p.text("", "Made by postern import of "+strings.Join(files, ", ")+".")
	p.line("#")
	p.text("", "Each file is listed line by line, with its own comments. Below a line stands what has no equal here (NO EQUAL) and what is done in another way (NOTE).")
	if noEqual > 0 {
		p.text("", "NO EQUAL stands there "+Times(noEqual)+": read it before this configuration is used.")
	}
	p.line("#")
	p.text("", "Try it: postern check --config THIS, and postern explain --config THIS --from A --to B MESSAGE. To see on mail that flows what it would do, write mode = \"shadow\" into the filters first.")
	p.text("", "To put it into a configuration that is there: take the filters' tables, and add their names to the list of its chain.")
	p.line("")
}

// Times is a number of times in words.
func Times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// section writes what was made of a file.
func (p *page) section(f *file) {
	p.line("# ---- %s", tidy(f.path, maxShown))
	for _, s := range f.about {
		p.text("    ", s)
	}
	width := len(strconv.Itoa(len(f.lines)))
	for _, l := range f.lines {
		p.line("%s", listed(width, l.no, l.own()))
		for _, more := range l.parts {
			p.line("%s", listed(width, more.no, more.text))
		}
		for _, s := range l.remarks {
			p.text("    ", s)
		}
	}
	if len(f.lines) == 0 {
		p.line("# (it is empty)")
	}
	p.b.WriteString(f.body.b.String())
}

// listed is a line of a file in a comment.
func listed(width, no int, text string) string {
	return strings.TrimRight(fmt.Sprintf("# %*d: %s", width, no, tidy(text, maxShown)), " ")
}

// tidy makes of any bytes what may stand in a comment: one line of printable
// characters, cut if it is long.
func tidy(s string, most int) string {
	var b strings.Builder
	for _, c := range s {
		switch {
		case c == '\t':
			c = ' '
		case unseen(c):
			c = '?'
		}
		if b.Len()+utf8.RuneLen(c) > most {
			b.WriteString("...")
			break
		}
		b.WriteRune(c)
	}
	return b.String()
}

// show is a text of a file or of the command line in a message.
func show(s string) string {
	if s == tidy(s, maxShown) && s != "" && !strings.ContainsAny(s, " \"") {
		return s
	}
	return strconv.QuoteToASCII(tidy(s, maxShown))
}

// quote writes a text as a string of TOML. It must be safe. What cannot be seen is
// escaped.
func quote(s string) string {
	if !strings.Contains(s, "'") && strings.ContainsAny(s, `"\`) && !strings.ContainsFunc(s, unseen) {
		return "'" + s + "'"
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case unseen(c):
			fmt.Fprintf(&b, `\U%08X`, c)
		default:
			b.WriteRune(c)
		}
	}
	return b.String() + `"`
}

func unseen(c rune) bool { return c == utf8.RuneError || !unicode.IsPrint(c) }

// quoteAll writes a list of texts.
func quoteAll(all []string) string {
	quoted := make([]string, len(all))
	for i, s := range all {
		quoted[i] = quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// list writes a key with a list, a line for each item if one line is too long.
func (p *page) list(key string, all []string) {
	if one := fmt.Sprintf("%s = %s", key, quoteAll(all)); len(one) <= maxWidth {
		p.line("%s", one)
		return
	}
	p.line("%s = [", key)
	line := " "
	for _, s := range all {
		q := " " + quote(s) + ","
		if line != " " && len(line)+len(q) > maxWidth {
			p.line("%s", line)
			line = " "
		}
		line += q
	}
	p.line("%s\n]", line)
}

// lines writes a key with a list, each item with its place in the file.
func (p *page) lines(key string, f *file, all []lineText) {
	p.line("%s = [", key)
	for _, l := range all {
		p.line("  %s, # %s:%d", quote(l.text), f.base(), l.line.no)
	}
	p.line("]")
}

// base is a file's name in a comment.
func (f *file) base() string { return tidy(filepath.Base(f.path), 60) }
