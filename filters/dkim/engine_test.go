package dkim

import (
	"regexp"
	"testing"
)

// What go-msgauth misreads is what its own expression finds more of than b=.
func TestMisread(t *testing.T) {
	theirs := regexp.MustCompile(`b\s*=[^;]+`)
	for _, s := range []string{
		"", "b", "b=", "b=;", "b=x", "b=x;", "b =x", "b\r\n\t=x", "bb=x", "bh=x; b=y", "b=y; bh=x", "b=y; xb=z", "xb=z; b=y", "z=club=20x; b=y", "b=y; z=b=20",
		"b=b=x", "b=x b=y", "b=; b=x", "b=;b", "bb", "b b=x", "b=x;b", "b\x0b=x; b=y", "b=x; b\f=y", "bh=ab=; b=x", "bh=ab= ; b=x",
	} {
		if got, want := misread(s), len(theirs.FindAllString(s, -1)) != 1; got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}
