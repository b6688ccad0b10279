package pattern

import (
	"html"
	"io"
	"regexp"
	"strings"
	"unicode"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/mime"
)

const (
	// maxCharsets bounds in how many charsets a text is read.
	maxCharsets = 4
	// maxPartHead bounds a part's head that is searched for them, in bytes.
	maxPartHead = 64 << 10
)

// charsetRule finds what a Content-Type says of the charset, however it is
// written.
var charsetRule = regexp.MustCompile(`(?i)charset\*?[ \t\r\n]*=[ \t\r\n]*"?([A-Za-z0-9_.:+-]{1,40})`)

// charsetsOf are the charsets that a part's text may be in: those its fields
// Content-Type name, and "", which is what clients take for want of one.
func charsetsOf(p *mime.Part) ([]string, error) {
	b, err := io.ReadAll(io.LimitReader(p.Header(), maxPartHead))
	if err != nil {
		return nil, err
	}
	all := []string{""}
	h, _ := message.ParseHead(string(b))
	for i := range h.Len() {
		f := h.Field(i)
		if !strings.EqualFold(strings.TrimRight(f.Name(), " \t"), "Content-Type") {
			continue
		}
		for _, m := range charsetRule.FindAllStringSubmatch(f.Value(), maxCharsets) {
			if len(all) <= maxCharsets {
				all = append(all, strings.ToLower(m[1]))
			}
		}
	}
	return variants(all...), nil
}

// visible is a text with one blank for each run of white space, and without
// characters that nobody sees.
func visible(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	blank := false
	for _, c := range s {
		switch {
		case unicode.IsSpace(c) || c == 0:
			blank = true
			continue
		case hidden(c):
			continue
		}
		if blank && b.Len() > 0 {
			b.WriteByte(' ')
		}
		blank = false
		b.WriteRune(c)
	}
	return b.String()
}

// hidden reports whether a character has no width: soft hyphen, combining grapheme
// joiner, formatting characters (Unicode category Cf), variation selectors.
func hidden(c rune) bool {
	return unicode.Is(unicode.Cf, c) || c == 0x034f || unicode.Is(unicode.Variation_Selector, c)
}

// looksLikeHTML reports whether a text is shown as HTML by programs that guess.
func looksLikeHTML(s string) bool {
	s = strings.ToLower(s[:min(len(s), 4096)])
	return strings.Contains(s, "<html") || strings.Contains(s, "<body") || strings.Contains(s, "<!doctype html")
}

// blocks are the elements before and after which a reader sees white space.
var blocks = map[string]bool{
	"p": true, "div": true, "br": true, "td": true, "th": true, "tr": true, "table": true, "li": true, "ul": true, "ol": true, "h1": true, "h2": true, "h3": true,
	"h4": true, "h5": true, "h6": true, "hr": true, "blockquote": true, "pre": true, "section": true, "article": true, "header": true, "footer": true, "center": true, "title": true,
}

// plain is what is read of HTML: without tags, comments, scripts and styles, with
// its entities decoded. It takes time in proportion to the text.
func plain(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	skip := "" // the element whose text nobody reads
	for len(s) > 0 {
		i := strings.IndexByte(s, '<')
		if i < 0 {
			i = len(s)
		}
		if skip == "" {
			b.WriteString(s[:i])
		}
		if s = s[i:]; s == "" {
			break
		}
		if comment, ok := strings.CutPrefix(s, "<!--"); ok {
			_, rest, found := strings.Cut(comment, "-->")
			if s = rest; !found {
				break
			}
			continue
		}
		name, closing := tagName(s)
		if name == "" && !strings.HasPrefix(s, "<!") && !strings.HasPrefix(s, "<?") {
			if skip == "" {
				b.WriteByte('<')
			}
			s = s[1:]
			continue
		}
		_, rest, _ := strings.Cut(s, ">")
		switch s = rest; {
		case skip != "":
			if closing && name == skip {
				skip = ""
			}
		case (name == "script" || name == "style") && !closing:
			skip = name
		case blocks[name]:
			b.WriteByte(' ')
		}
	}
	return html.UnescapeString(b.String())
}

// tagName is the name of the tag at the start of s, in lower case.
func tagName(s string) (name string, closing bool) {
	s, closing = strings.CutPrefix(s[1:], "/")
	n := 0
	for n < len(s) && n < 20 && (s[n]|0x20 >= 'a' && s[n]|0x20 <= 'z' || n > 0 && s[n] >= '0' && s[n] <= '9') {
		n++
	}
	return strings.ToLower(s[:n]), closing
}
