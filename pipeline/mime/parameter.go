package mime

import "strings"

// parameter is one parameter of a field, as one reader finds it.
type parameter struct {
	name    string // in lower case
	value   string
	reading Reading
}

// valueParser reads the value of a Content-Type or Content-Disposition field:
// a word and parameters (RFC 2045 §5.1, RFC 2183 §2).
type valueParser struct {
	s     string
	i     int
	dirty bool // readers differ
}

// parseValue is the word in lower case and the parameters in every reading, the
// strict ones first. more says that there were more parameters than max.
func parseValue(s string, max int) (word string, params []parameter, more bool) {
	p := valueParser{s: s}
	word = strings.ToLower(p.until(";"))
	word = removeBlanks(word)
	for p.i < len(s) {
		x, ok := p.parameter()
		if !ok {
			continue
		}
		for _, have := range params {
			p.dirty = p.dirty || have.name == x.name
		}
		if len(params) == max {
			return word, params, true
		}
		params = append(params, x)
	}
	if p.dirty {
		params, more = looseParameters(s, params, max)
	}
	return word, params, more
}

func removeBlanks(s string) string {
	if strings.ContainsAny(s, " \t\n") {
		return strings.Join(strings.Fields(s), "")
	}
	return s
}

// until is the text up to one of the stops or the end, without comments; the
// parser stands behind the stop.
func (p *valueParser) until(stops string) string {
	from := p.i
	var b strings.Builder
	for p.i < len(p.s) {
		c := p.s[p.i]
		switch {
		case strings.IndexByte(stops, c) >= 0:
			b.WriteString(p.s[from:p.i])
			p.i++
			return b.String()
		case c == '(':
			b.WriteString(p.s[from:p.i])
			p.comment()
			from = p.i
		default:
			p.i++
		}
	}
	b.WriteString(p.s[from:])
	return b.String()
}

// comment goes behind a comment, nested ones included, or to the end.
func (p *valueParser) comment() {
	p.dirty = true
	for depth := 0; p.i < len(p.s); p.i++ {
		switch p.s[p.i] {
		case '\\':
			p.i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				p.i++
				return
			}
		}
	}
	p.i = min(p.i, len(p.s))
}

// blanks goes over blanks, folds and comments.
func (p *valueParser) blanks() {
	for p.i < len(p.s) {
		switch p.s[p.i] {
		case ' ', '\t', '\n':
			p.i++
		case '(':
			p.comment()
		default:
			return
		}
	}
}

// parameter reads one parameter with the semicolon after it; ok is false if
// there was none.
func (p *valueParser) parameter() (x parameter, ok bool) {
	p.blanks()
	from := p.i
	for p.i < len(p.s) && tokenByte(p.s[p.i]) {
		p.i++
	}
	x.name = strings.ToLower(p.s[from:p.i])
	p.blanks()
	if p.i >= len(p.s) {
		p.dirty = p.dirty || x.name != ""
		return x, false
	}
	if p.s[p.i] != '=' {
		p.dirty = p.dirty || x.name != "" || p.s[p.i] != ';'
		if p.i == from || p.s[p.i] == ';' {
			p.i++
		}
		return x, false
	}
	p.i++
	p.blanks()
	if p.i < len(p.s) && p.s[p.i] == '"' {
		x.value = p.quoted()
	} else {
		from = p.i
		for p.i < len(p.s) && tokenByte(p.s[p.i]) {
			p.i++
		}
		x.value = p.s[from:p.i]
		p.dirty = p.dirty || x.value == ""
	}
	p.blanks()
	if p.i < len(p.s) {
		if p.s[p.i] == ';' {
			p.i++
		} else {
			p.dirty = true
			if p.s[p.i] == '=' || p.s[p.i] == '"' {
				p.i++
			}
		}
	}
	return x, true
}

// tokenByte reports whether a byte may stand in a token. More may than RFC 2045
// §5.1 allows: what no program takes for an end.
func tokenByte(c byte) bool {
	switch c {
	case ' ', '\t', '\n', '(', ';', '=', '"', ',':
		return false
	}
	return true
}

// quoted reads a quoted string: backslashes go, and so do folds but for their
// blanks.
func (p *valueParser) quoted() string {
	p.i++
	end := strings.IndexAny(p.s[p.i:], "\"\\\n;")
	if end >= 0 && p.s[p.i+end] == '"' {
		v := p.s[p.i : p.i+end]
		p.i += end + 1
		return v
	}
	p.dirty = true
	var b strings.Builder
	for p.i < len(p.s) {
		c := p.s[p.i]
		p.i++
		switch {
		case c == '"':
			return b.String()
		case c == '\\' && p.i < len(p.s):
			b.WriteByte(p.s[p.i])
			p.i++
		case c != '\n':
			b.WriteByte(c)
		}
	}
	return b.String()
}

// looseParameters adds what readers find who do not parse a value but cut it up.
func looseParameters(s string, params []parameter, max int) ([]parameter, bool) {
	seen := map[[2]string]bool{}
	for _, x := range params {
		seen[[2]string{x.name, x.value}] = true
	}
	more := false
	add := func(name, value string) {
		name = strings.ToLower(strings.Trim(name, " \t\n\"'"))
		for _, v := range []string{value, foldless(value)} {
			key := [2]string{name, v}
			if name == "" || v == "" || seen[key] {
				continue
			}
			if more = more || len(params) >= 4*max; more {
				return
			}
			seen[key] = true
			params = append(params, parameter{name, v, because(ParameterLoose)})
		}
	}
	cutAtSemicolons(s, true, add)
	cutAtSemicolons(s, false, add)
	if strings.IndexByte(s, '(') >= 0 {
		p := valueParser{s: s}
		cutAtSemicolons(p.until(""), true, add)
	}
	findParameters(s, add)
	return params, more
}

// foldless is a value without its folds, the blanks that belong to them included.
func foldless(v string) string {
	if strings.IndexByte(v, '\n') < 0 {
		return v
	}
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if v[i] != '\n' {
			b.WriteByte(v[i])
			continue
		}
		for i+1 < len(v) && (v[i+1] == ' ' || v[i+1] == '\t') {
			i++
		}
	}
	return b.String()
}

// cutAtSemicolons cuts a value at its semicolons, or at those outside quotes, and
// each piece at its first '='. Backslashes and comments stay what they are.
func cutAtSemicolons(s string, heedQuotes bool, add func(name, value string)) {
	for len(s) > 0 {
		end, inQuotes := 0, false
		for ; end < len(s) && (inQuotes || s[end] != ';'); end++ {
			if heedQuotes && s[end] == '"' && (end == 0 || s[end-1] != '\\') {
				inQuotes = !inQuotes
			}
		}
		if name, value, ok := strings.Cut(s[:end], "="); ok {
			value = strings.Trim(value, " \t\n")
			inner := strings.Trim(value, `"'`)
			add(name, strings.Trim(inner, "\n"))
			// A quoted string may end before the piece does, or a token at a blank.
			if cut, _, ok := strings.Cut(strings.TrimLeft(value, `"`), `"`); ok {
				add(name, cut)
			}
			if k := strings.IndexAny(inner, " \t\n,("); k > 0 {
				add(name, inner[:k])
			}
			if strings.IndexByte(inner, '"') >= 0 {
				add(name, strings.ReplaceAll(inner, `"`, ""))
			}
		}
		s = s[min(end+1, len(s)):]
	}
}

// wanted are the parameters that findParameters looks for.
var wanted = []string{"boundary", "filename", "name"}

// maxFoundName and maxFoundValue bound what is looked at around one '=', which
// keeps the look at all of them linear.
const (
	maxFoundName  = 100
	maxFoundValue = 4 << 10
)

// asciiLower is s in lower case, byte for byte.
func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		b[i] = lower(c)
	}
	return string(b)
}

// findParameters looks for the words wherever they stand, in a comment or another
// parameter's quotes, with whatever stands before them.
func findParameters(s string, add func(name, value string)) {
	low := asciiLower(s)
	for eq := strings.IndexByte(low, '='); eq >= 0; {
		name := strings.TrimRight(low[max(0, eq-maxFoundName):eq], " \t\n")
		if star := strings.LastIndexByte(name, '*'); star > 0 && len(name)-star < 6 {
			if again := strings.LastIndexByte(name[:star], '*'); star == len(name)-1 && again > 0 && star-again < 6 {
				star = again
			}
			addFound(s, name[:star], name[star:], eq, add)
		} else {
			addFound(s, name, "", eq, add)
		}
		next := strings.IndexByte(low[eq+1:], '=')
		if next < 0 {
			return
		}
		eq += 1 + next
	}
}

// addFound adds the parameter whose '=' is at eq, if it is one that is wanted.
func addFound(s, name, stars string, eq int, add func(name, value string)) {
	for _, w := range wanted {
		if !strings.HasSuffix(name, w) {
			continue
		}
		v := strings.TrimLeft(s[eq+1:min(len(s), eq+1+maxFoundValue)], " \t\n")
		if strings.HasPrefix(v, `"`) {
			v, _, _ = strings.Cut(v[1:], `"`)
		} else if k := strings.IndexAny(v, ";\"\n"); k >= 0 {
			v = strings.TrimRight(v[:k], " \t")
		}
		add(w+stars, v)
		if k := strings.IndexByte(v, ')'); k > 0 {
			add(w+stars, v[:k])
		}
		return
	}
}
