package sender

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/resolve"
	"github.com/postern-mta/postern/rules"
)

// dns knows some domains.
type dns struct{ filtertest.NoDNS }

func notFound(name string) error {
	return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func (dns) LookupMX(_ context.Context, domain string) (resolve.MX, error) {
	switch domain {
	case "mx.example", "own.example":
		return resolve.MX{Hosts: []resolve.Host{{Name: "mail." + domain}}}, nil
	case "a.example", "empty.example", "half.example":
		return resolve.MX{Implicit: true, Hosts: []resolve.Host{{Name: domain}}}, nil
	case "null.example":
		return resolve.MX{Null: true}, nil
	case "odd.example":
		return resolve.MX{}, nil
	case "slow.example":
		return resolve.MX{}, &net.DNSError{Err: "timeout", Name: domain, IsTimeout: true, IsTemporary: true}
	}
	return resolve.MX{}, notFound(domain)
}

func (dns) LookupHost(_ context.Context, name string) ([]string, error) {
	switch name {
	case "a.example":
		return []string{"192.0.2.1"}, nil
	case "half.example":
		return nil, &net.DNSError{Err: "timeout", Name: name, IsTimeout: true}
	}
	return nil, notFound(name)
}

func environment(t testing.TB) pipeline.Env {
	env := filtertest.Env(t)
	env.Resolver = dns{}
	return env
}

func login(user string) *pipeline.Session {
	s := filtertest.Stranger()
	s.Standing, s.User = pipeline.Authenticated, user
	return s
}

// The suite that every filter passes, and what is answered.
func TestSuite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "senders")
	if err := os.WriteFile(file, []byte("# users\nsue: sue@own.example, info@own.example\nSue:\tsue-*@own.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	users := "own = [\"envelope\", \"from\"]\nfile = \"" + file + "\"\n[[user]]\nname = \"Joe\"\naddresses = [\"joe@own.example\", \"@shop.example\", \"!boss@shop.example\"]\n"
	refused := func(name, from, reply, reason string) filtertest.Case {
		return filtertest.Case{Name: name, From: from, WantAction: pipeline.Reject, WantReply: reply, WantReason: reason, WantEnvelopes: []string{}}
	}
	passes := func(name, from string) filtertest.Case { return filtertest.Case{Name: name, From: from} }
	later := filtertest.Case{
		Name: "the DNS is slow", From: "x@slow.example", WantAction: pipeline.Defer, WantReply: "451 4.4.3 the sender's domain cannot be looked up now",
		WantReason: "the DNS cannot tell about slow.example: ", WantEnvelopes: []string{},
	}
	half, anyway := later, filtertest.Case{Name: "passes for trouble", Config: "trouble = \"pass\"\n", From: "x@slow.example", WantReason: "the DNS cannot tell"}
	half.Name, half.From, half.WantReason = "the DNS is slow for addresses", "x@half.example", "half.example"
	ours := func(name, user, from, head, reply, reason string) filtertest.Case {
		c := filtertest.Case{Name: name, Config: users, Session: login(user), From: from, Message: head + "Subject: x\n\nx\n", WantReason: reason}
		if reply != "" {
			c.WantAction, c.WantReply, c.WantEnvelopes = pipeline.Reject, reply, []string{}
		}
		return c
	}
	const no, noFrom = "553 5.7.1 this is not an address of yours", "550 5.7.1 this is not an address of yours"
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Env: environment,
		Cases: []filtertest.Case{
			passes("an MX", "x@MX.example"), passes("a dot at the end", "x@mx.example."), passes("an address", "x@a.example"), passes("from nobody", ""), passes("a double bounce", "#@[]"),
			{Name: "a literal", From: "x@[192.0.2.1]", WantReason: "an address literal"},
			{Name: "a literal of IPv6", From: "x@[IPv6:2001:db8::1]", WantReason: "an address literal"},
			refused("no domain", "x", "550 5.5.4 the sender's domain is no full host name", ""),
			refused("one label", "x@localhost", "550 5.5.4", `"localhost" is no full host name`),
			refused("a number", "x@192.0.2.1", "550 5.5.4", "192.0.2.1"),
			refused("a word in brackets", "x@[example]", "550 5.5.4", "[example]"),
			refused("no such domain", "x@none.example", "550 5.1.8 the sender's domain does not exist", "none.example does not exist"),
			refused("nothing there", "x@empty.example", "550 5.1.8", "empty.example has neither MX nor address"),
			refused("an MX that is none", "x@odd.example", "550 5.1.8", "has no MX that is a host"),
			refused("a null MX", "x@null.example", "550 5.7.27 the sender's domain takes no mail", "has a null MX"),
			later, half, anyway,
			{Name: "not asked", Config: "exists = false\n", From: "x@none.example"},
			{Name: "not qualified", Config: "qualified = false\nexists = false\nown = [\"from\"]\n", From: "x@localhost"},
			{Name: "relayed", Session: &pipeline.Session{Standing: pipeline.Relayed}, From: "x@none.example"},
			ours("his own", "joe", "Joe@Own.example", "From: \"Joe\" <joe@own.example>\n", "", ""),
			ours("a domain of his", "JOE", "sales@shop.example", "From: =?koi8-r?B?8NLJ18XU?= <any@shop.example>, \xe4 <joe@own.example>\n", "", ""),
			ours("read receipts", "joe", "", "From: joe@own.example\n", "", ""),
			ours("an exception", "joe", "boss@shop.example", "", no, "boss@shop.example is no address of the user joe"),
			ours("not his", "joe", "sue@own.example", "", no, "sue@own.example is no address of the user joe"),
			ours("from the file", "sue", "info@own.example", "From: sue-lists@own.example\n", "", ""),
			ours("his login", "ann@own.example", "Ann@own.example", "From: ann@own.example\n", "", ""),
			ours("not his login", "ann@own.example", "joe@own.example", "", no, "joe@own.example is no address"),
			ours("who is nowhere", "tom", "tom@own.example", "", no, "who has none: write them"),
			ours("From is another's", "joe", "joe@own.example", "From: sue@own.example\n", noFrom, "From: sue@own.example is no address"),
			ours("one of From is another's", "joe", "joe@own.example", "From: joe@own.example, sue@own.example\n", noFrom, "From: sue@own.example is no address"),
			ours("for his boss", "joe", "joe@own.example", "From: sue@own.example\nSender: joe@own.example\n", "", ""),
			ours("two From", "joe", "joe@own.example", "From: joe@own.example\nFrom: sue@own.example\n", noFrom, "has 2 fields From"),
			ours("no From", "joe", "joe@own.example", "", noFrom, "no field From"),
			ours("no address in From", "joe", "joe@own.example", "From: Joe\n", noFrom, "From cannot be read: "),
		},
	})
}

func TestConfiguration(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("joe: joe@a\nsue sue@a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	own := []string{"envelope"}
	for name, c := range map[string]struct {
		o         Options
		key, want string
	}{
		"nothing":      {Options{}, "", "it does nothing"},
		"trouble":      {Options{Exists: true, Trouble: "reject"}, "trouble", "defer or pass"},
		"own":          {Options{Own: []string{"envelope", "to"}}, "own[1]", "envelope or from"},
		"users only":   {Options{Exists: true, Users: []User{{"joe", []string{"a@b"}}}}, "own", "nothing for which they count"},
		"no name":      {Options{Own: own, Users: []User{{"", []string{"a@b"}}}}, "user[0].name", "missing"},
		"no addresses": {Options{Own: own, Users: []User{{"joe", nil}}}, "user[0].addresses", "write 1 to"},
		"no address":   {Options{Own: own, Users: []User{{"joe", []string{"a@b", "joe"}}}}, "user[0].addresses[1]", `"joe" is no address`},
		"relative":     {Options{Own: own, File: "senders"}, "file", "no absolute path"},
		"missing":      {Options{Own: own, File: filepath.Join(dir, "none")}, "file", "no such file"},
		"broken":       {Options{Own: own, File: broken}, "file", "broken: line 2: write a user and his addresses"},
		"cdb":          {Options{Own: own, CDB: broken}, "cdb", "not a sound cdb"},
		"text":         {Options{Own: own, Text: "a\nb"}, "text", "one line"},
		"many users":   {Options{Own: own, Users: make([]User, maxUsers+1)}, "user", "write them into a file"},
	} {
		f, err := New(pipeline.Env{}, c.o)
		var at interface{ Key() string }
		if f != nil || err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &at) != (c.key != "") || c.key != "" && at.Key() != c.key {
			t.Errorf("%s: %v", name, err)
		}
	}
	f, err := New(pipeline.Env{}, Options{Own: own})
	if err != nil || !slices.Equal(f.Traits().Stages, []pipeline.Stage{pipeline.AtSender}) {
		t.Errorf("%v %v", f, err)
	}
}

// A cdb and a file that change are read again.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	clock := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
		clock = clock.Add(2 * time.Second)
		return path
	}
	compiled := func(records ...rules.CDBRecord) string {
		var b strings.Builder
		if err := rules.WriteCDB(&b, records); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	o := Options{Own: []string{"envelope"}, File: write("senders", "joe: a@b\n"), CDB: write("senders.cdb", compiled(rules.CDBRecord{Key: "joe", Value: "c@d, e-*@f"}))}
	f, err := New(pipeline.Env{Now: func() time.Time { return clock }}, o)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	is := func(address string, want bool) {
		t.Helper()
		if got, err := f.users.owns("Joe", address); got != want || err != nil {
			t.Errorf("%s: %v %v", address, got, err)
		}
	}
	is("A@b", true)
	is("c@d", true)
	is("e-x@f", true)
	write("senders", "joe: g@h\n")
	is("a@b", false)
	is("g@h", true)
	write("senders", "joe g@i\n")
	is("g@h", true)
	write("senders.cdb", compiled(rules.CDBRecord{Key: "joe", Value: "i@j"}))
	is("c@d", false)
	is("i@j", true)
	write("senders.cdb", compiled(rules.CDBRecord{Key: "joe", Value: "nobody"}))
	if _, err := f.users.owns("joe", "x@y"); err == nil {
		t.Error("a cdb without addresses is no error")
	}
}

// Without an MX to ask for, addresses decide.
func TestPlainResolver(t *testing.T) {
	f, err := New(pipeline.Env{Resolver: filtertest.NoDNS{}}, Options{Exists: true})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := f.domain(context.Background(), "a@b.example"); v.Action != pipeline.Reject || err != nil {
		t.Errorf("%v %v", v, err)
	}
	f.resolver = nil
	if v, err := f.domain(context.Background(), "a@b.example"); v.Action != pipeline.Continue || err == nil {
		t.Errorf("without a resolver: %v %v", v, err)
	}
}

// Whatever a file holds, nobody has an address that is on no line of his.
func FuzzUsers(f *testing.F) {
	f.Add("joe: joe@a *@b\nsue: !x@b, y@b\n", "joe", "x@b")
	f.Add(":\n", "", "@")
	f.Add("a:@b", "A", "c@b")
	f.Fuzz(func(t *testing.T, text, user, address string) {
		lines, err := rules.ControlLines(strings.NewReader(text), 1<<16)
		if err != nil {
			return
		}
		all, err := parseUsers(lines)
		if err != nil {
			return
		}
		b := book{own: all}
		is, err := b.owns(user, address)
		if err != nil || is && address == "" {
			t.Errorf("%q owns %q: %v", user, address, err)
		}
		if is && all[strings.ToLower(user)] == nil && !strings.EqualFold(user, strings.TrimSuffix(address, ".")) {
			t.Errorf("%q, who is nowhere, owns %q", user, address)
		}
		if !is && all[strings.ToLower(user)] == nil && strings.Contains(user, "@") && user == address && !strings.HasSuffix(user, ".") {
			t.Errorf("%q does not own himself", user)
		}
	})
}

// What is read of a From has no address that does not stand there.
func FuzzFrom(f *testing.F) {
	f.Add("Joe <joe@example.org>, \"a@b\" <c@d>")
	f.Add("group: a@b, c@d;")
	f.Add("=?x?q?=61?= <a@[192.0.2.1]>")
	f.Fuzz(func(t *testing.T, value string) {
		all, err := addressesOf(value)
		if (err == nil) != (len(all) > 0) {
			t.Errorf("%v %v", all, err)
		}
		for _, a := range all {
			if !strings.Contains(a, "@") {
				t.Errorf("%q of %q", a, value)
			}
		}
	})
}
