package mime

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Source says where a name was found.
type Source uint8

// The sources of names.
const (
	FromDisposition Source = iota // filename of Content-Disposition
	FromType                      // name of Content-Type
	FromEncoded                   // the uuencode, yEnc or BinHex header
	FromLocation                  // Content-Location: often an address and no name
	FromDescription               // Content-Description: often words and no name
	sources
)

var sourceWords = [sources]string{"filename", "name", "encoded", "location", "description"}

// String is the source's word.
func (s Source) String() string {
	if s < sources {
		return sourceWords[s]
	}
	return "unknown"
}

// Weak reports whether the text is seldom a file's name: only few clients use it
// for want of another, and in ordinary mail it may end in ".com".
func (s Source) Weak() bool { return s == FromLocation || s == FromDescription }

// Name is a name that a part may have.
type Name struct {
	Source Source
	// Text is the name decoded as the standard has it, and encoded words as
	// clients have them. Raw is what stands in the message, without quotes. Both
	// are data from outside: they may hold any byte.
	Text, Raw string
	Reading   Reading
}

// Disguise is a set of ways in which a name hides what it is.
type Disguise uint16

// The disguises.
const (
	HiddenBytes   Disguise = 1 << iota // NUL or another control
	BidiControl                        // right-to-left override and its like
	ZeroWidth                          // characters without a width
	Compatibility                      // full-width and other forms of plain letters
	TrailingDots                       // dots or blanks at the end
	Stream                             // an alternate data stream
	Percent                            // percent escapes in a plain name
	Encoded                            // encoded words where none may stand, or in two layers
	Padded                             // many blanks before the last extension
	Long                               // longer than file systems have it
	BadBytes                           // characters that no file name may have on Windows
)

var disguiseWords = []string{"hidden-bytes", "bidi-control", "zero-width", "compatibility", "trailing-dots", "stream", "percent", "encoded", "padded", "long", "bad-bytes"}

// String is the disguises' words joined by "+", "none" without any.
func (d Disguise) String() string {
	var words []string
	for i, w := range disguiseWords {
		if d&(1<<i) != 0 {
			words = append(words, w)
		}
	}
	if words == nil {
		return "none"
	}
	return strings.Join(words, "+")
}

// NormalName is a name as a file system may come to have it: without a path, in
// lower case and compatibility-composed, without what cannot be seen.
type NormalName struct {
	Text     string
	Disguise Disguise
}

// Extensions are those of the name from the last to the first, without dots: of
// "a.pdf.exe" exe and pdf. A name without a dot has none.
func (n NormalName) Extensions() []string {
	parts := strings.Split(n.Text, ".")
	var exts []string
	for i := len(parts) - 1; i > 0 && len(exts) < 8; i-- {
		if e := strings.TrimSpace(parts[i]); e != "" {
			exts = append(exts, e)
		}
	}
	return exts
}

// Extension is the last extension, "" if there is none.
func (n NormalName) Extension() string {
	if exts := n.Extensions(); len(exts) > 0 {
		return exts[0]
	}
	return ""
}

// The bounds of NormalNames: how much of a name is looked at, how many forms of
// it there may be, and how long a file system lets it be.
const (
	maxNameBytes = 8 << 10
	maxForms     = 32
	maxFileName  = 255
)

// Normal are the names that clients and file systems may make of the name; the
// first is the likeliest. There is at least one unless the name is empty.
func (n Name) Normal() []NormalName {
	f := forms{}
	f.decoded(n.Text, 0)
	if n.Raw != n.Text {
		f.decoded(n.Raw, 0)
	}
	return f.list
}

// NormalNames is Name.Normal for a name from elsewhere, as an archive.
func NormalNames(name string) []NormalName { return Name{Text: name, Raw: name}.Normal() }

// forms collects the forms of a name.
type forms struct{ list []NormalName }

// decoded takes a name under the decodings that a client may make of it.
func (f *forms) decoded(s string, d Disguise) {
	if len(s) > maxNameBytes {
		f.visible(s[:maxNameBytes/2], d|Long)
		s, d = s[len(s)-maxNameBytes/2:], d|Long
	}
	f.visible(decodeBytes(s), d)
	words := decodeWords(s)
	if words != s {
		f.visible(words, d)
		if again := decodeWords(words); again != words {
			f.visible(again, d|Encoded)
		}
	}
	if _, rest, ok := cutCharset(words); ok && rest != "" {
		f.visible(decodeExtended(words), d|Percent)
	}
	if plain := unpercent(words); plain != words {
		f.visible(decodeBytes(plain), d|Percent)
		if again := unpercent(plain); again != plain {
			f.visible(decodeBytes(again), d|Percent)
		}
	}
	if strings.IndexByte(s, '+') >= 0 {
		if u := decodeUTF7(s); u != s {
			f.visible(u, d|Encoded)
		}
	}
}

// visible takes a name in Unicode: what cannot be seen goes, or ends it.
func (f *forms) visible(s string, d Disguise) {
	s = norm.NFC.String(s)
	if plain := norm.NFKC.String(s); plain != s {
		s, d = plain, d|Compatibility
	}
	seen, hidden := reveal(s)
	d |= hidden
	if hidden&HiddenBytes != 0 {
		if i := strings.IndexByte(s, 0); i >= 0 {
			cut, _ := reveal(s[:i])
			f.paths(cut, d)
		}
	}
	f.paths(seen, d)
	if strings.ContainsAny(seen, `<>|*?"`) {
		f.paths(strings.Map(func(r rune) rune {
			if strings.ContainsRune(`<>|*?"`, r) {
				return -1
			}
			return r
		}, seen), d|BadBytes)
	}
}

// reveal takes out what is not shown.
func reveal(s string) (string, Disguise) {
	var d Disguise
	out := strings.Map(func(r rune) rune {
		switch {
		case r == '\t', r == '\n', r == '\r':
			return ' '
		case r < ' ', r >= 0x7f && r < 0xa0:
			d |= HiddenBytes
			return -1
		case r < 0x7f:
			return r
		case r == 0x200e, r == 0x200f, r == 0x61c, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
			d |= BidiControl
			return -1
		case unicode.Is(unicode.Cf, r), unicode.Is(unicode.Variation_Selector, r), r == 0x34f, r == 0x115f, r == 0x1160, r == 0x3164:
			d |= ZeroWidth
			return -1
		case unicode.IsSpace(r):
			return ' '
		case r == 0x2024: // one dot leader
			return '.'
		case r == utf8.RuneError:
			return '?'
		}
		return unicode.ToLower(r)
	}, s)
	return asciiLower(out), d
}

// paths takes the last element of a path, and each side of a colon.
func (f *forms) paths(s string, d Disguise) {
	if t := strings.TrimRight(s, `/\. `); strings.ContainsAny(s[len(t):], `/\`) {
		s = t
	}
	s = s[strings.LastIndexAny(s, `/\`)+1:]
	f.add(s, d)
	if i := strings.IndexByte(s, ':'); i >= 0 {
		f.add(s[:i], d|Stream)
		for _, x := range strings.SplitN(s[i+1:], ":", 4) {
			f.add(x, d|Stream)
		}
	}
	if utf8.RuneCountInString(s) > maxFileName {
		r := []rune(s)
		f.add(string(r[:maxFileName]), d|Long)
	}
}

func (f *forms) add(s string, d Disguise) {
	s = strings.Trim(s, " '\"`;,")
	if t := strings.TrimRight(s, ". "); t != s {
		s, d = t, d|TrailingDots
	}
	if strings.Contains(s, "     ") {
		d |= Padded
	}
	if s == "" || len(f.list) >= maxForms {
		return
	}
	for i := range f.list {
		if f.list[i].Text == s {
			return
		}
	}
	f.list = append(f.list, NormalName{s, d})
}

// extensionSet is the last extensions of all forms of a name, sorted.
func (n Name) extensionSet() []string {
	var all []string
	for _, x := range n.Normal() {
		if e := x.Extension(); e != "" {
			all = append(all, e)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
