package execban

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
)

// perWriter is how many messages are made in each shape.
const perWriter = 30

// TestOrdinaryMail has the filter judge what people send: it must not be
// refused, nor called unscannable.
func TestOrdinaryMail(t *testing.T) {
	f := newFilter(t, "")
	var b strings.Builder
	all := 0
	try := func(what, text string) {
		all++
		if v := judge(t, f, text); v.Action != pipeline.Continue {
			t.Errorf("%s: %s\n%s", what, v.Reason, cut(text))
		}
	}
	for i, w := range writers {
		for j := range perWriter {
			r := rand.New(rand.NewPCG(uint64(i), uint64(j)))
			if underRace && j%sampled != 0 {
				continue
			}
			if w.name == "a large PDF" && j > 2 {
				continue
			}
			try(w.name, w.make(&mailer{t, r}))
		}
		fmt.Fprintln(&b, w.name)
	}
	files, err := filepath.Glob("testdata/clients/*.eml")
	if err != nil || len(files) < 40 {
		t.Fatalf("%d messages of real programs, %v", len(files), err)
	}
	slices.Sort(files)
	programs := map[string]int{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		program, _, _ := strings.Cut(filepath.Base(file), "-")
		programs[program]++
		try(file, string(text))
	}
	for _, p := range []string{"mutt", "swaks", "nail", "git", "sendemail", "python"} {
		if programs[p] == 0 {
			t.Errorf("there is no message of %s", p)
		}
		fmt.Fprintf(&b, "written by %s: %d\n", p, programs[p])
	}
	if underRace {
		return // of all of them the rest speaks
	}
	if all < 1000 {
		t.Errorf("only %d messages", all)
	}
	golden(t, "ordinary.txt", fmt.Sprintf("%d messages; none refused, none unscannable\n\n%s", all, b.String()))
}
