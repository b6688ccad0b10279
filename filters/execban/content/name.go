package content

import (
	"net/url"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// maxName bounds a name in bytes; of a longer one the end is looked at.
const maxName = 4096

// Disguises, as Match tells them.
const (
	disguiseBidi    = "characters that turn the direction of text"
	disguiseHidden  = "characters that cannot be seen"
	disguiseWide    = "characters that look like others"
	disguiseEnd     = "dots or blanks at the end"
	disguiseStream  = "an alternate data stream"
	disguiseNUL     = "a NUL"
	disguiseBlanks  = "many blanks before the extension"
	disguiseDouble  = "two extensions"
	disguiseEncoded = "characters that are encoded"
	disguiseCLSID   = "a class identifier as the extension"
)

// byExtension is made once, because names are many.
var byExtension = sync.OnceValue(extensions)

// ByName tells what a name says of a file, in every reading that a program may
// make of it: Windows ignores dots and blanks at the end, some programs stop at
// a NUL, a name of wide characters becomes a plain one. The name may hold any
// bytes and be a path. Whether those are all readings, Readings tells.
func ByName(name string) (all []Match) {
	readings, _ := Readings(name)
	for _, r := range readings {
		i := strings.LastIndexByte(r.Name, '.')
		if i < 0 {
			continue
		}
		ext := r.Name[i+1:]
		if isCLSID(ext) {
			all = add(all, Match{Shortcuts, "." + ext, disguiseCLSID})
			continue
		}
		class, ok := byExtension()[ext]
		if !ok {
			continue
		}
		if r.Disguise == "" {
			r.Disguise = doubled(r.Name[:i])
		}
		all = add(all, Match{class, "." + ext, r.Disguise})
	}
	return all
}

// doubled is how a name without its extension makes believe that it has another.
func doubled(base string) string {
	trimmed := strings.TrimRight(base, " \t\u00a0")
	if len(base)-len(trimmed) >= 3 {
		return disguiseBlanks
	}
	i := strings.LastIndexByte(trimmed, '.')
	if i < 0 {
		return ""
	}
	harmless := []string{
		"pdf", "doc", "docx", "xls", "xlsx", "ppt", "pptx", "odt", "ods", "txt", "rtf", "csv", "jpg", "jpeg", "png", "gif", "bmp", "tif", "tiff",
		"htm", "html", "xml", "zip", "rar", "7z", "mp3", "mp4", "avi", "wav", "eml", "msg", "ics", "log",
	}
	if slices.Contains(harmless, strings.TrimSpace(trimmed[i+1:])) {
		return disguiseDouble
	}
	return ""
}

// Reading is one way to read a name: its last element in lower case, and what
// about the name as it came makes that reading less than plain.
type Reading struct{ Name, Disguise string }

// maxReadings bounds the readings of a name. Names that people give to files have
// a handful, also in scripts that need marks of direction.
const (
	maxReadings = 64
	maxTwists   = 2 // of one kind, one after the other
)

// Readings is all readings of a name, the plain one first, those that ask for
// less before those that ask for more. Bytes that are no UTF-8 are read as
// unknown characters, and as Latin-1. whole is false if there are more than can
// be told: such a name was made to hide something.
func Readings(name string) (all []Reading, whole bool) {
	type way struct {
		s, disguise string
		twists      [len(variants)]int
	}
	name = name[max(0, len(name)-maxName):]
	ways := []way{{s: name}}
	if !utf8.ValidString(name) {
		ways = []way{{s: strings.ToValidUTF8(name, "\ufffd")}, {s: latin1(name)}}
	}
	seen, told := map[string]bool{}, map[string]bool{}
	for len(ways) > 0 {
		w := ways[0]
		ways = ways[1:]
		if seen[w.s] {
			continue
		}
		seen[w.s] = true
		r := Reading{strings.ToLower(base(w.s)), w.disguise}
		if end := strings.TrimRight(r.Name, ". \t\u00a0\"'"); end != r.Name {
			r.Name, r.Disguise = end, or(w.disguise, disguiseEnd)
		}
		if len(all) == maxReadings || len(seen) > 4*maxReadings {
			return all, false
		}
		if !told[r.Name] {
			told[r.Name] = true
			all = append(all, r)
		}
		for i, v := range variants {
			if w.twists[i] == maxTwists {
				continue
			}
			next := way{disguise: or(w.disguise, v.disguise), twists: w.twists}
			next.twists[i]++
			for _, next.s = range v.make(w.s) {
				if !seen[next.s] {
					ways = append(ways, next)
				}
			}
		}
	}
	return all, true
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// latin1 reads bytes that are no UTF-8.
func latin1(s string) string {
	r := make([]rune, len(s))
	for i := range len(s) {
		r[i] = rune(s[i])
	}
	return string(r)
}

// base is the last element of a path with either kind of slash.
func base(s string) string {
	return s[strings.LastIndexAny(s, `/\`)+1:]
}

// variants makes the further readings of a name.
var variants = [...]struct {
	disguise string
	make     func(string) []string
}{
	{disguiseNUL, cutAt("\x00", false)},
	{disguiseBidi, turned},
	{disguiseHidden, unhidden},
	{disguiseWide, narrow},
	{disguiseStream, cutAt(":", true)},
	{disguiseEncoded, unescaped},
}

// cutAt makes readings of a name that ends at a mark, and of what follows it.
func cutAt(mark string, after bool) func(string) []string {
	return func(s string) []string {
		i := strings.Index(s, mark)
		if i < 0 {
			return nil
		}
		parts := []string{s[:i], strings.ReplaceAll(s, mark, "")}
		if after {
			parts = append(parts, s[i+1:])
		}
		return parts
	}
}

func isBidi(r rune) bool {
	return r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x200e || r == 0x200f || r == 0x061c
}

// turned is a name without the marks that turn the direction, the parts between
// them, and what the eye sees behind one that turns it.
func turned(s string) []string {
	i := strings.IndexFunc(s, isBidi)
	if i < 0 {
		return nil
	}
	without := strings.Map(func(r rune) rune {
		if isBidi(r) {
			return -1
		}
		return r
	}, s)
	_, n := utf8.DecodeRuneInString(s[i:])
	rest := []rune(strings.TrimFunc(s[i+n:], isBidi))
	slices.Reverse(rest)
	return []string{without, s[:i], s[i+n:], s[:i] + string(rest)}
}

// unhidden is a name without what cannot be seen.
func unhidden(s string) []string {
	return []string{strings.Map(func(r rune) rune {
		if r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r) && !isBidi(r) || r == 0x3164 || r == 0xffa0 || unicode.Is(unicode.Variation_Selector, r)) {
			return -1
		}
		return r
	}, s)}
}

// narrow is a name in the plain forms of its characters (Unicode NFKC), dots of
// other scripts included.
func narrow(s string) []string {
	return []string{strings.Map(func(r rune) rune {
		switch r {
		case 0x3002, 0xff61, 0x06d4, 0x0701, 0x0702, 0x2e3c, 0xa60e, 0xa4f8:
			return '.'
		case 0x2044, 0x2215, 0x29f8:
			return '/'
		}
		return r
	}, norm.NFKC.String(s))}
}

func unescaped(s string) []string {
	if !strings.Contains(s, "%") {
		return nil
	}
	u, err := url.PathUnescape(s)
	if err != nil || !utf8.ValidString(u) {
		return nil
	}
	return []string{u}
}

// isCLSID is whether an extension names a class of Windows, which then opens the
// file.
func isCLSID(ext string) bool {
	return len(ext) == 38 && ext[0] == '{' && ext[37] == '}' && strings.Count(ext, "-") == 4
}
