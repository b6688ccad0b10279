package envelope

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/postern-mta/postern/pipeline/reply"
)

func TestRead(t *testing.T) {
	long, longest := strings.Repeat("a", MaxAddress+1), strings.Repeat("a", MaxAddress)
	for _, c := range []struct {
		name, in string
		want     Envelope
		fails    reply.Reply
	}{
		{name: "one", in: "Fa@b\x00Tc@d\x00\x00", want: To("a@b", "c@d")},
		{name: "empty sender", in: "F\x00Tc@d\x00\x00", want: To("", "c@d")},
		{name: "double bounce", in: "F#@[]\x00Tc@d\x00\x00", want: To("#@[]", "c@d")},
		{name: "VERP", in: "Fo-@h-@[]\x00Tc@d\x00\x00", want: To("o-@h-@[]", "c@d")},
		{name: "no recipients", in: "Fa@b\x00\x00", want: To("a@b")},
		{name: "empty recipient", in: "Fa@b\x00T\x00\x00", want: To("a@b", "")},
		{name: "bytes after the end", in: "Fa@b\x00Tc@d\x00\x00Tmore\x00", want: To("a@b", "c@d")},
		{name: "8 bit", in: "F\xe4@b\x00T\xff\x80@d\x00\x00", want: To("\xe4@b", "\xff\x80@d")},
		{name: "Q record", in: "Fa@b\x00Tc@d\x00Q", want: func() Envelope { e := To("a@b", "c@d"); e.NoScan = true; return e }()},
		{name: "longest", in: "F" + longest + "\x00T" + longest + "\x00\x00", want: To(longest, longest)},
		{name: "sender too long", in: "F" + long + "\x00Tc@d\x00\x00", fails: reply.AddressTooLong},
		{name: "recipient too long", in: "Fa\x00T" + long + "\x00\x00", fails: reply.AddressTooLong},
		{name: "no end", in: "Fa@b\x00Tc@d", fails: reply.ReadError},
		{name: "no final NUL", in: "Fa@b\x00Tc@d\x00", fails: reply.ReadError},
		{name: "empty", in: "", fails: reply.ReadError},
		{name: "F alone", in: "F", fails: reply.ReadError},
		{name: "bad letter", in: "Xa\x00", fails: reply.BadEnvelope},
		{name: "only NUL", in: "\x00", fails: reply.BadEnvelope},
		{name: "bad record", in: "Fa\x00Xb\x00\x00", fails: reply.BadEnvelope},
		{name: "newline", in: "Fa@b\nT root@c\x00Td\x00\x00", fails: reply.BadAddress},
		{name: "escape", in: "Fa\x00Tb\x1b[0m\x00\x00", fails: reply.BadAddress},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Read(iotest.OneByteReader(strings.NewReader(c.in)), Limits{})
			if c.fails != (reply.Reply{}) {
				if reply.Of(err) != c.fails || !reflect.DeepEqual(got, Envelope{}) {
					t.Fatalf("%v %v", got, err)
				}
				return
			}
			if err != nil || !same(got, c.want) {
				t.Fatalf("%+v %v", got, err)
			}
		})
	}
}

func same(a, b Envelope) bool {
	if len(a.Recipients) == 0 && len(b.Recipients) == 0 {
		a.Recipients, b.Recipients = nil, nil
	}
	return reflect.DeepEqual(a, b)
}

func TestReadLimits(t *testing.T) {
	in := "Fa@b\x00" + strings.Repeat("Tc@d\x00", 11) + "\x00"
	if _, err := Read(strings.NewReader(in), Limits{Recipients: 10}); reply.Of(err) != reply.TooManyRecipients {
		t.Error(err)
	}
	if e, err := Read(strings.NewReader(in), Limits{Recipients: 11}); err != nil || len(e.Recipients) != 11 {
		t.Error(e, err)
	}
	if _, err := Read(strings.NewReader(in), Limits{Bytes: 20}); reply.Of(err) != reply.TooManyRecipients {
		t.Error(err)
	}
	broken := iotest.ErrReader(errors.New("EIO"))
	if _, err := Read(broken, Limits{}); reply.Of(err) != reply.ReadError || !strings.Contains(err.Error(), "EIO") {
		t.Error(err)
	}
}

func TestAppendRefuses(t *testing.T) {
	for _, e := range []Envelope{To("a\x00Tb"), To("a", "b\x00"), To(strings.Repeat("x", MaxAddress+1))} {
		if b, err := Append([]byte("kept"), e); err == nil || string(b) != "kept" {
			t.Errorf("%q %v", b, err)
		}
	}
}

func TestAddressParts(t *testing.T) {
	for _, c := range []struct{ address, local, domain string }{
		{"a@Example.ORG.", "a", "example.org"},
		{`"a@b"@c`, `"a@b"`, "c"},
		{"nodomain", "nodomain", ""},
		{"", "", ""},
		{"a@\xc4B", "a", "\xc4b"},
	} {
		if Local(c.address) != c.local || Domain(c.address) != c.domain {
			t.Errorf("%q: %q %q", c.address, Local(c.address), Domain(c.address))
		}
	}
}

func TestVERP(t *testing.T) {
	for _, c := range []struct{ sender, recipient, verp, bounce string }{
		{"owner-@h-@[]", "box@dom", "owner-box=dom@h", "owner-@h"},
		{"a@b", "box@dom", "a@b", "a@b"},
		{"#@[]", "box@dom", "#@[]", "#@[]"},
		{"", "box@dom", "", ""},
		{"owner-@h-@[]", "box", "owner-@h-@[]", "owner-@h"},
	} {
		if got := VERP(c.sender, c.recipient); got != c.verp {
			t.Errorf("VERP(%q, %q) = %q", c.sender, c.recipient, got)
		}
		if got := BounceAddress(c.sender); got != c.bounce {
			t.Errorf("BounceAddress(%q) = %q", c.sender, got)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("Fa@b\x00Tc@d\x00\x00"))
	f.Add([]byte("F\x00T\x00Q"))
	f.Add([]byte("Fa@b\x00Tc@d"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Read(bytes.NewReader(b), Limits{Recipients: 100})
		if err != nil {
			var known *reply.Error
			if !errors.As(err, &known) {
				t.Fatalf("%v has no reply", err)
			}
			return
		}
		out, err := Append(nil, e)
		if err != nil || !bytes.HasPrefix(b, out) {
			t.Fatalf("%q was read, %q written: %v", b, out, err)
		}
		again, err := Read(bytes.NewReader(out), Limits{Recipients: 100})
		if err != nil || !same(again, e) {
			t.Fatalf("%+v %v, want %+v", again, err, e)
		}
	})
}

func BenchmarkRead100000(b *testing.B) {
	in := []byte("Fa@b\x00" + strings.Repeat("Tsomebody.or.other@example.org\x00", 100_000) + "\x00")
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Read(bytes.NewReader(in), Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}
