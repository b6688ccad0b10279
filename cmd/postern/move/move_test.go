package move

import (
	"bytes"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
	"pgregory.net/rapid"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/filters"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/plugins/qfilter"
	"github.com/postern-mta/postern/plugins/spp"
	"github.com/postern-mta/postern/rules"
)

// known are the filters that configurations are checked with.
func known() []pipeline.Kind { return append(filters.Kinds(), qfilter.Kind(), spp.Kind()) }

// checked is what postern check says of a configuration.
func checked(made []byte) (*config.Config, error) {
	return config.Parse("/etc/postern/postern.toml", made, config.Options{
		Kinds: known(), HasQueue: true, Control: "/dev/null/control",
		Env:      pipeline.Env{Log: slog.New(slog.DiscardHandler), Now: time.Now, Secret: noSecret},
		Hostname: func() (string, error) { return "mx.example.org", nil },
	})
}

// fataler is a testing.TB, or a rapid.T.
type fataler interface {
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// write makes a file of a format's name.
func write(t fataler, dir, name, content string) string {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// imported is what one file makes, which must pass the check.
func imported(t fataler, dir, kind, content string, o Options) *Result {
	f := formatOf(kind)
	return importedFrom(t, []Source{{kind, write(t, dir, f.Files[0], content)}}, o)
}

func importedFrom(t fataler, sources []Source, o Options) *Result {
	r, err := Import(sources, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := checked(r.TOML); err != nil {
		t.Fatalf("%v\n%s", err, r.TOML)
	}
	return r
}

// table is a configuration as a map.
func table(t fataler, made []byte) map[string]any {
	var m map[string]any
	if err := toml.Unmarshal(made, &m); err != nil {
		t.Fatalf("%v\n%s", err, made)
	}
	return m
}

// chainOf are the filters of the chain, with their tables.
func chainOf(t fataler, made []byte) (names []string, tables []map[string]any) {
	m := table(t, made)
	all, _ := m["filter"].(map[string]any)
	for _, name := range m["chain"].(map[string]any)["inbound"].([]any) {
		of, ok := all[name.(string)].(map[string]any)
		if !ok {
			t.Fatalf("the chain names %v, which is not there:\n%s", name, made)
		}
		names, tables = append(names, name.(string)), append(tables, of)
	}
	return names, tables
}

// pieces are what files are made of in tests.
var pieces = []string{
	"#", "# a remark", "\n", "\n", "\n", "\r\n", ":", ",", "=", " ", "\t", "\"", "'", "\\", "\x00", "\x1b[1m", "\xff", "ü", "\u202e", "%s", "`", "$", "--", "|", "[", "]", "*", "?", "!", "(", "{", "^",
	"clam=yes", "clam=no", "spam=yes", "spam=no", "spam_hits=5", "spam_hits=9.5", "spam_hits=x", "spam_hits=-1e9", "spam_passthru=yes", "attach=.exe:.com", "attach=", "attach=a:.b:.tar.gz:", "trophie=yes",
	"regex=viagra:lottery", "regex=(", "regex=a*", "qmailqueue=/var/qmail/bin/q", "spamuser=joe", "spamuser=\u00fc", "dspam=yes", "size_limit=7", "avira=yes",
	"example.org", "joe@example.org", "joe-list@example.org", "EXAMPLE.net", "a@b@c", "@x", ".exe", ".COM", ".tar.gz", "invoice.doc", "..", ".",
	"F:", "T:", "A:", "X:", ".*@example\\.org", "a@example.org", "TVqQAAMAA", "UEsDBAo*AA", "***", "/bin/true", "bin/check", "RCPTCHECK=/bin/x", "export ",
	"[rcpt]", "[connection]", "[pass]", "[zzz]", ":test -n \"$X\"", "exec qmail-qfilter ", "qmail-qfilter", "/usr/local/bin/f -x 'a b'", "PATH=/bin:/usr/bin", "QQF_QMAILQUEUE=/x", "example.org:/bin/f:V",
	strings.Repeat("y", 300), strings.Repeat("z", 4100),
}

// TestImportPasses makes files of pieces: whatever they hold, what is made of them
// passes the check, is the same each time, has no control bytes, and lists every
// line.
func TestImportPasses(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		var sources []Source
		lines := 0
		for i, format := range rapid.SliceOfN(rapid.IntRange(0, len(formats)-1), 1, 4).Draw(t, "formats") {
			kind := formats[format].Name
			content := strings.Join(rapid.SliceOfN(rapid.SampledFrom(pieces), 0, 40).Draw(t, "content"), "")
			lines += len(strings.Split(strings.TrimSuffix(content, "\n"), "\n"))
			sources = append(sources, Source{kind, write(t, dir, fmt.Sprintf("%s-%d", kind, i), content)})
		}
		first := importedFrom(t, sources, Options{}).TOML
		if again, err := Import(sources, Options{}); err != nil || !bytes.Equal(first, again.TOML) {
			t.Fatalf("%v, and not the same twice:\n%s", err, first)
		}
		hygienic(t, first)
		if n := bytes.Count(first, []byte("\n")); n < lines {
			t.Fatalf("%d lines of the files, and %d of\n%s", lines, n, first)
		}
		chainOf(t, first)
	})
}

// hygienic fails on bytes that no configuration should hold.
func hygienic(t fataler, made []byte) {
	for i, c := range string(made) {
		if c < ' ' && c != '\n' || c == 0x7f || c == '\u202e' || c == '\ufffd' {
			t.Fatalf("byte %d of what was made is %U:\n%q", i, c, made)
		}
	}
}

// simscan is how simscan itself goes by its file, for the test to hold rules
// against: what is set last counts (simscan.c: per_domain_lookup, set_per_domain).
type simscan struct {
	entries map[string]map[string]string
	set     map[string]string
}

func (s *simscan) lookup(key string) {
	for name, value := range s.entries[key] {
		s.set[name] = value
	}
}

func (s *simscan) address(email string) {
	local, domain, ok := strings.Cut(strings.ToLower(email), "@")
	if !ok {
		return
	}
	s.lookup(domain)
	tried := ""
	for _, part := range strings.Split(local, "-") {
		tried += part
		s.lookup(tried + "@" + domain)
		tried += "-"
	}
}

// of is what holds for a message to one recipient.
func (s *simscan) of(from, to string) map[string]string {
	s.set = map[string]string{"clam": "no", "spam": "no", "spam_passthru": "no", "attach": "", "spam_hits": ""}
	s.lookup("")
	s.address(from)
	s.address(to)
	return s.set
}

// asked is a message in front of the filters' rules.
type asked struct {
	from   string
	to     []string
	score  float64
	scored bool
}

// holds matches a rule for all its recipients, or for the one of that number.
func (a asked) holds(t fataler, source string, only int) bool {
	rule, err := rules.Compile(pipeline.Facts(), source)
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	ok, err := rule.Match(func(name string) any {
		switch name {
		case "sender":
			return a.from
		case "recipients":
			if only >= 0 {
				return a.to[only : only+1]
			}
			return a.to
		case "score":
			return a.score
		case "symbols":
			if a.scored {
				return []string{"SPAMASSASSIN"}
			}
			return []string{}
		case "header":
			return func(string) string {
				if a.score >= 5 {
					return "YES"
				}
				return ""
			}
		case "relay", "auth":
			return false
		}
		t.Fatalf("%s asks for %s", source, name)
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	return ok
}

// decided is what the filters of a configuration do with a message.
type decided struct {
	clam, spam bool
	attach     map[string]bool
	refused    []bool // by recipient
}

func decide(t fataler, made []byte, a asked) decided {
	d := decided{attach: map[string]bool{}, refused: make([]bool, len(a.to))}
	_, tables := chainOf(t, made)
	names, _ := chainOf(t, made)
	for i, f := range tables {
		kind, ok := f["kind"].(string)
		if !ok {
			kind = names[i]
		}
		when, _ := f["when"].(string)
		if when != "" && !a.holds(t, when, -1) {
			continue
		}
		switch kind {
		case "clamav":
			d.clam = true
		case "spamassassin":
			if d.spam {
				t.Fatalf("scored twice: %+v\n%s", a, made)
			}
			d.spam, a.scored = true, true
			if level, ok := f["refuse"]; ok && a.score >= number(level) {
				for n := range a.to {
					d.refused[n] = true
				}
			}
		case "rule":
			for _, r := range f["rule"].([]any) {
				for n := range a.to {
					d.refused[n] = d.refused[n] || a.holds(t, r.(map[string]any)["when"].(string), n)
				}
			}
		case "execban":
			for _, class := range f["class"].([]any) {
				for _, e := range class.(map[string]any)["extensions"].([]any) {
					d.attach["."+e.(string)] = true
				}
			}
		default:
			t.Fatalf("a filter of kind %s", kind)
		}
	}
	return d
}

func number(v any) float64 {
	if n, ok := v.(int64); ok {
		return float64(n)
	}
	return v.(float64)
}

// agrees holds what a configuration does with a message against simscan.
func agrees(t fataler, s *simscan, made []byte, a asked, hits float64) {
	got := decide(t, made, a)
	var clam, spam bool
	attach := map[string]bool{}
	for n, to := range a.to {
		set := s.of(a.from, to)
		clam, spam = clam || set["clam"] == "yes", spam || set["spam"] == "yes"
		for _, e := range strings.Split(set["attach"], ":") {
			if e != "" {
				attach[e] = true
			}
		}
		level := hits
		if set["spam_hits"] != "" {
			fmt.Sscan(set["spam_hits"], &level) //nolint:errcheck // it is a number here
		}
		refused := set["spam"] == "yes" && a.score >= level
		if math.IsNaN(level) { // SpamAssassin's own, which is 5 here
			refused = set["spam"] == "yes" && set["spam_passthru"] == "no" && a.score >= 5
		}
		if refused != got.refused[n] {
			t.Fatalf("%+v: refused for %s: %v, and simscan %v\n%s", a, to, got.refused[n], refused, made)
		}
	}
	if got.clam != clam || got.spam != spam || fmt.Sprint(got.attach) != fmt.Sprint(attach) {
		t.Fatalf("%+v: clam %v spam %v attach %v, and simscan %v %v %v\n%s", a, got.clam, got.spam, got.attach, clam, spam, attach, made)
	}
}

// TestSettingsAreSimscans makes files and messages, and holds the rules that are
// made against a model of simscan.
func TestSettingsAreSimscans(t *testing.T) {
	dir := t.TempDir()
	addresses := []string{"", "u@a.example", "U-v@A.example", "u-v-w@a.example", "u-x@a.example", "u+v@a.example", "u+v-w@a.example", "ux@a.example", "t@b.example", "u@b.example", "u@sub.a.example", "z@c.example", "u@b.example.c"}
	keys := []string{"", "a.example", "b.example", "u@a.example", "u-v@a.example", "u-v-w@a.example", "u+v@a.example", "u@b.example", "sub.a.example"}
	byScore := map[string][]string{"clam": {"yes", "no"}, "spam": {"yes", "no"}, "spam_hits": {"5", "9.5", "12"}, "attach": {".exe", ".exe:.com", ".js"}}
	byFlag := map[string][]string{"clam": {"yes", "no"}, "spam": {"yes", "no"}, "spam_passthru": {"yes", "no"}}
	rapid.Check(t, func(t *rapid.T) {
		hits := 10.0
		values, o := byScore, Options{SpamHits: &hits}
		if rapid.Bool().Draw(t, "by flag") {
			values, o, hits = byFlag, Options{}, math.NaN()
		}
		s := &simscan{entries: map[string]map[string]string{}}
		var file strings.Builder
		for _, key := range rapid.SliceOfNDistinct(rapid.SampledFrom(keys), 1, 8, rapid.ID).Draw(t, "keys") {
			set := map[string]string{}
			var words []string
			for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom(sorted(values)), 0, 4, rapid.ID).Draw(t, "options of "+key) {
				set[name] = rapid.SampledFrom(values[name]).Draw(t, name)
				words = append(words, name+"="+set[name])
			}
			s.entries[key] = set
			fmt.Fprintf(&file, "%s:%s\n", key, strings.Join(words, ","))
		}
		made := imported(t, dir, "simcontrol", file.String(), o).TOML
		for range 5 {
			a := asked{
				from:  rapid.SampledFrom(addresses).Draw(t, "from"),
				to:    rapid.SliceOfNDistinct(rapid.SampledFrom(addresses[1:]), 1, 3, rapid.ID).Draw(t, "to"),
				score: rapid.SampledFrom([]float64{0, 4.9, 5, 9.5, 11, 30}).Draw(t, "score"),
			}
			agrees(t, s, made, a, hits)
		}
	})
}

// TestManySettings is a host with more domains and users than one rule holds.
func TestManySettings(t *testing.T) {
	s := &simscan{entries: map[string]map[string]string{"": {"clam": "yes", "spam": "yes", "spam_hits": "9"}}}
	file := []string{":clam=yes,spam=yes,spam_hits=9"}
	add := func(key, name, value string) {
		s.entries[key] = map[string]string{name: value}
		file = append(file, key+":"+name+"="+value)
	}
	for i := range 700 {
		add(fmt.Sprintf("d%03d.example", i), []string{"clam", "spam", "spam_hits"}[i%3], []string{"no", "no", "4"}[i%3])
	}
	for i := range 300 {
		add(fmt.Sprintf("user-%d@big.example", i), []string{"clam", "spam", "spam_hits"}[i%3], []string{"no", "no", "4"}[i%3])
	}
	r := imported(t, t.TempDir(), "simcontrol", strings.Join(file, "\n"), Options{})
	for i := 0; i < 700; i += 61 {
		for _, to := range []string{fmt.Sprintf("x@d%03d.example", i), fmt.Sprintf("User-%d-ext@big.example", i%300), fmt.Sprintf("user-%d@big.example", i), fmt.Sprintf("x@d%03d.example.zz", i), "a@aaa", "z@zz.zz"} {
			agrees(t, s, r.TOML, asked{from: "somebody@else.example", to: []string{to}, score: float64(i % 11)}, 10)
		}
		agrees(t, s, r.TOML, asked{from: "", to: []string{"a@d002.example", "b@d101.example", "user-7@big.example", "x@other.example"}, score: float64(i % 11)}, 10)
	}
	if !strings.Contains(string(r.TOML), "those of senders do not count here") {
		t.Error("nothing is said of the senders' settings")
	}
}
