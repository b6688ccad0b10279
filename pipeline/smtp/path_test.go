package smtp_test

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/smtp"
)

func TestParsePath(t *testing.T) {
	for _, c := range []struct {
		in, address, rest string
		err               error
	}{
		{in: "<a@b>", address: "a@b"},
		{in: "<>", address: ""},
		{in: "<a@b> SIZE=1", address: "a@b", rest: " SIZE=1"},
		{in: "<postmaster>", address: "postmaster"},
		{in: "<Post.Master@EXAMPLE.org>", address: "Post.Master@EXAMPLE.org"},
		{in: `<"a b"@c>`, address: `"a b"@c`},
		{in: `<"a\"b>\\"@c>`, address: `"a\"b>\\"@c`},
		{in: `<"a@b"@c>`, address: `"a@b"@c`},
		{in: `<""@b>`, address: `""@b`},
		{in: `<"a@b">`, err: smtp.ErrAddress},
		{in: "<a..b.@c>", address: "a..b.@c"},
		{in: "<.a@c>", address: ".a@c"},
		{in: "<a@[192.0.2.1]>", address: "a@[192.0.2.1]"},
		{in: "<a@[IPv6:2001:db8::1]>", address: "a@[IPv6:2001:db8::1]"},
		{in: "<@x,@y.z:a@b>", address: "a@b"},
		{in: "<@x:a@b>", address: "a@b"},
		{in: "<a+b=c/d!e%f@g_h.i->", address: "a+b=c/d!e%f@g_h.i-"},
		{in: "<jörg@bücher.example>", address: "jörg@bücher.example"},
		{in: "<-oQ/tmp@x>", address: "-oQ/tmp@x"},
		{in: "<a`b`@x>", address: "a`b`@x"},
		{in: "<|/bin/sh@x>", address: "|/bin/sh@x"},
		{in: `<"|/bin/sh"@x>`, address: `"|/bin/sh"@x`},
		{in: "<a@b.>", address: "a@b."},
		{in: "", err: smtp.ErrAddress},
		{in: "a@b", err: smtp.ErrAddress},
		{in: "<a@b", err: smtp.ErrAddress},
		{in: "<a b@c>", err: smtp.ErrAddress},
		{in: "<a@b c>", err: smtp.ErrAddress},
		{in: "<@b>", err: smtp.ErrAddress},
		{in: "<a@>", err: smtp.ErrAddress},
		{in: "<a@b@c>", err: smtp.ErrAddress},
		{in: "<a@.b>", err: smtp.ErrAddress},
		{in: "<a@b..c>", err: smtp.ErrAddress},
		{in: "<a@[]>", err: smtp.ErrAddress},
		{in: "<a@[192.0.2.1>", err: smtp.ErrAddress},
		{in: "<a@[" + strings.Repeat("a", 262144) + "]>", err: smtp.ErrAddress},
		{in: `<"a@b>`, err: smtp.ErrAddress},
		{in: `<"a" b@c>`, err: smtp.ErrAddress},
		{in: `<a"b"@c>`, err: smtp.ErrAddress},
		{in: "<;sleep 66;>", err: smtp.ErrAddress},
		{in: "<$(id)@x>", err: smtp.ErrAddress},
		{in: "<a\nT root@c>", err: smtp.ErrAddress},
		{in: "<a\x00@b>", err: smtp.ErrAddress},
		{in: "<\"a\rb\"@c>", err: smtp.ErrAddress},
		{in: "<\"a\\\nb\"@c>", err: smtp.ErrAddress},
		{in: "<a@b\x7f>", err: smtp.ErrAddress},
		{in: "<\xff@b>", err: smtp.ErrAddress},
		{in: "<\u0085@b>", err: smtp.ErrAddress},
		{in: "<<a@b>>", err: smtp.ErrAddress},
		{in: "<@x a@b>", err: smtp.ErrAddress},
		{in: "<@x,:a@b>", err: smtp.ErrAddress},
		{in: "<@x:>", err: smtp.ErrAddress},
		{in: "<" + strings.Repeat("a", 1001) + "@b>", err: smtp.ErrAddress},
		{in: "<a@" + strings.Repeat("b", 256) + ">", err: smtp.ErrAddress},
	} {
		address, rest, err := smtp.ParsePath(c.in, true)
		if address != c.address || rest != c.rest || !errors.Is(err, c.err) {
			t.Errorf("%.60q: %q %q %v", c.in, address, rest, err)
		}
	}
	if _, _, err := smtp.ParsePath("<jörg@b>", false); !errors.Is(err, smtp.ErrUTF8) {
		t.Error(err)
	}
}

func TestFormatPath(t *testing.T) {
	for in, want := range map[string]string{
		"": "<>", "a@b": "<a@b>", "postmaster": "<postmaster>", "a b@c": `<"a b"@c>`, `a"b\c@d`: `<"a\"b\\c"@d>`, `"a b"@c`: `<"a b"@c>`,
		"a@b@c": `<"a@b"@c>`, `"a>b"@c`: `<"a>b"@c>`, "a@[192.0.2.1]": "<a@[192.0.2.1]>", "(x)@y": `<"(x)"@y>`,
		"a>b@c": "", "a<b@c": "", "a@b>": "", "a@b ": "", "@b": "", "a@": "", "a\r@b": "", "a\n@b": "", "a\x00@b": "", "a\x7f@b": "",
		"a@b\r\nRCPT TO:<x>": "", "a@b> SIZE=1": "", `"a@b`: `<"\"a"@b>`, "ö@b": "", "a@ö": "", "a b": "", `"a b"`: "",
	} {
		got, err := smtp.FormatPath(in, false)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v, want %q", in, got, err, want)
		}
	}
	if got, err := smtp.FormatPath("ö ö@ü", true); got != `<"ö ö"@ü>` || err != nil {
		t.Error(got, err)
	}
	if got := smtp.UnquoteLocal(`"a\"b c\\"`); got != `a"b c\` {
		t.Error(got)
	}
	if smtp.UnquoteLocal("plain") != "plain" || smtp.UnquoteLocal(`"`) != `"` || smtp.UnquoteLocal(`"a"`) != "a" {
		t.Error("UnquoteLocal")
	}
}

func TestLiteral(t *testing.T) {
	for in, want := range map[string]string{
		"[192.0.2.1]": "192.0.2.1", "[IPv6:2001:db8::1]": "2001:db8::1", "[ipv6:::1]": "::1", "192.0.2.1": "", "[2001:db8::1]": "",
		"[IPv6:192.0.2.1]": "", "[IPv6:fe80::1%eth0]": "", "[x]": "", "[]": "", "[": "", "": "",
	} {
		a, ok := smtp.Literal(in)
		if ok != (want != "") || ok && a != netip.MustParseAddr(want) {
			t.Errorf("%q: %v %v", in, a, ok)
		}
	}
}

func TestXtext(t *testing.T) {
	if got := smtp.EncodeXtext("a+b=c d\n\xff"); got != "a+2Bb+3Dc+20d+0A+FF" {
		t.Error(got)
	}
	for _, in := range []string{"+", "+2", "+2b", "+GG", "a=b", "a b", "\x7f", "\xff"} {
		if _, err := smtp.DecodeXtext(in); err == nil {
			t.Errorf("%q is not xtext", in)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOf(rapid.Byte()).Draw(t, "s"))
		if back, err := smtp.DecodeXtext(smtp.EncodeXtext(s)); back != s || err != nil {
			t.Fatalf("%q: %q %v", s, back, err)
		}
	})
}

const everything = smtp.EightBit | smtp.SizeLimit | smtp.DSN | smtp.UTF8 | smtp.RequireTLS | smtp.Auth

func TestParseMail(t *testing.T) {
	for _, c := range []struct {
		in      string
		offered smtp.Extensions
		want    smtp.Mail
		fails   string
	}{
		{in: "<a@b>", want: smtp.Mail{Sender: "a@b"}},
		{in: " <a@b>", want: smtp.Mail{Sender: "a@b"}},
		{in: "<>", want: smtp.Mail{}},
		{
			in:      "<ö@b> SIZE=12345 body=8bitmime SMTPUTF8 RequireTLS RET=hdrs ENVID=a+2Bb AUTH=<>",
			offered: everything,
			want:    smtp.Mail{Sender: "ö@b", Size: 12345, EightBit: true, UTF8: true, RequireTLS: true, Ret: "HDRS", EnvID: "a+2Bb", Auth: "<>"},
		},
		{in: "<a@b> SIZE=99999999999999999999", offered: everything, want: smtp.Mail{Sender: "a@b", Size: 1<<63 - 1}},
		{in: "<a@b> BODY=7BIT AUTH=x@y", offered: everything, want: smtp.Mail{Sender: "a@b", Auth: "x@y"}},
		{in: "<a@b> SIZE=1", fails: "555 5.5.4"},
		{in: "<a@b> FOO=1", offered: everything, fails: "555 5.5.4"},
		{in: "<a@b> SIZE=", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> SIZE", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> SIZE=-1", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> SIZE=+1", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> SIZE=1 SIZE=2", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> BODY=BINARYMIME", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> SMTPUTF8=1", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> RET=ALL", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> ENVID=a+0Ab", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> ENVID=a=b", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> ENVID=" + strings.Repeat("x", 101), offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> AUTH=a+0Db", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b>SIZE=1", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> =1", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> S\x01=1", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> ENVID=\x01", offered: everything, fails: "501 5.5.4"},
		{in: "<a@b> " + strings.Repeat("X", 33) + "=1", offered: everything, fails: "555 5.5.4"},
		{in: "<ö@b>", offered: everything, fails: "553 5.6.7"},
		{in: "<ö@b> SMTPUTF8", fails: "553 5.6.7"},
		{in: "a@b", fails: "501 5.1.7"},
		{in: "<a@b\x00>", fails: "501 5.1.7"},
	} {
		got, err := smtp.ParseMail(c.in, c.offered)
		if c.fails == "" && err != nil || got != c.want || c.fails != "" && !strings.HasPrefix(reply.Of(err).SMTP(), c.fails) {
			t.Errorf("%.60q: %+v %v (%v)", c.in, got, err, reply.Of(err))
		}
	}
}

func TestParseRcpt(t *testing.T) {
	for _, c := range []struct {
		in    string
		want  envelope.Recipient
		fails string
	}{
		{in: "<a@b>", want: envelope.Recipient{Address: "a@b"}},
		{in: "<postmaster>", want: envelope.Recipient{Address: "postmaster"}},
		{
			in:   "<a@b> NOTIFY=SUCCESS,failure ORCPT=rfc822;c+2Bd@e",
			want: envelope.Recipient{Address: "a@b", DSN: &envelope.DSN{Notify: envelope.NotifySuccess | envelope.NotifyFailure, ORcpt: "rfc822;c+2Bd@e"}},
		},
		{in: "<a@b> NOTIFY=NEVER", want: envelope.Recipient{Address: "a@b", DSN: &envelope.DSN{Notify: envelope.NotifyNever}}},
		{in: "<a@b> NOTIFY=NEVER,DELAY", fails: "501 5.5.4"},
		{in: "<a@b> NOTIFY=x", fails: "501 5.5.4"},
		{in: "<a@b> NOTIFY", fails: "501 5.5.4"},
		{in: "<a@b> ORCPT=c@d", fails: "501 5.5.4"},
		{in: "<a@b> ORCPT=rfc822;", fails: "501 5.5.4"},
		{in: "<a@b> ORCPT=;x", fails: "501 5.5.4"},
		{in: "<a@b> ORCPT=rfc822;a+0Ab", fails: "501 5.5.4"},
		{in: "<a@b> ORCPT=rfc822;a+00b", fails: "501 5.5.4"},
		{in: "<a@b> ORCPT=rfc822;" + strings.Repeat("x", 500), fails: "501 5.5.4"},
		{in: "<a@b> SIZE=1", fails: "555 5.5.4"},
		{in: "<>", fails: "501 5.1.3"},
		{in: "<ö@b>", fails: "553 5.6.7"},
	} {
		got, err := smtp.ParseRcpt(c.in, everything, false)
		if c.fails == "" && err != nil || !reflect.DeepEqual(got, c.want) || c.fails != "" && !strings.HasPrefix(reply.Of(err).SMTP(), c.fails) {
			t.Errorf("%.60q: %+v %v (%v)", c.in, got, err, reply.Of(err))
		}
	}
}

func TestParseCapabilities(t *testing.T) {
	c := smtp.ParseCapabilities(smtp.Reply{Code: 250, Text: "PIPELINING is the host's name\nsize 1000\n8BITMIME\nAUTH=LOGIN\nAUTH PLAIN xoauth2\nLIMITS MAILMAX=10 RCPTMAX=20 RCPTDOMAINMAX=1 X=y\nSTARTTLS\n\nX-ODD stuff"})
	want := smtp.Capabilities{
		Extensions: smtp.SizeLimit | smtp.EightBit | smtp.Auth | smtp.Limits | smtp.StartTLS, Size: 1000, MailMax: 10, RcptMax: 20, RcptDomainMax: 1,
		Auth: []string{"LOGIN", "PLAIN", "XOAUTH2"},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v", c)
	}
	if got := c.Extensions.String(); got != "8BITMIME SIZE STARTTLS LIMITS AUTH" {
		t.Error(got)
	}
	many := smtp.ParseCapabilities(smtp.Reply{Code: 250, Text: "x" + strings.Repeat("\nAUTH"+strings.Repeat(" PLAIN", 20), 90)})
	if len(many.Auth) != 30 {
		t.Errorf("%d mechanisms are kept", len(many.Auth))
	}
	for _, size := range []string{"SIZE", "SIZE 0", "SIZE -5", "SIZE x", "SIZE 99999999999999999999"} {
		if c := smtp.ParseCapabilities(smtp.Reply{Code: 250, Text: "x\n" + size}); c.Size != 0 || !c.Extensions.Has(smtp.SizeLimit) {
			t.Errorf("%q: %+v", size, c)
		}
	}
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{"<a@b> X", `<"a\"b"@c>`, "<@x,@y:a@[IPv6:::1]>", "<>", "<ö@ü>", "a>b@c", "a b@c", "a@b\r\n"} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, s string, utf8 bool) {
		if address, rest, err := smtp.ParsePath(s, utf8); err == nil {
			if !strings.HasSuffix(s, rest) || !envelope.ValidBytes(address) || len(address) > envelope.MaxAddress {
				t.Fatalf("%q: %q %q", s, address, rest)
			}
			if out, err := smtp.FormatPath(address, utf8); err != nil || out != "<"+address+">" {
				t.Fatalf("%q was read, %q written: %v", address, out, err)
			}
		}
		out, err := smtp.FormatPath(s, utf8)
		if err != nil {
			return
		}
		address, rest, err := smtp.ParsePath(out, utf8)
		if err != nil || rest != "" || !envelope.ValidBytes(out) {
			t.Fatalf("%q goes out as %q: %q %v", s, out, rest, err)
		}
		if address != s && smtp.UnquoteLocal(envelope.Local(address)) != envelope.Local(s) {
			t.Fatalf("%q goes out as %q, which is another address", s, out)
		}
	})
}

func FuzzParams(f *testing.F) {
	for _, s := range []string{"<a@b> SIZE=1 BODY=8BITMIME", "<a@b> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb", "<a@b> ENVID=x RET=FULL AUTH=<>", "<a@b>  X"} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, s string, utf8 bool) {
		m, err := smtp.ParseMail(s, everything)
		if r := reply.Of(err); err != nil && r.Class != reply.Permanent {
			t.Fatalf("%q: %v", s, r)
		}
		if err == nil && (m.Size < 0 || !envelope.ValidBytes(m.Sender+m.EnvID+m.Auth)) {
			t.Fatalf("%q: %+v", s, m)
		}
		rcpt, err := smtp.ParseRcpt(s, everything, utf8)
		if r := reply.Of(err); err != nil && r.Class != reply.Permanent {
			t.Fatalf("%q: %v", s, r)
		}
		if err == nil && (rcpt.Address == "" || !envelope.ValidBytes(rcpt.Address) || rcpt.DSN != nil && !envelope.ValidBytes(rcpt.DSN.ORcpt)) {
			t.Fatalf("%q: %+v", s, rcpt)
		}
	})
}
