package milter

import "strings"

// maxLine is how long a line of a field may be in bytes (RFC 5322 §2.1.1).
const maxLine = 998

// fieldValue is a value as a milter gives it in the form in which it can stand in
// a head: LF between lines, each of which continues the field; no control bytes;
// a line that is too long folded at its blanks. What can stand there already
// keeps its bytes.
func fieldValue(name, v string, leading bool) string {
	if leading {
		v = strings.TrimPrefix(v, " ")
	}
	if plain(v) && len(name)+len(": ")+len(v) <= maxLine {
		return v
	}
	v = strings.ReplaceAll(strings.ReplaceAll(v, "\r\n", "\n"), "\r", "\n")
	var b strings.Builder
	for i, line := range strings.Split(strings.TrimRight(v, "\n"), "\n") {
		line = printable(line)
		room := maxLine
		if i == 0 {
			room -= len(name) + len(": ")
		} else {
			if strings.Trim(line, " \t") == "" {
				continue
			}
			if line[0] != ' ' && line[0] != '\t' {
				line = "\t" + line
			}
			b.WriteByte('\n')
		}
		fold(&b, line, room)
	}
	return b.String()
}

// plain reports whether a value is one line without control bytes.
func plain(v string) bool {
	for i := range len(v) {
		if isControl(v[i]) && v[i] != '\t' {
			return false
		}
	}
	return true
}

// printable makes a question mark of each control byte.
func printable(line string) string {
	if plain(line) {
		return line
	}
	b := []byte(line)
	for i, c := range b {
		if isControl(c) && c != '\t' {
			b[i] = '?'
		}
	}
	return string(b)
}

// fold writes a line, in several if it is longer than room, which begin where it
// has a blank behind a word.
func fold(b *strings.Builder, line string, room int) {
	for len(line) > room {
		words := len(line) - len(strings.TrimLeft(line, " \t"))
		at := strings.LastIndexAny(line[:room+1], " \t")
		if at <= words || strings.Trim(line[at:], " \t") == "" {
			break // nowhere to fold: it is refused as it stands
		}
		b.WriteString(line[:at])
		b.WriteByte('\n')
		line, room = line[at:], maxLine
	}
	b.WriteString(line)
}
