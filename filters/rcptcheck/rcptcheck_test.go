package rcptcheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/rules"
)

// The suite that every filter passes, with a list.
func TestSuite(t *testing.T) {
	local := &pipeline.Session{Entrance: "queue", Standing: pipeline.Local, Ours: func(d string) bool { return d == "example.org" }}
	const config = "[[check]]\nlist = [\"R@example.org\", \"you-@example.org\", \"all-default@example.org\"]\n"
	unknown := filtertest.Case{
		Name: "unknown", From: "a@example.net", To: []string{"r@example.org", "no@example.org"},
		WantActions: []pipeline.Action{pipeline.Continue, pipeline.Reject}, WantReason: "unknown to the list", WantEnvelopes: []string{"a@example.net -> r@example.org"},
	}
	all := filtertest.Case{
		Name: "nobody", From: "a@example.net", To: []string{"no@example.org"}, WantAction: pipeline.Reject,
		WantReply: "550 5.1.1 no mailbox here by that name", WantEnvelopes: []string{},
	}
	later, text, trusted := all, all, all
	later.Name, later.Config, later.WantAction, later.WantReply = "later", "action = \"defer\"\n"+config, pipeline.Defer, "450 4.1.1 no mailbox"
	text.Name, text.Config, text.WantReply = "text", "text = \"gone fishing\"\n"+config, "550 5.1.1 gone fishing"
	trusted.Name, trusted.Config, trusted.Session = "our own users, when asked for", "trusted = true\n"+config, local
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: config,
		Cases: []filtertest.Case{
			unknown, all, later, text, trusted,
			{Name: "known", From: "a@example.net", To: []string{"R@Example.org"}, WantReason: "known to the list"},
			{Name: "a dot at the end", From: "a@example.net", To: []string{"r@example.org."}, WantReason: "known to the list"},
			{Name: "an extension", From: "a@example.net", To: []string{"you-and-me@example.org", "you=me@example.org"}, WantActions: []pipeline.Action{pipeline.Continue, pipeline.Reject}, WantEnvelopes: []string{"a@example.net -> you-and-me@example.org"}},
			{Name: "default", From: "a@example.net", To: []string{"all-of-us@example.org"}, WantReason: "known"},
			{Name: "elsewhere", From: "a@example.net", To: []string{"no@example.com"}, WantReason: "not in a domain of ours"},
			{Name: "our own users", Session: local, From: "a@example.org", To: []string{"no@example.org"}},
			{Name: "not asked", Config: "[[check]]\nlist = [\"@example.com\"]\ndomains = [\"example.com\"]", To: []string{"no@example.org"}, WantReason: "no check is asked about example.org"},
			{
				Name: "a file that is not there", Config: "[[check]]\nfile = \"/no/such/file\"", From: "a@example.net", WantAction: pipeline.Defer,
				WantErr: "/no/such/file", WantEnvelopes: []string{},
			},
			{Name: "others know him", Config: "[[check]]\ncdb = \"/no/such/file\"\n[[check]]\nlist = [\"r@example.org\"]", From: "a@example.net", WantReason: "known to the list"},
			{
				Name: "others do not", Config: "[[check]]\nprogram = \"/no/such/file\"\n[[check]]\nlist = [\"x@example.org\"]", From: "a@example.net", WantAction: pipeline.Defer,
				WantErr: "/no/such/file", WantEnvelopes: []string{},
			},
			{
				Name: "all must", Config: "need = \"all\"\n[[check]]\nprogram = \"/no/such/file\"\n[[check]]\nlist = [\"x@example.org\"]", From: "a@example.net", WantAction: pipeline.Reject,
				WantReason: "unknown to the list", WantEnvelopes: []string{},
			},
			{Name: "all do", Config: "need = \"all\"\n[[check]]\nlist = [\"@example.org\"]\n[[check]]\nlist = [\"r@example.org\"]", WantReason: "known to all checks"},
		},
	})
}

func TestConfiguration(t *testing.T) {
	good := Check{List: []string{"a@b"}}
	one := func(c Check) Options { return Options{Checks: []Check{good, c}} }
	with := func(change func(*Options)) Options {
		o := Options{Checks: []Check{good}}
		change(&o)
		return o
	}
	for name, c := range map[string]struct {
		o         Options
		key, want string
	}{
		"none":          {Options{}, "", "there is no check"},
		"too many":      {Options{Checks: slices.Repeat([]Check{good}, maxChecks+1)}, "check[50]", "more than 50"},
		"need":          {with(func(o *Options) { o.Need = "some" }), "need", "any or all"},
		"action":        {with(func(o *Options) { o.Action = "discard" }), "action", "reject or defer"},
		"text":          {with(func(o *Options) { o.Text = "a\nb" }), "text", "one line"},
		"valid_for":     {with(func(o *Options) { o.ValidFor = -1 }), "valid_for", "0 to a week"},
		"invalid_for":   {with(func(o *Options) { o.InvalidFor = 300 * time.Hour }), "invalid_for", "0 to a week"},
		"cache_size":    {with(func(o *Options) { o.CacheSize = -1 }), "cache_size", "write 1"},
		"programs":      {with(func(o *Options) { o.Programs = -1 }), "programs", "write 1"},
		"nothing":       {one(Check{}), "check[1]", "it has 0 of"},
		"two things":    {one(Check{File: "/a", CDB: "/b"}), "check[1]", "it has 2 of"},
		"relative":      {one(Check{File: "a"}), "check[1].file", "no absolute path"},
		"relative cdb":  {one(Check{CDB: "a"}), "check[1].cdb", "no absolute path"},
		"relative prog": {one(Check{Program: "a"}), "check[1].program", "no absolute path"},
		"no program":    {one(Check{File: "/a", Each: true}), "check[1]", "there is none"},
		"wait":          {one(Check{Program: "/a", Wait: time.Hour}), "check[1].wait", "at most 5m"},
		"NUL":           {one(Check{Program: "/a", Args: []string{"x", "a\x00"}}), "check[1].args[1]", "NUL"},
		"empty list":    {one(Check{List: []string{}}), "check[1].list", "it is empty"},
		"list":          {one(Check{List: []string{"a@b", "b"}}), "check[1].list[1]", `"b" is no address`},
		"blank":         {one(Check{List: []string{"a b@c"}}), "check[1].list[0]", "no address"},
		"long list":     {one(Check{List: make([]string, maxList+1)}), "check[1].list", "into a file"},
		"domains":       {one(Check{List: []string{"a@b"}, Domains: []string{"x", "@y"}}), "check[1].domains[1]", "no domain"},
	} {
		f, err := New(pipeline.Env{}, c.o)
		var at interface{ Key() string }
		if f != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if errors.As(err, &at) != (c.key != "") || c.key != "" && at.Key() != c.key {
			t.Errorf("%s: about %v, want %s", name, at, c.key)
		}
	}
}

// rig is a filter with a clock and a log.
type rig struct {
	*Filter
	t     testing.TB
	log   *filtertest.Log
	mu    sync.Mutex
	clock time.Time
}

func newRig(t testing.TB, o Options) *rig {
	t.Helper()
	r := &rig{t: t, log: new(filtertest.Log), clock: time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)}
	env := filtertest.Env(t)
	env.Now, env.Log = r.now, slog.New(slog.NewTextHandler(r.log, nil))
	f, err := New(env, o)
	if err != nil {
		t.Fatal(err)
	}
	r.Filter = f
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) now() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clock
}

func (r *rig) wait(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock = r.clock.Add(d)
}

// ask looks a recipient up, as for a session of his own.
func (r *rig) ask(recipient string) (pipeline.Verdict, error) {
	return r.askIn(context.Background(), &instance{filter: r.Filter}, "a@example.net", recipient)
}

func (*rig) askIn(ctx context.Context, i *instance, sender, recipient string) (pipeline.Verdict, error) {
	s := filtertest.Stranger()
	s.Ours = func(domain string) bool { return strings.HasSuffix(domain, "example.org") }
	return i.Recipient(ctx, &pipeline.Transaction{Session: s, Envelope: envelope.To(sender)}, envelope.Recipient{Address: recipient})
}

// want looks recipients up and compares what they are.
func (r *rig) want(what string, recipients ...string) {
	r.t.Helper()
	for _, a := range recipients {
		v, err := r.ask(a)
		got := "known"
		switch {
		case err != nil:
			got = "error: " + err.Error()
		case v.Action == pipeline.Reject && strings.HasPrefix(v.Reason, "refused"):
			got = "refused"
		case v.Action == pipeline.Reject:
			got = "unknown"
		}
		if !strings.HasPrefix(got, what) {
			r.t.Errorf("<%s> is %s (%s), want %s", a, got, v.Reason, what)
		}
	}
}

func write(t testing.TB, name, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(name+".new", []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name+".new", mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

func cdb(records ...string) string {
	var all []rules.CDBRecord
	for _, r := range records {
		key, value, _ := strings.Cut(r, "|")
		all = append(all, rules.CDBRecord{Key: key, Value: value})
	}
	var b bytes.Buffer
	if err := rules.WriteCDB(&b, all); err != nil {
		panic(err)
	}
	return b.String()
}

// A file is read again when it changes; what cannot be read changes nothing,
// and what could never be read is an error.
func TestFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "validrcptto")
	r := newRig(t, Options{Checks: []Check{{File: name}}})
	if !strings.Contains(r.log.String(), "no such file") {
		t.Errorf("the log says %s", r.log)
	}
	r.want("error: "+name+": ", "joe@example.org")
	write(t, name, "# ours\njoe@example.org\nBoss@Example.ORG  \r\n\n@sub.example.org\nlist-@example.org\n", 0o600)
	r.want("error", "joe@example.org") // it is looked at once a second
	r.wait(time.Second)
	r.want("known", "joe@example.org", "JOE@example.org", "boss@example.org", "anybody@sub.example.org", "list-request@example.org")
	r.want("unknown", "jo@example.org", "joe-x@example.org", "anybody@example.org", "list@example.org")
	write(t, name, "joe@example.org\nno address\n", 0o600)
	r.wait(time.Second)
	r.want("known", "boss@example.org")
	if want := name + `:2: \"no address\" is no address`; !strings.Contains(r.log.String(), want) {
		t.Errorf("the log does not say %s: %s", want, r.log)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	r.wait(time.Second)
	r.want("known", "boss@example.org")
	write(t, name, "new@example.org", 0o600)
	r.wait(time.Second)
	r.want("known", "new@example.org")
	r.want("unknown", "boss@example.org")
	r.wait(-100 * time.Hour)
	r.want("known", "new@example.org")
	for _, text := range []string{"", "# who is there\n"} { // as while it is being written
		write(t, name, text, 0o600)
		r.wait(time.Second)
		r.want("known", "new@example.org")
		newRig(t, Options{Checks: []Check{{File: name}}}).want("error: "+name+": "+name+": there is nobody in it", "joe@example.org")
	}
	if !strings.Contains(r.log.String(), "there is nobody in it") {
		t.Errorf("the log says %s", r.log)
	}
	folder := newRig(t, Options{Checks: []Check{{File: t.TempDir()}}})
	folder.want("error", "joe@example.org")
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	newRig(t, Options{Checks: []Check{{File: pipe}}}).want("error: "+pipe+": "+pipe+" is no file", "joe@example.org")
}

// lastWord is a check whose answer comes when the time is over.
type lastWord struct {
	answer
	cancel context.CancelFunc
}

func (l lastWord) ask(context.Context, string, *pipeline.Transaction) (finding, error) {
	l.cancel()
	return finding{answer: l.answer}, nil
}

func (lastWord) name() string { return "the last word" }

func (lastWord) close() error { return nil }

// A time that is over refuses nobody whom a check behind might know, and lets
// nobody pass whom one might not know.
func TestNoTimeLeft(t *testing.T) {
	for need, a := range map[string]answer{needAny: unknown, needAll: valid} {
		r := newRig(t, Options{Need: need, Checks: []Check{{List: []string{"x@example.org"}}, {List: []string{"joe@example.org"}}}})
		ctx, cancel := context.WithCancel(context.Background())
		r.checks[0].source = lastWord{a, cancel}
		if v, err := r.askIn(ctx, &instance{filter: r.Filter}, "", "joe@example.org"); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v %v", need, v, err)
		}
	}
}

// The two layouts of databases.
func TestCDB(t *testing.T) {
	name := filepath.Join(t.TempDir(), "recipients.cdb")
	r := newRig(t, Options{Checks: []Check{{CDB: name}}})
	r.want("error: "+name+": ", "joe@example.org")
	write(t, name, cdb(":joe@example.org", ":you-@example.org", ":srs0=@example.org", ":plus+@example.org", ":@sub.example.org", ":dash@example.org|-x"), 0o600)
	r.wait(time.Second)
	r.want("known", "Joe@example.org", "you-anything@example.org", "you-a-b@example.org", "SRS0=HH=TT=d=l@example.org", "plus+x@example.org", "any@sub.example.org", "dash@example.org")
	r.want("unknown", "you@example.org", "me-anything@example.org", "joe-x@example.org", ":joe@example.org")
	write(t, name, cdb("joe@example.org", "you-default@example.org", "you-not@example.org|-", "a-b-default@example.org", "@sub.example.org", "no@sub.example.org|-gone"), 0o600)
	r.wait(time.Second)
	r.want("known", "joe@example.org", "you-anything@example.org", "you-x-y@example.org", "a-b-c@example.org", "any@sub.example.org")
	r.want("unknown", "you@example.org", "a-x@example.org", "anybody@example.org")
	r.want("refused", "you-not@example.org", "no@sub.example.org")
	write(t, name, "this is no database", 0o600)
	r.wait(time.Second)
	r.want("known", "joe@example.org")
	if !strings.Contains(r.log.String(), "cannot be read") {
		t.Errorf("the log says %s", r.log)
	}
	bad := newRig(t, Options{Checks: []Check{{CDB: name}, {List: []string{"x@example.org"}}}})
	bad.want("error", "joe@example.org")
	bad.want("known", "x@example.org")
	long := strings.Repeat("-", 900) + "@example.org"
	r.want("unknown", long)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	bad.Close()
	bad.want("error", "joe@example.org")
	r.checks = nil
}

// Unknown recipients are counted, for each session.
func TestSymbol(t *testing.T) {
	r := newRig(t, Options{Checks: []Check{{List: []string{"r@example.org"}}}})
	for range 2 {
		i := &instance{filter: r.Filter}
		for n, recipient := range []string{"no@example.org", "r@example.org", "not@example.org"} {
			v, err := r.askIn(context.Background(), i, "", recipient)
			if err != nil {
				t.Fatal(err)
			}
			want := []pipeline.Symbol{{Name: Symbol, Detail: fmt.Sprintf("%d unknown recipients in this session", n/2+1)}}
			if v.Action == pipeline.Continue {
				want = nil
			}
			if !slices.Equal(v.Symbols, want) {
				t.Errorf("%s: %+v", recipient, v.Symbols)
			}
		}
	}
}

// No address makes a look-up panic, or look long.
func FuzzLookUp(f *testing.F) {
	for _, s := range []string{"joe@example.org", "you-a-b@example.org", "@", "", "-", "a=b@c", "---@x", ":a@b", "a@b@c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		asked := 0
		a, err := lookUp(func(string) ([]byte, bool, error) { asked++; return nil, false, nil }, lower(s))
		if a.answer != unknown || err != nil || asked > maxBreaks+6 {
			t.Errorf("%v %v after %d questions", a, err, asked)
		}
		if a, _ := lookUp(newList([]string{s}).find, lower(s)); isEntry(s) && a.answer != valid {
			t.Errorf("%q is not on a list of itself", s)
		}
	})
}

func FuzzList(f *testing.F) {
	for _, s := range []string{"a@b\n", "# x\n@b\r\n", "a b@c", "a@\n", "\x00@b"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseList(bytes.NewReader(b), "f")
		if err == nil && len(l.entries) > len(b) {
			t.Errorf("%d entries", len(l.entries))
		}
		for e := range l.orEmpty() {
			if !isEntry(e) || e != lower(e) {
				t.Errorf("%q", e)
			}
		}
	})
}

func (l *list) orEmpty() map[string]struct{} {
	if l == nil {
		return nil
	}
	return l.entries
}
