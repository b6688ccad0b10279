package rules

import (
	"errors"
	"fmt"
	"regexp/syntax"
)

// checkRegexp refuses a pattern that is wrong or would be large once its repetitions are written out: the library's own
// limit allows programs of a hundred megabytes.
func checkRegexp(pattern string, flags syntax.Flags) error {
	re, err := syntax.Parse(pattern, flags)
	if err != nil {
		return regexpError(err)
	}
	return regexpFits(re)
}

func regexpFits(re *syntax.Regexp) error {
	if regexpSize(re) > maxRegexp {
		return fmt.Errorf("the pattern is too large: its repetitions make more than %d parts", maxRegexp)
	}
	return nil
}

// regexpSize counts the nodes of a pattern with its repetitions written out; it stops counting above the limit.
func regexpSize(re *syntax.Regexp) int {
	n := 1
	if re.Op == syntax.OpLiteral {
		n = len(re.Rune)
	}
	for _, sub := range re.Sub {
		n += regexpSize(sub)
		if n > maxRegexp {
			return maxRegexp + 1
		}
	}
	if re.Op == syntax.OpRepeat {
		n *= max(1, re.Min, re.Max)
	}
	return min(n, maxRegexp+1)
}

// regexpError says what is wrong with a pattern, in quotes.
func regexpError(err error) error {
	var e *syntax.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("bad pattern: %s", clean(err.Error(), maxShown))
	}
	return fmt.Errorf("bad pattern: %s: %s", e.Code, quote(narrow(e.Expr)))
}
