package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/queue/limit"
)

// shownLimits are limits with where they come from.
func shownLimits(l Limited) string {
	b := l.Bounds
	values := []string{fmt.Sprint(b.Connections), b.NewConnections.String(), b.Messages.String(), fmt.Sprint(b.MessagesEach), fmt.Sprint(b.RecipientsEach)}
	var all []string
	for i, k := range boundKeys {
		if from := l.From(k.what); from != "" {
			all = append(all, values[i]+" ("+from+")")
		} else if values[i] != "0" && values[i] != "" {
			all = append(all, values[i]+" from nowhere")
		}
	}
	return strings.Join(all, ", ")
}

const siteDefaults = "20 (default), 100/min (default), 100/s (default), 100 (default), 1000 (default)"

func TestEffectiveLimits(t *testing.T) {
	for _, test := range []struct {
		name, text string
		of         func(*Config) Limited
		want       string
	}{
		{"nothing is written", "", func(c *Config) Limited { return c.SiteLimits(nil) }, siteDefaults},
		{
			"a default for all, key by key", "[site.default]\nconnections = 3\nmessage_rate = \"none\"\n",
			func(c *Config) Limited { return c.SiteLimits(nil) },
			"3 (testdata/parsed.toml:4), 100/min (default), none (testdata/parsed.toml:5), 100 (default), 1000 (default)",
		},
		{
			"the older name", "[queue]\ndomain = 7\n", func(c *Config) Limited { return c.SiteLimits(nil) },
			"7 (testdata/parsed.toml:4), 100/min (default), 100/s (default), 100 (default), 1000 (default)",
		},
		{
			"a site in a group may have what the group may", "[site.big]\nmx = [\".big.example\"]\nconnections = 50\n",
			func(c *Config) Limited { return c.SiteLimits(c.GroupsOfHosts([]string{"mx1.big.example"})) },
			"50 (testdata/parsed.toml:5), 100/min (default), 100/s (default), 100 (default), 1000 (default)",
		},
		{
			"the group itself", "[site.big]\nmx = [\".big.example\"]\nconnections = 50\n",
			func(c *Config) Limited { return c.GroupLimits("big") }, "50 (testdata/parsed.toml:5)",
		},
		{
			"a shipped provider", "", func(c *Config) Limited { return c.ProviderLimits("google") },
			"5 (shipped table, provider google), 50 (shipped table, provider google)",
		},
		{
			"a shipped provider, a field at a time", "[provider.google]\nconnections = 9\n",
			func(c *Config) Limited { return c.ProviderLimits("google") },
			"9 (testdata/parsed.toml:4), 50 (shipped table, provider google)",
		},
		{
			"a shipped provider without a limit", "[provider.google]\nconnections = -1\nmessages_per_connection = \"none\"\n",
			func(c *Config) Limited { return c.ProviderLimits("google") },
			"-1 (testdata/parsed.toml:4), -1 (testdata/parsed.toml:5)",
		},
		{"an unknown provider", "", func(c *Config) Limited { return c.ProviderLimits("nobody.example") }, ""},
		{"an address", "", func(c *Config) Limited { return c.AddressLimits(nil) }, "20 (default)"},
		{
			"an address in a group", "[site.net]\naddresses = [\"192.0.2.0/24\"]\nconnections = 2\n",
			func(c *Config) Limited { return c.AddressLimits(c.GroupsOfAddressName("192.0.2.9")) }, "2 (testdata/parsed.toml:5)",
		},
		{
			"the source", "[source.default]\nconnection_rate = \"10/s\"\n",
			func(c *Config) Limited { return c.SourceLimits("default") }, "10/s (testdata/parsed.toml:4)",
		},
	} {
		c, err := parse(t, withNext+test.text, nil)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got := shownLimits(test.of(c)); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

func TestGroupsOfLimits(t *testing.T) {
	c, err := parse(t, withNext+`
[site.a]
domains     = ["example.org", ".example.org", "A.example.net"]
connections = 1
[site.b]
domains     = [".deep.example.org"]
mx          = ["MX.example.com", ".hosts.example"]
addresses   = ["192.0.2.0/25", "2001:db8:1::/48"]
connections = 1
[site.c]
mx          = [".hosts.example"]
addresses   = ["192.0.2.0/24"]
connections = 1
[provider.ours]
match       = ["Ours.example"]
[provider.google]
match       = [".google.example"]
[address.default]
ipv4_prefix = 28
`, nil)
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]string{
		"example.org": "a", "Sub.Example.org": "a", "x.deep.example.org": "b", "deep.example.org": "a", "a.example.net": "a", "b.a.example.net": "", "org": "",
	} {
		if got := c.GroupOf(domain); got != want {
			t.Errorf("%s is in %q, want %q", domain, got, want)
		}
	}
	for hosts, want := range map[string][]string{
		"mx.example.com": {"b"}, "x.mx.example.com": nil, "other.example backup.hosts.example": {"b", "c"}, "hosts.example": nil, "": nil,
	} {
		if got := c.GroupsOfHosts(strings.Fields(hosts)); !slices.Equal(got, want) {
			t.Errorf("hosts %s are in %q, want %q", hosts, got, want)
		}
	}
	for address, want := range map[string]struct {
		groups []string
		name   string
	}{
		"192.0.2.17":         {[]string{"b", "c"}, "192.0.2.16/28"},
		"::ffff:192.0.2.200": {[]string{"c"}, "192.0.2.192/28"},
		"2001:db8:1:2::5":    {[]string{"b"}, "2001:db8:1:2::/64"},
		"198.51.100.1":       {nil, "198.51.100.0/28"},
	} {
		a := netip.MustParseAddr(address)
		if got, name := c.GroupsOfAddress(a), c.AddressName(a); !slices.Equal(got, want.groups) || name != want.name || !slices.Equal(c.GroupsOfAddressName(name), want.groups) {
			t.Errorf("%s is %s in %q, want %+v", address, name, got, want)
		}
	}
	for hosts, want := range map[string]string{
		"mx.ours.example": "ours", "ours.example": "ours", "mx.google.example": "google", "aspmx.l.google.com": "google.com", "contoso.mail.protection.outlook.com": "office365",
	} {
		if got := limit.ProviderOf(c.Providers(), []string{hosts}); got != want {
			t.Errorf("%s is of %q, want %q", hosts, got, want)
		}
	}
	minimal, err := parse(t, withNext, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := minimal.AddressName(netip.MustParseAddr("192.0.2.17")); got != "192.0.2.17" {
		t.Errorf("an address without a prefix is %s", got)
	}
}

// TestSupplementaryChannels reads the files of a qmail with more channels than
// two.
func TestSupplementaryChannels(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"me": "mx.example.org\n", "suppls0": "# slow ones\nSlow.example\nother.example\n", "concurrencysuppl0": "3\n",
		"suppls1": "slow.example\nthird.example\n", "suppls2": "held.example\nno domain\n", "concurrencysuppl2": "0\n", "suppls3": "mine.example\n",
		"suppls4": "# nothing\n", "suppls5": "five.example\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c, err := parse(t, fmt.Sprintf("control = %q\n", dir)+withNext+"[site.mine]\ndomains = [\"mine.example\"]\nconnections = 1\n[site.suppl5]\ndomains = [\"six.example\"]\nconnections = 6\n", nil)
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]string{
		"slow.example": "suppl0: 3 (" + dir + "/concurrencysuppl0:1)", "other.example": "suppl0: 3 (" + dir + "/concurrencysuppl0:1)",
		"third.example": "suppl1: 20 (" + dir + "/suppls1)", "held.example": "suppl2: 20 (" + dir + "/concurrencysuppl2:1)",
		"sub.slow.example": ": ", "mine.example": "mine: 1 (testdata/parsed.toml:6)", "five.example": ": ", "six.example": "suppl5: 6 (testdata/parsed.toml:9)",
	} {
		g := c.GroupOf(domain)
		if got := g + ": " + shownLimits(c.GroupLimits(g)); got != want {
			t.Errorf("%s: %s, want %s", domain, got, want)
		}
	}
	if c.Site["suppl3"] != nil || c.Site["suppl4"] != nil {
		t.Error("there are groups without a domain")
	}
	if got := complaints("#?", c.Warnings); len(got) != 2 || !strings.Contains(got[0].text, "to hold that mail there is postern site suspend") || !strings.Contains(got[1].text, "is no domain") {
		t.Errorf("%+v", got)
	}
}
