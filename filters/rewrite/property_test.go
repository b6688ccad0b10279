package rewrite

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/postern-mta/postern/pipeline"
)

// model is rewriting told as simply as it can be: addresses of one-letter users
// in one-letter domains, the entries in a list that is read from the front for
// each name an address may have, and which entries have been used on the way.
type model struct {
	left  []string
	right [][]string
}

func (m *model) expand(address string, used []int) []string {
	user, domain, _ := strings.Cut(address, "@")
	bare, extension, has := strings.Cut(user, "+")
	names := []string{user + "@" + domain}
	if has {
		extension = "+" + extension
		names = append(names, bare+"@"+domain)
	}
	for _, name := range append(names, "@"+domain) {
		n := slices.Index(m.left, name)
		if n < 0 || slices.Contains(used, n) {
			continue
		}
		var all []string
		for _, t := range m.right[n] {
			next := user + t // another domain
			if !strings.HasPrefix(t, "@") {
				to, at, _ := strings.Cut(t, "@")
				if name == bare+"@"+domain && has {
					to += extension
				}
				next = to + "@" + at
			}
			all = append(all, m.expand(next, append(slices.Clone(used), n))...)
		}
		return unique(all)
	}
	return []string{address}
}

func unique(all []string) (out []string) {
	for _, a := range all {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

var (
	anyUser   = rapid.SampledFrom([]string{"a", "b", "c", "a+x", "b+y"})
	anyDomain = rapid.SampledFrom([]string{"x", "y", "z"})
)

func (m *model) draw(t *rapid.T) {
	for range rapid.IntRange(1, 7).Draw(t, "entries") {
		left := "@" + anyDomain.Draw(t, "left domain")
		if rapid.Bool().Draw(t, "a user") {
			left = anyUser.Draw(t, "left user") + left
		}
		if slices.Contains(m.left, left) {
			continue
		}
		var right []string
		for range rapid.IntRange(1, 3).Draw(t, "targets") {
			to := "@" + anyDomain.Draw(t, "right domain")
			if rapid.IntRange(0, 3).Draw(t, "keeps the user") > 0 {
				to = rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "right user") + to
			}
			right = append(right, to)
		}
		m.left, m.right = append(m.left, left), append(m.right, unique(right))
	}
}

// filter is the model's map in up to two of the filter's.
func (m *model) filter(t *rapid.T) *Filter {
	var lines []string
	for n, left := range m.left {
		lines = append(lines, left+" "+strings.Join(m.right[n], ", "))
	}
	f, err := New(pipeline.Env{}, Options{Depth: maxDepth, Expansion: maxExpansion, Maps: []Map{{Entries: lines}}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// The filter does what the model does.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m model
		m.draw(t)
		f := m.filter(t)
		for range 5 {
			address := anyUser.Draw(t, "user") + "@" + anyDomain.Draw(t, "domain")
			want := m.expand(address, nil)
			got, by, err := f.expand(address, ours)
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("%s is %v, want %v: %v", address, got, want, err)
			}
			if again, _, _ := f.expand(address, ours); !slices.Equal(got, again) {
				t.Fatalf("%s is %v, then %v", address, got, again)
			}
			if by == "" && !slices.Equal(got, []string{address}) {
				t.Fatalf("%s is %v by nothing", address, got)
			}
		}
	})
}

// Where no entry leads back, what came out is not rewritten again.
func TestIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Entry n is about user n, and its right side has later users only.
		var lines []string
		for n := range 8 {
			line := fmt.Sprintf("u%d@x ", n)
			for range rapid.IntRange(1, 3).Draw(t, "targets") {
				line += fmt.Sprintf("u%d@x,", rapid.IntRange(n+1, 9).Draw(t, "target"))
			}
			lines = append(lines, line)
		}
		f, err := New(pipeline.Env{}, Options{Expansion: maxExpansion, Maps: []Map{{Entries: lines}}})
		if err != nil {
			t.Fatal(err)
		}
		out, _, err := f.expand(fmt.Sprintf("u%d@x", rapid.IntRange(0, 9).Draw(t, "user")), ours)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range out {
			if again, by, err := f.expand(a, ours); err != nil || by != "" || len(again) != 1 || again[0] != a {
				t.Fatalf("%s came out, and is %v by %q: %v", a, again, by, err)
			}
		}
	})
}
