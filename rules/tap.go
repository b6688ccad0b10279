package rules

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Limits of control/taps.
const (
	MaxTapLine = 4096 // bytes of a line
	MaxTaps    = 4096 // lines
)

const (
	maxTapRegex = 2048 // bytes
	// maxTapCopy is the longest address that qmail-queue takes (ADDR in qmail-queue.c, less its NUL).
	maxTapCopy = 1002
)

// TapKind says which addresses of a message a tap looks at.
type TapKind byte

// The kinds of taps, by their letter in control/taps.
const (
	TapFrom TapKind = 'F' // the envelope sender
	TapTo   TapKind = 'T' // each envelope recipient
	TapAny  TapKind = 'A' // both
)

// Tap says of which messages an address gets a copy. It is immutable and safe for concurrent use; the zero Tap matches
// nothing.
//
// The regular expression is a POSIX extended one, on bytes, found anywhere in the address (not anchored), and the case of
// ASCII letters does not count: the dots of `user@example.org` are any byte. An empty one matches every address, the empty
// sender is matched by `^$`. Back-references, collating elements and word anchors are errors.
type Tap struct {
	From   bool   // looks at the sender
	To     bool   // looks at the recipients
	Negate bool   // matches the addresses in which the expression is not found
	Regex  string // without the ! of a negated one
	Copy   string // the address that gets the copy
	Line   int    // in the file, or 0

	re *regexp.Regexp
}

// NewTap makes a tap of its parts. A leading ! of the expression negates; unlike in a file, it may contain colons.
func NewTap(kind TapKind, regex, copyTo string) (Tap, error) {
	t := Tap{From: kind == TapFrom || kind == TapAny, To: kind == TapTo || kind == TapAny, Copy: copyTo}
	if !t.From && !t.To {
		return Tap{}, fmt.Errorf("unknown kind of tap %s; write F (sender), T (recipient) or A (both)", quote(string(kind)))
	}
	t.Regex, t.Negate = strings.CutPrefix(regex, "!")
	if len(regex) > maxTapRegex {
		return Tap{}, fmt.Errorf("the regular expression is %d bytes long, at most %d are allowed", len(regex), maxTapRegex)
	}
	if err := checkCopy(copyTo); err != nil {
		return Tap{}, err
	}
	re, err := compilePOSIX(t.Regex)
	if err != nil {
		return Tap{}, errors.New(clean(err.Error(), maxMessage))
	}
	t.re = re
	return t, nil
}

// checkCopy refuses what cannot be an address in an envelope. One without an @ is local, as in qmail.
func checkCopy(addr string) error {
	if addr == "" {
		return errors.New("the address for the copy is missing")
	}
	if len(addr) > maxTapCopy {
		return fmt.Errorf("the address for the copy is %d bytes long, at most %d are allowed", len(addr), maxTapCopy)
	}
	for i := range len(addr) {
		if addr[i] <= ' ' || addr[i] == 0x7f {
			return fmt.Errorf("the address for the copy has a blank or control character: %s", quote(addr))
		}
	}
	return nil
}

// ParseTap reads one line of control/taps: `type:regex:address`, or `regex:address` in the first version of the patch.
//
// The type is F, T or A, or a word that starts with that letter in upper case; it is told from an expression by the number
// of colons. A line with one colon is of the old form and matches senders and recipients, a line with more has a type: the
// expression is up to the second colon, so it cannot contain one, and the address is the rest. The types alone (F:x@y) are
// an error, because a forgotten field would make them an expression that is found in most addresses.
func ParseTap(line string) (Tap, error) {
	if len(line) > MaxTapLine {
		return Tap{}, fmt.Errorf("the line is %d bytes long, at most %d are allowed", len(line), MaxTapLine)
	}
	first, rest, ok := strings.Cut(line, ":")
	if !ok {
		return Tap{}, errors.New("no colon in the line; write F:regex:address, T:regex:address or A:regex:address")
	}
	regex, copyTo, typed := strings.Cut(rest, ":")
	if !typed {
		if kind := TapKind(lineByte(first)); len(first) == 1 && kind.known() {
			return Tap{}, fmt.Errorf("a tap of type %c has two more fields; write %c:regex:address", kind, kind)
		}
		return NewTap(TapAny, first, rest)
	}
	if kind := TapKind(lineByte(first)); !kind.known() {
		return Tap{}, fmt.Errorf("unknown type of tap %s; write F (sender), T (recipient) or A (both)", quote(first))
	}
	return NewTap(TapKind(first[0]), regex, copyTo)
}

func lineByte(s string) byte {
	if s == "" {
		return 0
	}
	return s[0]
}

func (k TapKind) known() bool { return k == TapFrom || k == TapTo || k == TapAny }

// ParseTaps reads the lines of control/taps, as [ControlLines] gives them. One bad line refuses the file: a tap that is
// silently left out is mail that is not archived. Errors name the line.
func ParseTaps(lines []Line) ([]Tap, error) {
	if len(lines) > MaxTaps {
		return nil, fmt.Errorf("line %d: more than %d taps", lines[MaxTaps].No, MaxTaps)
	}
	taps := make([]Tap, 0, len(lines))
	for _, l := range lines {
		t, err := ParseTap(l.Text)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", l.No, err)
		}
		t.Line = l.No
		taps = append(taps, t)
	}
	return taps, nil
}

// MatchFrom says whether the tap looks at senders and matches this one, given as in the envelope: without angle brackets,
// "" for the null sender.
func (t *Tap) MatchFrom(sender string) bool { return t.From && t.match(sender) }

// MatchTo says whether the tap looks at recipients and matches this one.
func (t *Tap) MatchTo(recipient string) bool { return t.To && t.match(recipient) }

func (t *Tap) match(addr string) bool {
	return t.re != nil && t.re.MatchString(widen(addr)) != t.Negate
}
