package smtp

import (
	"errors"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/envelope"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// FuzzAddress reads what may be a path with the parser and with the reference's
// expressions, which must agree, and looks at what the rules of who may send
// where rely on: that an address is one address, with one domain.
func FuzzAddress(f *testing.F) {
	for _, h := range hostileAddresses {
		f.Add(h.path, true)
	}
	for _, s := range []string{
		"<>", "<a@b> SIZE=1", "<postmaster>", `<"a@b"@c>`, `<"a@b">`, "<@x,@y.z:a@b>", "<@x:>", "<@x:postmaster>", "<a%c@b>", "<a!b@c>", "<b!a>", `<"a\"b>\\"@c.>`, "<a@[IPv6:2001:db8::1]>", "<ö@ü.example>",
		"<a@b@c>", "<a@b.>", "<a@.b>", "<a@[]>", "<\xff@b>", "<a@b\x85>", "<a\u0085@b>", "a@b", "<a@b", `<""@b>`, `<"a" @b>`, "<@:a@b>", "<a@[" + strings.Repeat("a", 260) + "]>", "<" + strings.Repeat("a", 1001) + "@b>", "<a@" + strings.Repeat("b.", 130) + ">",
	} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, s string, utf8 bool) {
		address, rest, err := wire.ParsePath(s, utf8)
		if err != nil && !errors.Is(err, wire.ErrAddress) && !errors.Is(err, wire.ErrUTF8) {
			t.Fatalf("%q: %v", s, err)
		}
		want, params, ok := path(s)
		ok = ok && strings.HasPrefix(s, "<") && (utf8 || isPlain(want))
		if ok != (err == nil) || ok && (address != want || rest != params) {
			t.Fatalf("%q: the parser has %q %q %v, the reference %q %q %v", s, address, rest, err, want, params, ok)
		}
		if err == nil {
			oneAddress(t, address, utf8)
		}
		// As it is written in a command of ours, whatever it is.
		out, err := wire.FormatPath(s, utf8)
		if err != nil {
			return
		}
		if strings.ContainsAny(out, "\r\n\x00") || !utf8 && !isPlain(out) {
			t.Fatalf("%q is written as %q", s, out)
		}
		back, rest, err := wire.ParsePath(out, utf8)
		if err != nil || rest != "" || envelope.Domain(back) != envelope.Domain(s) {
			t.Fatalf("%q is written as %q and read as %q %q: %v", s, out, back, rest, err)
		}
	})
}

// oneAddress looks at an address that was taken.
func oneAddress(t *testing.T, address string, utf8 bool) {
	t.Helper()
	if !envelope.ValidBytes(address) || len(address) > envelope.MaxAddress || !utf8 && !isPlain(address) {
		t.Fatalf("%q was taken", address)
	}
	if out, err := wire.FormatPath(address, utf8); err != nil || out != "<"+address+">" {
		t.Fatalf("%q is written as %q: %v", address, out, err)
	}
	record, err := envelope.Append(nil, envelope.To(address, address))
	if err != nil {
		t.Fatal(err)
	}
	e, err := envelope.Read(strings.NewReader(string(record)), envelope.Limits{})
	if err != nil || e.Sender != address || len(e.Recipients) != 1 || e.Recipients[0].Address != address {
		t.Fatalf("%q is %q in an envelope, and then %+v: %v", address, record, e, err)
	}
	local, domain := envelope.Local(address), envelope.Domain(address)
	quoted := strings.HasPrefix(local, `"`)
	switch {
	case strings.ContainsAny(domain, "@%!\"\\<>(), ;") || domain == "" && strings.Contains(address, "@"):
		t.Fatalf("the domain of %q is %q", address, domain)
	case quoted != strings.HasSuffix(local, `"`) || quoted && domain == "":
		t.Fatalf("the local part of %q is %q", address, local)
	case !quoted && strings.ContainsAny(local, "@\"\\<>(), ;"):
		t.Fatalf("%q is more than one address", address)
	}
}
