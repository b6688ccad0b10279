package dkim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
)

// dataCase is a case of testdata/suite; see make.py there.
type dataCase struct {
	name string
	text string
	zone zone
	now  time.Time
	want []string
}

func dataCases(t testing.TB) []dataCase {
	t.Helper()
	paths, err := filepath.Glob("testdata/suite/*.msg")
	if err != nil {
		t.Fatal(err)
	}
	var all []dataCase
	for _, path := range paths {
		base := strings.TrimSuffix(path, ".msg")
		c := dataCase{name: filepath.Base(base), text: read(t, path), zone: zone{}}
		for line := range strings.Lines(read(t, base+".dns")) {
			name, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			c.zone[name] = append(c.zone[name], text)
		}
		lines := strings.Split(strings.TrimSpace(read(t, base+".result")), "\n")
		sec, err := strconv.ParseInt(strings.TrimPrefix(lines[0], "now "), 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", base, err)
		}
		c.now, c.want = time.Unix(sec, 0), lines[1:]
		all = append(all, c)
	}
	return all
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// matches holds a result against a line: result, domain or -, part of the reason.
func matches(r Result, want string) bool {
	words := strings.SplitN(want, " ", 3)
	domain := r.Domain
	if domain == "" {
		domain = "-"
	}
	return words[0] == r.Result && words[1] == domain && (len(words) < 3 || strings.Contains(r.Reason, words[2]))
}

// TestSuiteData runs the messages of testdata/suite. Each is run in its three
// shapes: as it is, with CR LF, and with its body in a file.
func TestSuiteData(t *testing.T) {
	all := dataCases(t)
	hostile := 0
	for _, c := range all {
		if !strings.Contains(c.name, "-good-") {
			hostile++
		}
		t.Run(c.name, func(t *testing.T) {
			v := &Verifier{Look: c.zone.look, Now: func() time.Time { return c.now }}
			for shape, m := range map[string]message.Message{
				"LF": message.FromString(c.text), "CR LF": message.FromString(strings.ReplaceAll(c.text, "\n", "\r\n")), "file": filed(t, c.text),
			} {
				results, seen, err := v.Verify(context.Background(), m)
				if err != nil {
					t.Fatalf("%s: %v", shape, err)
				}
				want := c.want
				if len(want) == 1 && want[0] == None {
					want = nil
				}
				ok := len(results) == len(want) && seen >= len(want)
				for i := range results {
					ok = ok && matches(results[i], want[i])
				}
				if !ok {
					t.Errorf("%s: %v of %d, want %q", shape, fmt.Sprint(results), seen, want)
				}
				m.Body().Release() //nolint:errcheck // the folder goes
			}
		})
	}
	if hostile < 60 {
		t.Errorf("only %d hostile messages", hostile)
	}
}

// filed is a message whose body is in a file.
func filed(t testing.TB, text string) message.Message {
	t.Helper()
	spool, err := message.OpenDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	m, err := message.Read(strings.NewReader(text), message.Options{Lines: message.Keep, Spool: spool, Memory: 1, MaxHead: len(text) + 1, MaxFields: len(text) + 1})
	if err != nil {
		t.Fatal(err)
	}
	return m
}
