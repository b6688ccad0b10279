package rules_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/rules"
)

// FuzzCompile: no source and no facts make it panic, errors are one clean line, and Explain says what Match says.
func FuzzCompile(f *testing.F) {
	for _, src := range holds {
		f.Add(src, "a@b", int64(5), uint8(0))
	}
	f.Add(`size % size == 0`, "\xff\n", int64(0), uint8(3))
	f.Add("from == \"\x1b\"", "", int64(-1), uint8(7))
	f.Fuzz(func(t *testing.T, src, text string, n int64, shape uint8) {
		r, err := rules.Compile(mail(), src)
		if err != nil {
			checkLine(t, err)
			return
		}
		m := arbitrary(text, n, shape)
		got, err := r.Match(facts(m))
		checkLine(t, err)
		x, xerr := r.Explain(facts(m))
		checkLine(t, xerr)
		if x.Match != got || (err == nil) != (xerr == nil) {
			t.Errorf("%q: Match %t, %v; Explain %v\n%s", src, got, err, xerr, x)
		}
		if strings.ContainsAny(x.String(), "\x00\x1b\r\x7f") {
			t.Errorf("%q: unclean: %q", src, x)
		}
		if again, err2 := r.Match(facts(m)); again != got || (err == nil) != (err2 == nil) {
			t.Errorf("%q: %t, %v then %t, %v", src, got, err, again, err2)
		}
	})
}

// arbitrary makes facts of fuzzed values; the bits of shape take some away or mistype them.
func arbitrary(text string, n int64, shape uint8) map[string]any {
	m := values()
	for i, name := range []string{"from", "helo", "ip"} {
		if shape&(1<<i) == 0 {
			m[name] = text
		}
	}
	m["recipients"] = strings.Split(text, ",")
	m["header"] = func(name string) string { return name + text }
	m["headers"] = func(string) []string { return strings.Fields(text) }
	m["size"], m["score"], m["age"] = n, float64(n)/3, time.Duration(n)
	switch shape >> 5 {
	case 1:
		delete(m, "size")
	case 2:
		m["from"] = n
	case 3:
		m["header"] = func(string) string { panic(text) }
	case 4:
		m["recipients"] = nil
	}
	return m
}

// FuzzTaps: no line makes it panic, errors are one clean line, and ! turns every answer over.
func FuzzTaps(f *testing.F) {
	for _, line := range []string{
		`F:.*@domain.com:joe@example.com`, `A:!^$:x@y`, `sales|info:archive@example.org`, `T:(a{2,}|[[.b.]])\1:x@y`, `T:[^]a\w]+{,3}$:x@y`, "A:\xff[\x80-\xff]:x", `A:a)*{:x`,
	} {
		f.Add(line, "Joe@domain.com")
	}
	f.Fuzz(func(t *testing.T, line, addr string) {
		tap, err := rules.ParseTap(line)
		if err != nil {
			checkLine(t, err)
			return
		}
		if tap.Copy == "" || !tap.From && !tap.To || tap.MatchFrom(addr) && !tap.From || tap.MatchTo(addr) && !tap.To {
			t.Errorf("%q: %+v", line, tap)
		}
		if tap.Negate {
			return
		}
		other, err := rules.NewTap(rules.TapAny, "!"+tap.Regex, tap.Copy)
		if len(tap.Regex) < 2048 && err != nil {
			t.Fatalf("%q: negated: %v", line, err)
		}
		if err == nil && tap.To && other.MatchTo(addr) == tap.MatchTo(addr) {
			t.Errorf("%q of %q: negated is the same", line, addr)
		}
	})
}

// FuzzControlLines: what comes out was a line of the file, at its number, without what does not count.
func FuzzControlLines(f *testing.F) {
	f.Add([]byte("# c\n\na \t\n b\r\nlast"))
	f.Add([]byte("a\x00b\n"))
	f.Add([]byte("\xff\r\r\n#\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		const limit = 1 << 16
		lines, err := rules.ControlLines(bytes.NewReader(data), limit)
		if err != nil {
			checkLine(t, err)
			if len(data) <= limit && !bytes.Contains(data, []byte{0}) {
				t.Errorf("%q: %v", data, err)
			}
			return
		}
		raw := bytes.Split(data, []byte{'\n'})
		last := 0
		for _, l := range lines {
			if l.No <= last || l.No > len(raw) || l.Text == "" || l.Text[0] == '#' || strings.TrimRight(l.Text, " \t\r") != l.Text ||
				!bytes.HasPrefix(raw[l.No-1], []byte(l.Text)) {
				t.Errorf("%q: line %+v", data, l)
			}
			last = l.No
		}
		if _, err := rules.ParseTaps(lines); err != nil {
			checkLine(t, err)
		}
		var entries []string
		for _, l := range lines {
			entries = append(entries, l.Text)
		}
		list := rules.NewDomainList(entries)
		for _, e := range entries {
			if _, ok := list.Match(e); !ok {
				t.Errorf("%q does not match itself", e)
			}
		}
	})
}
