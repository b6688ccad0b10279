package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestTLSOf(t *testing.T) {
	var m makes
	c, err := Load("testdata/good-full.toml", m.options())
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]string{
		"bank.example": "verified", "BANK.example": "verified", "sub.bank.example": "required", "a.gov.example": "verified",
		"a.b.gov.example": "verified", "gov.example": "required", "partner.example": "fingerprint", "other.example": "required", "": "required",
	} {
		if got := c.TLSOf(domain); got == nil || got.Level != want {
			t.Errorf("%q: %+v", domain, got)
		}
	}
	if c.TLSOf("bank.example").Roots() == nil || c.TLSOf("other.example").Roots() != nil || c.TLSOf("partner.example").SHA256()[0][10] != 0xaa {
		t.Error("not read")
	}
	c, err = Load("testdata/good-minimal.toml", m.options())
	if err != nil {
		t.Fatal(err)
	}
	if c.TLSOf("example.org") != nil || c.Outbound.EightBit != "convert" || c.Outbound.Messages != 100 {
		t.Errorf("%+v", c.Outbound)
	}
}

func parseOutbound(t *testing.T, text string) (*Config, error) {
	t.Helper()
	var m makes
	return Parse("testdata/x.toml", []byte("hostname = \"mx.example.org\"\ncontrol = \"\"\n[listen.queue]\nnext = \"./next\"\n"+text), m.options())
}

func TestWrongTLS(t *testing.T) {
	for text, want := range map[string]string{
		"[tls.bank]\nlevel = \"required\"":                                                             "tls.bank.domains is missing",
		"[tls.default]\ndomains = [\"a.test\"]":                                                        "for all domains that no other names",
		"[tls.x]\ndomains = [\"a b\"]":                                                                 "is no domain",
		"[tls.x]\ndomains = [\"a.test\"]\n[tls.y]\ndomains = [\"A.test\"]":                             "stands in another table",
		"[tls.default]\nlevel = \"sometimes\"":                                                         "level",
		"[tls.default]\nnames = [\"mx.test\"]":                                                         `tls.default.names is for level = "verified" only`,
		"[tls.default]\nlevel = \"verified\"\nnames = [\"m x\"]":                                       "is no host name",
		"[tls.default]\nlevel = \"verified\"\nca = \"nothing.pem\"":                                    "no such file",
		"[tls.default]\nlevel = \"verified\"\nca = \"good-minimal.toml\"":                              "holds no certificate",
		"[tls.default]\nlevel = \"fingerprint\"":                                                       "tls.default.fingerprints is missing",
		"[tls.default]\nlevel = \"fingerprint\"\nfingerprints = [\"00:11\"]":                           "is no SHA-256",
		"[outbound]\neight_bit = \"perhaps\"":                                                          "eight_bit",
		"[outbound]\nmessages = 0":                                                                     "messages",
		"[route]\n\"a.test\" = {to = \"b.test\", user = \"joe\"}":                                      "a login needs user, and password",
		"[route]\n\"a.test\" = {to = \"b.test\", password = \"x\"}":                                    "a login needs user, and password",
		"[route]\n\"a.test\" = {to = \"\", smtps = true}":                                              "smtps needs a host",
		"[route]\n\"a.test\" = {to = \"b.test\", user = \"j\", password_file = \"none\"}":              "no such file",
		"[route]\n\"a.test\" = {to = \"b\", user = \"j\", password = \"p\", password_file = \"next\"}": "not both",
	} {
		if _, err := parseOutbound(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestRoutesWithLogins(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("from a file\r\nmore\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := parseOutbound(t, `[route]
"a.test" = {to = "relay.test", smtps = true, user = "joe", password = "secret"}
"b.test" = {to = "relay.test:587", user = "joe", password_file = "`+file+`", login_in_clear = true}
"c.test" = {to = "relay.test:1465", smtps = true}
`)
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]Route{
		"a.test": {Hops: hops("smtps://relay.test"), User: "joe", Password: "secret"},
		"b.test": {Hops: hops("relay.test:587"), User: "joe", Password: "from a file", Clear: true},
		"c.test": {Hops: hops("smtps://relay.test:1465")},
	} {
		if got, ok := c.RouteOf(domain); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v", domain, got)
		}
	}
	for _, s := range c.Effective() {
		if strings.Contains(s.Value, "secret") || s.Key == "route.a.test" && !strings.Contains(s.Value, `user = "joe", password = "..."`) {
			t.Errorf("%+v", s)
		}
	}
}

// TestSmtproutesWithLogins is the syntaxes of the patches that have them.
func TestSmtproutesWithLogins(t *testing.T) {
	dir := t.TempDir()
	text := "a.test:relay.test:587|joe|pass word\nb.test:relay.test:587 joe secret\nc.test:relay.test|joe\nd.test:[192.0.2.1]:26\n:relay.test:587|ann|x|y\n"
	if err := os.WriteFile(filepath.Join(dir, "smtproutes"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var m makes
	c, err := Parse("testdata/x.toml", []byte("hostname = \"mx.example.org\"\ncontrol = \""+dir+"\"\n[listen.queue]\nnext = \"./next\"\n"), m.options())
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]Route{
		"a.test": {Hops: hops("relay.test:587"), User: "joe", Password: "pass word"},
		"b.test": {Hops: hops("relay.test:587"), User: "joe", Password: "secret"},
		"c.test": {Hops: hops("relay.test")},
		"d.test": {Hops: hops("192.0.2.1:26")},
		"e.test": {Hops: hops("relay.test:587"), User: "ann", Password: "x"},
	} {
		if got, ok := c.RouteOf(domain); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v", domain, got)
		}
	}
	var warned []string
	for _, w := range c.Warnings {
		warned = append(warned, w.Error())
	}
	all := strings.Join(warned, "\n")
	if !strings.Contains(all, "smtproutes:3: names no user and password") || !strings.Contains(all, "smtproutes:5: has more than") || strings.Contains(all, "secret") {
		t.Error(all)
	}
}

// TestOutboundTalk: how we speak to servers, from the file or qmail's.
func TestOutboundTalk(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"helohost": "out.example.org\n", "timeoutconnect": "60\n", "timeoutremote": "1200\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	parse := func(text string) (*Config, error) {
		var m makes
		return Parse("postern.toml", []byte(fmt.Sprintf("hostname = \"mx.example.org\"\ncontrol = %q\n[listen.queue]\nnext = \"discard\"\n", dir)+text), m.options())
	}
	c, err := parse("")
	if err != nil {
		t.Fatal(err)
	}
	if o := c.Outbound; o.Hello != "out.example.org" || o.Connect != time.Minute || o.Timeout != 20*time.Minute {
		t.Errorf("%+v", o)
	}
	if c, err = parse("[outbound]\nhello = \"[192.0.2.1]\"\nconnect_timeout = \"5s\"\ntimeout = \"1m\"\n"); err != nil {
		t.Fatal(err)
	}
	if o := c.Outbound; o.Hello != "[192.0.2.1]" || o.Connect != 5*time.Second || o.Timeout != time.Minute {
		t.Errorf("%+v", o)
	}
	for text, want := range map[string]string{
		"hello = \"two words\"":       "postern.toml:6",
		"wait = \"-1s\"":              "outbound.wait",
		"connect_timeout = \"-1s\"":   "outbound.connect_timeout",
		"timeout = \"soon\"":          "outbound.timeout",
		"hello = \"[no.address]\"":    "no host name",
		"tls_header = \"sometimes\"":  "tls_header",
		"connect_timeouts = \"3s\"\n": "connect_timeout",
	} {
		if _, err := parse("[outbound]\n" + text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
