package relay_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/ingress/relay"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/rules"
)

// The host mx.us.example takes mail for these; hub.example is hacked, and more.example stands in morercpthosts.cdb.
var accepted = rules.NewDomainList([]string{
	"us.example", ".sub.us.example", "hub.example", "xn--bcher-kva.example", "müller.example", "us.example.com",
})

func options(t testing.TB) relay.Options {
	t.Helper()
	var b bytes.Buffer
	if err := rules.WriteCDB(&b, []rules.CDBRecord{{Key: "more.example"}, {Key: ".more.example"}}); err != nil {
		t.Fatal(err)
	}
	more, err := rules.OpenCDB(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		t.Fatal(err)
	}
	return relay.Options{
		Hostname: "mx.us.example",
		Accepts:  func(d string) bool { _, ok := accepted.Match(d); return ok },
		Ours: func(d string) bool {
			_, ok := accepted.Match(d)
			return ok || strings.EqualFold(d, "mx.us.example") || strings.EqualFold(d, "inside.example")
		},
		MoreHosts: more,
		LocalAddress: func(a netip.Addr) bool {
			return a == netip.MustParseAddr("192.0.2.25") || a == netip.MustParseAddr("2001:db8::25")
		},
		PercentHack: []string{"hub.example"},
	}
}

func policy(t testing.TB, o relay.Options) *relay.Policy {
	t.Helper()
	p, err := relay.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const (
	refused = "550 5.7.1 relaying denied"
	syntax  = "501"
)

// addresses are what a client writes after RCPT TO:, and what becomes of it if a stranger says so and if a client that
// may relay does. An empty trusted answer means the stranger's.
var addresses = []struct{ path, stranger, trusted string }{
	// The ordinary ones.
	{"<joe@us.example>", "joe@us.example", ""},
	{"<Joe@US.Example>", "Joe@US.Example", ""},
	{"<joe@us.example.>", "joe@us.example", ""},
	{"<joe@a.sub.us.example>", "joe@a.sub.us.example", ""},
	{"<joe@sub.us.example>", refused, "joe@sub.us.example"},
	{"<joe@xus.example>", refused, "joe@xus.example"},
	{"<joe@us.example.net>", refused, "joe@us.example.net"},
	{"<joe@us.example.com>", "joe@us.example.com", ""},
	{"<joe@other.example>", refused, "joe@other.example"},
	{"<joe@other.example.>", refused, "joe@other.example"},
	{"<joe@inside.example>", refused, "joe@inside.example"},
	{"<joe@more.example>", "joe@more.example", ""},
	{"<joe@A.MORE.example>", "joe@A.MORE.example", ""},
	{"<joe@more.example.net>", refused, "joe@more.example.net"},
	{"<joe+tag@us.example>", "joe+tag@us.example", ""},
	{"<list-return-12-joe=other.example@us.example>", "list-return-12-joe=other.example@us.example", ""},
	{"<joe.@us.example>", "joe.@us.example", ""},
	{"<o'neil/x{y}@us.example>", "o'neil/x{y}@us.example", ""},
	{`<"joe doe"@us.example>`, `"joe doe"@us.example`, ""},
	{`<"joe\"doe"@us.example>`, `"joe\"doe"@us.example`, ""},
	{"<100%@us.example>", "100%@us.example", ""},
	{"<!joe@us.example>", "!joe@us.example", ""},
	{`<"a:b"@us.example>`, `"a:b"@us.example`, ""},
	{`<""@us.example>`, refused, ""},
	// Without a domain.
	{"<postmaster>", "postmaster@mx.us.example", ""},
	{"<PostMaster>", "PostMaster@mx.us.example", ""},
	{"<joe>", "joe@mx.us.example", ""},
	{"<joe%other.example>", refused, "joe%other.example@mx.us.example"},
	{"<other.example!joe>", refused, "other.example!joe@mx.us.example"},
	{"<>", syntax, ""},
	{"<postmaster@mx.us.example>", refused, "postmaster@mx.us.example"},
	{"<postmaster@us.example>", "postmaster@us.example", ""},
	// Percent hacks.
	{"<user%host@us.example>", refused, "user%host@us.example"},
	{"<user%other.example@us.example>", refused, "user%other.example@us.example"},
	{"<user%a%b@us.example>", refused, "user%a%b@us.example"},
	{"<%other.example@us.example>", refused, "%other.example@us.example"},
	{`<"user%other.example"@us.example>`, refused, `"user%other.example"@us.example`},
	{`<"user\%other.example"@us.example>`, refused, `"user\%other.example"@us.example`},
	{"<user%other.example@hub.example>", refused, "user@other.example"},
	{"<user%us.example@hub.example>", "user@us.example", ""},
	{"<user%us.example.@HUB.example.>", "user@us.example", ""},
	{"<user%x%us.example@hub.example>", refused, "user%x@us.example"},
	{"<user%us.example%hub.example@hub.example>", "user@us.example", ""},
	{"<user%other.example%hub.example@hub.example>", refused, "user@other.example"},
	{"<user%@hub.example>", "user%@hub.example", ""},
	{`<"user%other.example"@hub.example>`, refused, `"user%other.example"@hub.example`},
	{"<user%other.example@more.example>", refused, "user%other.example@more.example"},
	// Addresses within addresses.
	{"<user@other.example@us.example>", syntax, ""},
	{`<user\@other.example@us.example>`, syntax, ""},
	{`<"user@other.example"@us.example>`, refused, `"user@other.example"@us.example`},
	{`<"user\@other.example"@us.example>`, refused, `"user\@other.example"@us.example`},
	{`<"user@other.example">`, syntax, ""},
	{`<"@other.example:user"@us.example>`, refused, `"@other.example:user"@us.example`},
	{`<"@"@us.example>`, refused, `"@"@us.example`},
	// Bang and other paths.
	{"<other.example!user@us.example>", refused, "other.example!user@us.example"},
	{"<a!b!user@us.example>", refused, "a!b!user@us.example"},
	{"<user!@us.example>", refused, "user!@us.example"},
	{`<"other.example!user"@us.example>`, refused, `"other.example!user"@us.example`},
	{`<"other.example\!user"@us.example>`, refused, `"other.example\!user"@us.example`},
	{"<other.example!user%x@us.example>", refused, "other.example!user%x@us.example"},
	{`<"node::user"@us.example>`, refused, `"node::user"@us.example`},
	{"<us.example!user@other.example>", refused, "us.example!user@other.example"},
	// Source routes are dropped.
	{"<@other.example:joe@us.example>", "joe@us.example", ""},
	{"<@us.example:joe@other.example>", refused, "joe@other.example"},
	{"<@us.example,@other.example:joe@us.example>", "joe@us.example", ""},
	{"<@us.example:user%other.example@us.example>", refused, "user%other.example@us.example"},
	{"<@us.example:postmaster>", "postmaster@mx.us.example", ""},
	// Address literals.
	{"<joe@[192.0.2.25]>", "joe@mx.us.example", ""},
	{"<joe@[IPv6:2001:db8::25]>", "joe@mx.us.example", ""},
	{"<joe@[ipv6:2001:DB8:0::25]>", "joe@mx.us.example", ""},
	{"<joe@[192.0.2.26]>", refused, "joe@[192.0.2.26]"},
	{"<joe@[127.0.0.1]>", refused, "joe@[127.0.0.1]"},
	{"<joe@[2001:db8::25]>", refused, "joe@[2001:db8::25]"},
	{"<joe@[us.example]>", refused, "joe@[us.example]"},
	{"<user%other.example@[192.0.2.25]>", refused, "user%other.example@mx.us.example"},
	{`<"user@other.example"@[192.0.2.25]>`, refused, `"user@other.example"@mx.us.example`},
	{"<joe@192.0.2.25>", refused, "joe@192.0.2.25"},
	// Names in other alphabets: equal if their A-labels are.
	{"<joe@bücher.example> utf8", "joe@xn--bcher-kva.example", ""},
	{"<joe@BÜCHER.example> utf8", "joe@xn--bcher-kva.example", ""},
	{"<joe@bu\u0308cher.example> utf8", "joe@xn--bcher-kva.example", ""},
	{"<joe@xn--bcher-kva.example>", "joe@xn--bcher-kva.example", ""},
	{"<joe@XN--Bcher-KVA.example.>", "joe@xn--bcher-kva.example", ""},
	{"<joe@xn--mller-kva.example>", "joe@müller.example", ""},
	{"<joe@MÜLLER.example> utf8", "joe@müller.example", ""},
	{"<joe@ｕｓ.example> utf8", "joe@us.example", ""},
	{"<joe@us。example> utf8", "joe@us.example", ""},
	{"<joe@xn--a.example>", refused, "joe@xn--a.example"},
	{"<joe@büche.example> utf8", refused, "joe@büche.example"},
	{"<jörg@us.example> utf8", "jörg@us.example", ""},
	{"<user％other.example@us.example> utf8", refused, "user％other.example@us.example"},
	{"<user＠other.example@us.example> utf8", refused, "user＠other.example@us.example"},
	{"<other.example！user@us.example> utf8", refused, "other.example！user@us.example"},
	{"<joe@bücher.example>", "553", ""},
}

// say parses a recipient as the server does and asks for it.
func say(p *relay.Policy, s *pipeline.Session, path string) string {
	path, utf8 := strings.CutSuffix(path, " utf8")
	r, err := wire.ParseRcpt(path, wire.UTF8, utf8)
	if err != nil {
		return reply.Of(err).SMTP()
	}
	out, _, err := p.Recipient(context.Background(), s, "x@other.example", r)
	if err != nil {
		return reply.Of(err).SMTP()
	}
	return out.Address
}

// sameAnswer takes a code for every answer with it.
func sameAnswer(got, want string) bool {
	return got == want || len(want) == 3 && strings.HasPrefix(got, want+" ")
}

func TestRecipients(t *testing.T) {
	if len(addresses) < 60 {
		t.Errorf("%d addresses", len(addresses))
	}
	p := policy(t, options(t))
	for _, a := range addresses {
		if got := say(p, &pipeline.Session{}, a.path); !sameAnswer(got, a.stranger) {
			t.Errorf("stranger, %s: %s, want %s", a.path, got, a.stranger)
		}
		want := a.trusted
		if want == "" {
			want = a.stranger
		}
		for _, standing := range []pipeline.Standing{pipeline.Relayed, pipeline.Authenticated, pipeline.Local} {
			s := &pipeline.Session{Standing: standing, Env: map[string]string{"RELAYCLIENT": ""}}
			if got := say(p, s, a.path); !sameAnswer(got, want) {
				t.Errorf("%v, %s: %s, want %s", standing, a.path, got, want)
			}
		}
	}
}

// TestNothingIsAcceptedWithoutLists: a missing rcpthosts relays nothing.
func TestNothingIsAcceptedWithoutLists(t *testing.T) {
	p := policy(t, relay.Options{Hostname: "mx.us.example"})
	for _, a := range addresses {
		got := say(p, &pipeline.Session{}, a.path)
		switch {
		case strings.EqualFold(strings.Trim(a.path[strings.LastIndexByte(a.path, ':')+1:], "<>"), "postmaster"):
			if !strings.HasSuffix(got, "@mx.us.example") {
				t.Errorf("%s: %s", a.path, got)
			}
		case got != refused && !strings.HasPrefix(got, "501 ") && !strings.HasPrefix(got, "553 "):
			t.Errorf("%s: %s", a.path, got)
		}
	}
	if _, err := relay.New(relay.Options{}); err == nil {
		t.Error("a policy without a host name")
	}
}

// TestRelayClientText: the text of RELAYCLIENT is appended, and only for clients that relay by it.
func TestRelayClientText(t *testing.T) {
	p := policy(t, options(t))
	env := map[string]string{"RELAYCLIENT": "@fix.example"}
	for path, want := range map[string]string{
		"<joe@other.example>": "joe@other.example@fix.example", "<joe>": "joe@fix.example", "<joe@[192.0.2.25]>": "joe@mx.us.example@fix.example",
		"<user%us.example@hub.example>": "user%us.example@hub.example@fix.example", "<postmaster>": "postmaster@fix.example",
		"<joe@us.example.>": "joe@us.example@fix.example",
	} {
		if got := say(p, &pipeline.Session{Standing: pipeline.Relayed, Env: env}, path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	for _, standing := range []pipeline.Standing{pipeline.Authenticated, pipeline.Local} {
		if got := say(p, &pipeline.Session{Standing: standing, Env: env}, "<joe@other.example>"); got != "joe@other.example" {
			t.Errorf("%v: %s", standing, got)
		}
	}
	if got := say(p, &pipeline.Session{Env: env}, "<joe@other.example>"); got != refused {
		t.Errorf("a stranger's environment: %s", got)
	}
	long := &pipeline.Session{Standing: pipeline.Relayed, Env: map[string]string{"RELAYCLIENT": "@" + strings.Repeat("f", envelope.MaxAddress)}}
	if got := say(p, long, "<joe@other.example>"); got != reply.AddressTooLong.SMTP() {
		t.Errorf("too long: %s", got)
	}
}

func TestRecipientKeepsParametersAndLot(t *testing.T) {
	o := options(t)
	o.Lot = func(address string) string { return "lot of " + address }
	o.LocalHost, o.BareHost = "inside.example", "us.example"
	p := policy(t, o)
	in := envelope.Recipient{Address: "joe@[192.0.2.25]", DSN: &envelope.DSN{Notify: envelope.NotifyNever}}
	out, lot, err := p.Recipient(context.Background(), &pipeline.Session{}, "", in)
	if err != nil || out.Address != "joe@inside.example" || out.DSN != in.DSN || lot != "lot of joe@inside.example" {
		t.Errorf("%+v, %q, %v", out, lot, err)
	}
	if got := say(p, &pipeline.Session{}, "<joe>"); got != "joe@us.example" {
		t.Errorf("without a domain: %s", got)
	}
	for _, address := range []string{"", "@us.example"} {
		if _, _, err := p.Recipient(context.Background(), &pipeline.Session{}, "", envelope.Recipient{Address: address}); reply.Of(err) != reply.RelayDenied {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// broken is a list that cannot be read.
type broken struct{}

func (broken) Has(string) (bool, error) { return false, errors.New("input/output error") }

func (broken) Match(rules.TCPClient) (rules.TCPVerdict, error) {
	return rules.TCPVerdict{}, errors.New("input/output error")
}

func TestUnreadableListsAreTemporary(t *testing.T) {
	o := options(t)
	o.MoreHosts, o.TCPRules = broken{}, broken{}
	p := policy(t, o)
	for path, want := range map[string]string{
		"<joe@us.example>": "joe@us.example", "<joe@other.example>": "451", "<joe@bücher.example> utf8": "joe@xn--bcher-kva.example",
		"<joe@büche.example> utf8": "451", "<a%b@other.example>": refused,
	} {
		if got := say(p, &pipeline.Session{}, path); !sameAnswer(got, want) {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if got := say(p, &pipeline.Session{Standing: pipeline.Authenticated}, "<joe@other.example>"); got != "joe@other.example" {
		t.Errorf("one who may send anywhere: %s", got)
	}
	s := &pipeline.Session{Peer: netip.MustParseAddrPort("192.0.2.1:25")}
	if _, _, err := p.Admit(context.Background(), s); reply.Of(err).Class != reply.Temporary {
		t.Errorf("Admit: %v", err)
	}
}

// FuzzRecipient: whatever a stranger writes goes to a domain that is accepted, or to the host itself, and holds no trick.
func FuzzRecipient(f *testing.F) {
	for _, a := range addresses {
		path, utf8 := strings.CutSuffix(a.path, " utf8")
		f.Add(path, utf8)
	}
	o := options(f)
	p := policy(f, o)
	f.Fuzz(func(t *testing.T, path string, utf8 bool) {
		r, err := wire.ParseRcpt(path, wire.UTF8, utf8)
		if err != nil {
			r.Address = path
		}
		out, _, err := p.Recipient(context.Background(), &pipeline.Session{}, "", r)
		if err != nil {
			if reply.Of(err).Class != reply.Permanent {
				t.Errorf("%q: %v", path, err)
			}
			return
		}
		domain := envelope.Domain(out.Address)
		more, _, _ := rules.MatchDomain(o.MoreHosts, domain)
		if !o.Accepts(domain) && domain != o.Hostname && more == "" {
			t.Errorf("%q goes to %q", path, out.Address)
		}
		local := wire.UnquoteLocal(envelope.Local(out.Address))
		if local == "" || strings.ContainsRune(local, '@') || strings.ContainsRune(strings.TrimSuffix(local, "%"), '%') || strings.LastIndexByte(local, '!') > 0 {
			t.Errorf("%q becomes %q", path, out.Address)
		}
		again, _, err := p.Recipient(context.Background(), &pipeline.Session{}, "", out)
		if domain != o.Hostname && (err != nil || again.Address != out.Address) && !strings.HasSuffix(out.Address, ".") {
			t.Errorf("%q becomes %q, and that %q, %v", path, out.Address, again.Address, err)
		}
	})
}

func BenchmarkRecipient(b *testing.B) {
	p := policy(b, options(b))
	s := &pipeline.Session{}
	for _, address := range []string{"joe@us.example", "joe@xn--bcher-kva.example"} {
		b.Run(address, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := p.Recipient(context.Background(), s, "", envelope.Recipient{Address: address}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
