package pipeline

import (
	"errors"
	"testing"
)

// A kind of options begins with the defaults each time, and gives no filter where
// there is an error.
func TestKindOf(t *testing.T) {
	type options struct{ List []string }
	var got []string
	k := KindOf("x", func() options { return options{[]string{"default"}} }, func(_ Env, o options) (*plainFilter, error) {
		if got = o.List; len(got) == 0 {
			return nil, errors.New("there is nothing")
		}
		return &plainFilter{}, nil
	})
	written := func(list ...string) Decode {
		return func(into any) error {
			o := into.(*options)
			o.List = append(o.List[:0], list...)
			return nil
		}
	}
	leave := func(any) error { return nil }
	for _, c := range []struct {
		decode Decode
		want   string
		wrong  bool
	}{{written("one"), "one", false}, {leave, "default", false}, {written(), "", true}, {func(any) error { return errors.New("unknown key") }, "", true}} {
		got = nil
		f, err := k.New(Env{}, c.decode)
		if (err != nil) != c.wrong || (f == nil) != c.wrong || !c.wrong && got[0] != c.want {
			t.Errorf("%v, %v of %q, want %q", f, err, got, c.want)
		}
	}
	zero := KindOf("y", nil, func(_ Env, o options) (*plainFilter, error) { got = o.List; return &plainFilter{}, nil })
	if _, err := zero.New(Env{}, leave); err != nil || got != nil {
		t.Errorf("%v of %q", err, got)
	}
}
