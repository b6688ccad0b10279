package main

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/foxcpp/go-mockdns"

	"github.com/postern-mta/postern/filters/dkim"
)

// dkimZone publishes the keys of a folder.
func dkimZone(t *testing.T, dir string) map[string]mockdns.Zone {
	t.Helper()
	keys, err := dkim.NewKeys([]string{dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	found, err := keys.For("example.org")
	if err != nil || len(found) != 2 {
		t.Fatal(found, err)
	}
	zones := map[string]mockdns.Zone{}
	for _, k := range found {
		text, err := dkim.Record(k.Signer.Public())
		if err != nil {
			t.Fatal(err)
		}
		zones[k.Query()+"."] = mockdns.Zone{TXT: []string{text}}
	}
	return zones
}

// TestDKIMAgainstDNS runs the commands with a DNS server that is right, wrong,
// empty and away.
func TestDKIMAgainstDNS(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	postern := func(stdin string, args ...string) (string, int) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		c := rootCommand()
		c.SetArgs(args)
		c.SetIn(strings.NewReader(stdin))
		c.SetOut(&stdout)
		c.SetErr(&stderr)
		code := exitOf(c.ExecuteContext(context.Background()))
		return stdout.String() + stderr.String(), code
	}
	if out, code := postern("", "dkim", "keygen", "example.org", "--keys", dir, "--selector", "s"); code != 0 {
		t.Fatal(out)
	}
	zones := dkimZone(t, dir)
	signed, code := postern("From: joe@example.org\nSubject: x\n\nHello.\n", "dkim", "sign", "--keys", dir)
	if code != 0 {
		t.Fatal(signed)
	}
	ed, rsa := "s-ed25519._domainkey.example.org.", "s-rsa._domainkey.example.org."
	for _, c := range []struct {
		name                string
		zones               map[string]mockdns.Zone
		check, verify       int
		checkSays, signSays string
	}{
		{"right", zones, 0, 0, "s-rsa._domainkey.example.org: published\n", "pass d=example.org s=s-rsa"},
		{"one is missing", map[string]mockdns.Zone{rsa: zones[rsa]}, 1, 0, "s-ed25519._domainkey.example.org: wrong: no key\n", "permerror d=example.org s=s-ed25519 a=ed25519-sha256 (no key)"},
		{"none", nil, 1, 1, "wrong: no key", "permerror"},
		{"mixed up", map[string]mockdns.Zone{rsa: zones[ed], ed: zones[ed]}, 1, 0, "s-rsa._domainkey.example.org: wrong: another key", "another kind"},
		{"revoked", map[string]mockdns.Zone{rsa: {TXT: []string{"v=DKIM1; p="}}, ed: zones[ed]}, 1, 0, "wrong: key revoked", "(key revoked)"},
		{"testing", map[string]mockdns.Zone{rsa: {TXT: []string{zones[rsa].TXT[0] + "; t=y"}}, ed: zones[ed]}, 1, 0, "wrong: the record says t=y", "pass"},
		{"away", map[string]mockdns.Zone{rsa: {Err: &net.DNSError{Err: "away", IsTemporary: true}}, ed: {Err: &net.DNSError{Err: "away", IsTemporary: true}}}, 75, 75, "cannot tell", "temperror"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server, err := mockdns.NewServer(c.zones, false)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			at := server.LocalAddr().String()
			if out, code := postern("", "dkim", "check", "example.org", "--keys", dir, "--dns", at); code != c.check || !strings.Contains(out, c.checkSays) {
				t.Errorf("check: %d, %s", code, out)
			}
			if out, code := postern(signed, "dkim", "verify", "--dns", at); code != c.verify || !strings.Contains(out, c.signSays) {
				t.Errorf("verify: %d, %s", code, out)
			}
		})
	}
}

// exitOf is the exit code that run makes of an error.
func exitOf(err error) int {
	switch code, ok := err.(exitCode); {
	case err == nil:
		return 0
	case ok:
		return int(code)
	}
	return 1
}
