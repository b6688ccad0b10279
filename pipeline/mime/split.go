package mime

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// piece is a parameter of RFC 2231: name*0, name*1*, or name*, which has no
// number.
type piece struct {
	number  int
	encoded bool
	value   string
	reading Reading
}

// joined is a value that a parameter may have, and what stood there for it.
type joined struct {
	value, raw string
	// star says that RFC 2231 was needed.
	star    bool
	reading Reading
}

// valuesOf are the values that the parameter may have, the strict one first:
// RFC 2231's where there is one, then the plain ones.
func valuesOf(params []parameter, name string) (values []joined) {
	var pieces []piece
	add := func(v joined) {
		for _, have := range values {
			if have.value == v.value {
				return
			}
		}
		values = append(values, v)
	}
	for _, x := range params {
		rest, ok := strings.CutPrefix(x.name, name)
		if !ok || rest == "" || rest[0] != '*' {
			continue
		}
		if rest == "*" {
			add(joined{decodeExtended(x.value), x.value, true, x.reading})
			continue
		}
		digits, star := strings.CutSuffix(rest[1:], "*")
		if n, err := strconv.Atoi(digits); err == nil && n >= 0 {
			pieces = append(pieces, piece{n, star, x.value, x.reading})
		}
	}
	if len(pieces) > 0 {
		joinPieces(pieces, add)
	}
	for _, x := range params {
		if x.name == name {
			add(joined{x.value, x.value, false, x.reading})
		}
	}
	return values
}

// joinPieces joins pieces as RFC 2231 §3 has it: by number, from 0, without gaps;
// and as programs do that take them as they come.
func joinPieces(pieces []piece, add func(joined)) {
	var strict, loose []piece
	for _, x := range pieces {
		if x.reading.Strict() {
			strict = append(strict, x)
		}
		loose = append(loose, x)
	}
	sorted := slices.Clone(strict)
	slices.SortStableFunc(sorted, byNumber)
	run := 0
	for run < len(sorted) && sorted[run].number == run {
		run++
	}
	// A set that starts at 1 or has gaps is joined too, but not by the standard.
	if run > 0 {
		add(join(sorted[:run], 0))
	}
	odd := because(ParameterSplit)
	if run < len(sorted) {
		add(join(sorted, odd))
		add(join(lastOfEach(sorted), odd))
		slices.Reverse(sorted)
		slices.SortStableFunc(sorted, byNumber)
		add(join(lastOfEach(sorted), odd))
	}
	if !slices.IsSortedFunc(strict, byNumber) {
		add(join(strict, odd))
	}
	if len(loose) > len(strict) {
		slices.SortStableFunc(loose, byNumber)
		add(join(lastOfEach(loose), odd))
	}
}

func byNumber(a, b piece) int { return cmp.Compare(a.number, b.number) }

// lastOfEach keeps of pieces with one number, which stand together, the last.
func lastOfEach(sorted []piece) []piece {
	var kept []piece
	for i, x := range sorted {
		if i+1 == len(sorted) || sorted[i+1].number != x.number {
			kept = append(kept, x)
		}
	}
	return kept
}

// join is the value of pieces in their order. The first one may state a charset,
// which holds for all that are encoded.
func join(pieces []piece, reading Reading) joined {
	var text, raw, open strings.Builder
	charset, coded := "", false
	for i, x := range pieces {
		reading |= x.reading
		raw.WriteString(x.value)
		v := x.value
		if x.encoded {
			if i == 0 {
				if cs, rest, ok := cutCharset(v); ok {
					charset, v = cs, rest
				}
			}
			v, coded = unpercent(v), true
		}
		open.WriteString(v)
	}
	if coded {
		text.WriteString(decodeCharset(charset, open.String()))
	} else {
		text.WriteString(open.String())
	}
	return joined{text.String(), raw.String(), true, reading}
}

// decodeExtended decodes charset'language'text%20with%20escapes (RFC 2231 §4).
func decodeExtended(v string) string {
	if charset, rest, ok := cutCharset(v); ok {
		return decodeCharset(charset, unpercent(rest))
	}
	return decodeCharset("", unpercent(v))
}

// maxCharset bounds the name of a charset.
const maxCharset = 40

// cutCharset takes the charset and the language off.
func cutCharset(v string) (charset, rest string, ok bool) {
	head := v[:min(len(v), 2*maxCharset)]
	charset, after, ok := strings.Cut(head, "'")
	if !ok || len(charset) > maxCharset {
		return "", v, false
	}
	language, _, ok := strings.Cut(after, "'")
	if !ok {
		return "", v, false
	}
	return charset, v[len(charset)+len(language)+2:], true
}

// unpercent decodes %41; what is no escape stays.
func unpercent(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if hi, lo := unhex(s[i+1], true), unhex(s[i+2], true); hi >= 0 && lo >= 0 {
				b = append(b, byte(hi<<4|lo))
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}
