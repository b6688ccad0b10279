package limit

import (
	"fmt"
	"strings"
	"testing"
)

func TestProviderOf(t *testing.T) {
	known, err := ShippedProviders()
	if err != nil {
		t.Fatal(err)
	}
	for hosts, want := range map[string]string{
		"gmail-smtp-in.l.google.com alt1.gmail-smtp-in.l.google.com": "google",
		"contoso-com.mail.protection.outlook.com":                    "office365",
		"fabrikam-de.mail.protection.outlook.com":                    "office365",
		"outlook-com.olc.protection.outlook.com":                     "outlook",
		"mta5.am0.yahoodns.net mta6.am0.yahoodns.net":                "yahoo",
		"mx1.example.co.uk mx2.example.co.uk":                        "example.co.uk",
		"mx1.example.org mx.elsewhere.net":                           "",
		"mx.google.com.evil.example":                                 "evil.example",
		"aspmx.l.google.com mx.example.org":                          "",
		"com":                                                        "",
		"":                                                           "",
		"192.0.2.1":                                                  "",
	} {
		if got := ProviderOf(known, strings.Fields(hosts)); got != want {
			t.Errorf("%s: %q, want %q", hosts, got, want)
		}
	}
	for _, k := range known {
		if k.Source == "" || k.Bounds.Connections == 0 {
			t.Errorf("%s: its figures have no source, or there are none", k.Name)
		}
	}
}

func TestTenantsShareTheirProvidersLimit(t *testing.T) {
	known, err := ShippedProviders()
	if err != nil {
		t.Fatal(err)
	}
	g := New(Options{Bounds: func(k Key) Bounds {
		for _, p := range known {
			if k == (Key{Provider, p.Name}) {
				return p.Bounds
			}
		}
		return Bounds{}
	}})
	open := 0
	for i := range 100 {
		host := fmt.Sprintf("tenant%d.mail.protection.outlook.com", i)
		if _, no := g.Open(start, Path{Site: host, Provider: ProviderOf(known, []string{host})}); no == nil {
			open++
		} else if no.Key != (Key{Provider, "office365"}) {
			t.Fatal(no)
		}
	}
	if open != 20 {
		t.Errorf("%d connections to one provider that may have 20", open)
	}
}

// TestManySitesOnOneAddress has ten thousand domains with hosts of their own,
// which all live on one address.
func TestManySitesOnOneAddress(t *testing.T) {
	g := New(Options{})
	var at []*Ticket
	for i := range 10_000 {
		k, no := g.Open(start, Path{Site: fmt.Sprintf("mx.customer%d.example", i)})
		if no != nil {
			t.Fatal(no)
		}
		if no := k.At(start, "192.0.2.25"); no == nil {
			at = append(at, k)
			continue
		} else if no.Key != (Key{Address, "192.0.2.25"}) {
			t.Fatal(no)
		}
		k.Close(start)
	}
	if len(at) != DefaultAddress().Connections {
		t.Errorf("%d connections to one address, of %d", len(at), DefaultAddress().Connections)
	}
}

func TestBadProviders(t *testing.T) {
	for text, want := range map[string]string{
		"[provider.x]\nconnections=1\n":                                    "no match",
		"[provider.x]\nmatch=['x.example']\n":                              "must be like",
		"[provider.x]\nmatch=['.X.example']\n":                             "small letters",
		"[provider.x]\nmatch=['.x.example']\nmessage_rate='often'\n":       "no rate",
		"[provider.x]\nmatch=['.x.example']\nconections=5\n":               "strict",
		"[provider.x]\nmatch=['.x.example.']\nmessages_per_connection=5\n": "must be like",
	} {
		if _, err := ParseProviders(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", text, err, want)
		}
	}
}
