package pipeline

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

// An error about a key says which, also from inside others, and what is wrong.
func TestKeyError(t *testing.T) {
	err := fmt.Errorf("filter x: %w", AtKey(".when", io.ErrUnexpectedEOF).Below("rule[1]"))
	var at interface{ Key() string }
	if !errors.As(err, &at) || at.Key() != "rule[1].when" || !errors.Is(err, io.ErrUnexpectedEOF) || err.Error() != "filter x: unexpected EOF" {
		t.Errorf("%v is about %v", err, at)
	}
}
