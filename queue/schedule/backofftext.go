package schedule

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Bounds of what ParseBackoff takes.
const (
	maxBackoffText = 1024
	maxIntervals   = 100
	maxInterval    = 30 * 24 * time.Hour
	maxFactor      = 100
	maxQmail       = 1000
)

const backoffForms = `"qmail", "qmail 10", "exponential 1m 2 4h" or "list 5m 15m 1h 4h", each with "jitter 20%" after it if wanted`

// ParseBackoff reads a policy as it is written in the configuration:
//
//	qmail [C]                     C is 20 unless given; qmail uses 10 for local deliveries
//	exponential BASE FACTOR MOST
//	list INTERVAL...
//
// each followed by "jitter N%" if the default of ten per cent is not wanted. An
// interval is a number and a unit (s, m, h, d), or several from the greatest
// unit to the least: 90s, 1h30m, 2d. It is from a second to thirty days. Words
// are separated by single spaces. Errors say what is wrong and what is meant.
func ParseBackoff(text string) (Backoff, error) {
	if len(text) > maxBackoffText {
		return Backoff{}, fmt.Errorf("retry policy: longer than %d bytes", maxBackoffText)
	}
	words := strings.Split(text, " ")
	words, jitter, err := cutJitter(words)
	if err != nil {
		return Backoff{}, fmt.Errorf("retry policy %q: %w", text, err)
	}
	var b Backoff
	switch words[0] {
	case "qmail":
		b, err = parseQmail(words[1:])
	case "exponential":
		b, err = parseExponential(words[1:])
	case "list":
		b, err = parseList(words[1:])
	default:
		err = fmt.Errorf("%q is no policy; write %s", words[0], backoffForms)
	}
	if err != nil {
		return Backoff{}, fmt.Errorf("retry policy %q: %w", text, err)
	}
	b.jitter = jitter
	return b, nil
}

// cutJitter takes "jitter N%" from the end, as Backoff keeps it.
func cutJitter(words []string) ([]string, float64, error) {
	n := len(words)
	if n < 3 || words[n-2] != "jitter" {
		return words, 0, nil
	}
	digits, ok := strings.CutSuffix(words[n-1], "%")
	v, err := number(digits)
	if !ok || err != nil || v > 100 {
		return nil, 0, fmt.Errorf("jitter is %q; write a whole number from 0%% to 100%%", words[n-1])
	}
	return words[:n-2], 1 + float64(v)/100, nil
}

func parseQmail(args []string) (Backoff, error) {
	switch len(args) {
	case 0:
		return Qmail(QmailRemote), nil
	case 1:
		if c, err := number(args[0]); err == nil && c >= 1 && c <= maxQmail {
			return Qmail(c), nil
		}
		return Backoff{}, fmt.Errorf("%q is no constant of qmail's; write a number from 1 to %d", args[0], maxQmail)
	}
	return Backoff{}, fmt.Errorf("qmail takes one number at most")
}

func parseExponential(args []string) (Backoff, error) {
	if len(args) != 3 {
		return Backoff{}, fmt.Errorf(`exponential takes three words, as in "exponential 1m 2 4h"`)
	}
	base, err := parseInterval(args[0])
	if err != nil {
		return Backoff{}, err
	}
	factor, err := strconv.ParseFloat(args[1], 64)
	if err != nil || strings.Trim(args[1], "0123456789.") != "" || factor < 1 || factor > maxFactor {
		return Backoff{}, fmt.Errorf("%q is no factor; write a number from 1 to %d", args[1], maxFactor)
	}
	most, err := parseInterval(args[2])
	if err != nil {
		return Backoff{}, err
	}
	if most < base {
		return Backoff{}, fmt.Errorf("the longest interval, %s, is shorter than the first, %s", args[2], args[0])
	}
	return Exponential(base, factor, most), nil
}

func parseList(args []string) (Backoff, error) {
	if len(args) == 0 || len(args) > maxIntervals {
		return Backoff{}, fmt.Errorf("list takes from one to %d intervals", maxIntervals)
	}
	all := make([]time.Duration, len(args))
	for i, a := range args {
		var err error
		if all[i], err = parseInterval(a); err != nil {
			return Backoff{}, err
		}
	}
	return List(all...), nil
}

// units, from the greatest to the least.
func units() [4]struct {
	letter byte
	length time.Duration
} {
	return [...]struct {
		letter byte
		length time.Duration
	}{{'d', 24 * time.Hour}, {'h', time.Hour}, {'m', time.Minute}, {'s', time.Second}}
}

func parseInterval(text string) (time.Duration, error) {
	bad := fmt.Errorf("%q is no interval from 1s to 30d; write it as 90s, 15m, 1h30m or 2d", text)
	var d time.Duration
	rest := text
	for _, u := range units() {
		i := strings.IndexByte(rest, u.letter)
		if i < 0 {
			continue
		}
		n, err := number(rest[:i])
		if err != nil {
			return 0, bad
		}
		d += time.Duration(n) * u.length
		rest = rest[i+1:]
	}
	if rest != "" || d < time.Second || d > maxInterval {
		return 0, bad
	}
	return d, nil
}

// number reads up to seven digits, and nothing else.
func number(text string) (int, error) {
	if text == "" || len(text) > 7 || strings.Trim(text, "0123456789") != "" {
		return 0, strconv.ErrSyntax
	}
	return strconv.Atoi(text)
}

func formatInterval(d time.Duration) string {
	var b strings.Builder
	for _, u := range units() {
		if n := d / u.length; n > 0 {
			fmt.Fprintf(&b, "%d%c", n, u.letter)
			d -= n * u.length
		}
	}
	return b.String()
}

// String is the policy as ParseBackoff reads it.
func (b Backoff) String() string {
	text := "qmail"
	switch b.kind {
	case kindQmail:
		if b.c != 0 && b.c != QmailRemote {
			text = fmt.Sprintf("qmail %d", b.c)
		}
	case kindExponential:
		factor := strconv.FormatFloat(b.factor, 'f', -1, 64)
		text = "exponential " + formatInterval(b.base) + " " + factor + " " + formatInterval(b.most)
	case kindList:
		text = "list"
		for _, d := range b.list {
			text += " " + formatInterval(d)
		}
	}
	if b.jitter != 0 {
		text += fmt.Sprintf(" jitter %.0f%%", (b.jitter-1)*100)
	}
	return text
}
