package worker

import (
	"errors"
	"testing"
)

// Arguments are read once as long as they are alike; what cannot be read is not
// remembered, and does not make what was read before forgotten.
func TestAlike(t *testing.T) {
	reads := 0
	read := Alike(func(args []byte) (string, error) {
		if reads++; len(args) == 0 {
			return "", errors.New("there is nothing")
		}
		return string(args), nil
	})
	buffer := []byte("one") // which its owner uses again
	for _, c := range []struct {
		args, want string
		reads      int
	}{{"one", "one", 1}, {"one", "one", 1}, {"", "", 2}, {"", "", 3}, {"one", "one", 3}, {"two", "two", 4}, {"one", "one", 5}} {
		buffer = append(buffer[:0], c.args...)
		if got, err := read(buffer); got != c.want || reads != c.reads || (err == nil) != (c.want != "") {
			t.Errorf("%q: %q, %v after %d reads", c.args, got, err, reads)
		}
	}
}
