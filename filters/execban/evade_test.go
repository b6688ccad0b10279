package execban

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

// recipe is a message of the generator: a file, and how it is hidden.
type recipe struct {
	container container
	naming    naming
	encoding  encoding
	structure structure
	file      hidden
	payload   string // what the file's content is; "" where the name tells
	seed      uint64
}

func (c recipe) String() string {
	what := c.payload
	if what == "" {
		what = c.file.name
	}
	return fmt.Sprintf("%s in %s, named by %s, in %s, in %s, seed %d", what, c.container.name, c.naming.name, c.encoding.name, c.structure.name, c.seed)
}

// tricks are the ways of hiding that a recipe uses beyond the plain ones.
func (c recipe) tricks() (all []string) {
	if c.container.make != nil {
		all = append(all, "container: "+c.container.name)
	}
	if c.naming.name != namings()[0].name {
		all = append(all, "name: "+c.naming.name)
	}
	if c.encoding.name != encodings()[0].name {
		all = append(all, "encoding: "+c.encoding.name)
	}
	if c.structure.name != structures()[0].name {
		all = append(all, "structure: "+c.structure.name)
	}
	return all
}

// cook makes the message.
func (c recipe) cook(t testing.TB) string {
	t.Helper()
	r := newRand(c.seed)
	h := c.file
	if c.container.make != nil {
		ext := c.container.ext
		if slices.Contains([]string{"iso", "one"}, ext) {
			ext = "dat" // or the name would tell
		}
		h = hidden{"files." + ext, c.container.make(t, r, h)}
	}
	p := c.encoding.make(r, c.naming.make(r, h.name), h)
	return c.structure.make(r, p)
}

// book is all recipes: each trick alone with every payload, and many at once.
func book(t testing.TB) []recipe {
	t.Helper()
	plain := recipe{container: containers()[0], naming: namings()[0], encoding: encodings()[0], structure: structures()[0]}
	var files []recipe
	for i, h := range payloads(t) {
		p := plain
		p.file, p.payload = h, payloadNames[i]
		files = append(files, p)
	}
	named := plain
	var all []recipe
	add := func(c recipe) {
		c.seed = uint64(len(all))
		all = append(all, c)
	}
	for i, h := range badNames() {
		named.file = h
		files = append(files, named)
		for _, n := range namings() {
			for range 2 + i%2 {
				c := named
				c.naming = n
				add(c)
			}
		}
	}
	for _, f := range files[:len(payloadNames)+2] {
		for _, x := range containers()[1:] {
			if c := f; c.holds(x) {
				c.container = x
				add(c)
			}
		}
		for _, x := range encodings()[1:] {
			c := f
			c.encoding = x
			add(c)
		}
		for _, x := range structures()[1:] {
			for range 2 {
				c := f
				c.structure = x
				add(c)
			}
		}
	}
	return append(all, several(files, uint64(len(all)))...)
}

// holds is whether a container keeps what tells.
func (c recipe) holds(x container) bool {
	if c.payload == "" { // it must keep the name
		return !x.foreign() && x.name != "OneNote" && x.name != "ISO image"
	}
	return !x.foreign() || c.payload == "program"
}

// severalTricks is how many messages have several tricks.
const severalTricks = 900

// several are recipes of two to four tricks.
func several(files []recipe, seed uint64) (all []recipe) {
	r := rand.New(rand.NewPCG(1994, 5))
	for len(all) < severalTricks {
		c := pick(r, files)
		if r.IntN(2) == 0 {
			c = pick(r, files[:len(payloadNames)])
		}
		c.seed = seed + uint64(len(all))
		if x := pick(r, containers()); r.IntN(2) == 0 && c.holds(x) {
			c.container = x
		}
		if r.IntN(2) == 0 {
			c.encoding = pick(r, encodings())
		}
		if r.IntN(2) == 0 || len(c.tricks()) == 0 {
			c.structure = pick(r, structures())
		}
		if c.payload == "" && c.container.make == nil && !c.encoding.own {
			c.naming = pick(r, namings())
		}
		if len(c.tricks()) > 1 {
			all = append(all, c)
		}
	}
	return all
}

func pick[T any](r *rand.Rand, all []T) T { return all[r.IntN(len(all))] }

// tally is what became of the messages of a trick.
type tally struct{ messages, content, name, unscannable int }

// sampled is how many of the messages that a test makes it judges under the race
// detector: one in so many. Without it, all are judged.
const sampled = 10

// TestEvasions hides files in all these ways, and lets none through.
func TestEvasions(t *testing.T) {
	f := newFilter(t, "")
	counts, distinct := map[string]*tally{}, map[[32]byte]bool{}
	var sum tally
	missed := 0
	for i, c := range book(t) {
		if underRace && i%sampled != 0 {
			continue
		}
		text := c.cook(t)
		distinct[sha256.Sum256([]byte(text))] = true
		a := findingsOf(t, f, text)
		v, err := f.policy.judge(a, transaction(), message.FromString(text))
		if err != nil || v.Action != pipeline.Reject {
			if missed++; missed <= 20 {
				t.Errorf("%v: %v, %s\n%.1500s", c, v.Action, v.Reason, text)
			}
			continue
		}
		one := c.tally(f, a)
		if one.content+one.name+one.unscannable == 0 {
			t.Errorf("%v: found for another reason: %s", c, v.Reason)
		}
		for _, trick := range append(c.tricks(), kindOf(c)) {
			if counts[trick] == nil {
				counts[trick] = &tally{}
			}
			counts[trick].add(one)
		}
		sum.add(one)
	}
	if missed > 0 {
		t.Errorf("%d messages passed", missed)
	}
	if underRace {
		return // of all of them the rest speaks
	}
	if len(distinct) < 1000 {
		t.Errorf("only %d messages", len(distinct))
	}
	golden(t, "evasions.txt", report(counts, sum, len(distinct)))
}

func kindOf(c recipe) string {
	if c.payload == "" {
		return "file: named as what is banned"
	}
	return "file: " + c.payload
}

// tally is what a message was refused for: one of its counts is 1. What does not
// tell, as the name of a file whose content is to, does not count.
func (c recipe) tally(f *Filter, a *answer) tally {
	one := tally{messages: 1}
	for _, x := range a.findings {
		switch {
		case f.policy.actions[x.class] == pipeline.Continue:
		case c.payload != "" && x.basis&byContent != 0:
			return tally{messages: 1, content: 1}
		case c.payload == "" && x.basis&byName != 0:
			return tally{messages: 1, name: 1}
		case x.basis == byScan:
			one.unscannable = 1
		}
	}
	return one
}

func (s *tally) add(o tally) {
	s.messages += o.messages
	s.content += o.content
	s.name += o.name
	s.unscannable += o.unscannable
}

func (s *tally) String() string {
	return fmt.Sprintf("%5d messages: %5d by content, %5d by name, %5d unscannable", s.messages, s.content, s.name, s.unscannable)
}

func report(counts map[string]*tally, sum tally, distinct int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v; none passed; %d different ones\n\n", &sum, distinct)
	var tricks []string
	for trick := range counts {
		tricks = append(tricks, trick)
	}
	slices.Sort(tricks)
	for _, trick := range tricks {
		fmt.Fprintf(&b, "%-45s %v\n", trick, counts[trick])
	}
	return b.String()
}

// golden compares with a file of testdata, which POSTERN_UPDATE=1 writes.
func golden(t *testing.T, name, got string) {
	t.Helper()
	t.Log("\n" + got)
	path := filepath.Join("testdata", name)
	if os.Getenv("POSTERN_UPDATE") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s is not what it was; POSTERN_UPDATE=1 writes it anew", path)
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 12)) }
