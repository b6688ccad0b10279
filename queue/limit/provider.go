package limit

import (
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/net/publicsuffix"
)

// KnownProvider is a provider with the hosts that are its own.
type KnownProvider struct {
	Name string
	// Match are suffixes of host names, ".google.com". All hosts of a site must
	// match for the site to be the provider's.
	Match  []string
	Bounds Bounds
	// Source says where the figures are from.
	Source string
}

//go:embed providers.toml
var shippedProviders string

// ShippedProviders is the table that comes with Postern, by name.
func ShippedProviders() ([]KnownProvider, error) { return ParseProviders(shippedProviders) }

// ParseProviders reads a table of providers.
func ParseProviders(text string) ([]KnownProvider, error) {
	var t struct {
		Provider map[string]struct {
			Match                   []string `toml:"match"`
			Connections             int      `toml:"connections"`
			ConnectionRate          string   `toml:"connection_rate"`
			MessageRate             string   `toml:"message_rate"`
			MessagesPerConnection   int      `toml:"messages_per_connection"`
			RecipientsPerConnection int      `toml:"recipients_per_connection"`
			Source                  string   `toml:"source"`
		} `toml:"provider"`
	}
	d := toml.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return nil, fmt.Errorf("providers: %w", err)
	}
	var all []KnownProvider
	for _, name := range slices.Sorted(maps.Keys(t.Provider)) {
		p := t.Provider[name]
		k := KnownProvider{Name: name, Match: p.Match, Source: p.Source, Bounds: Bounds{
			Connections: p.Connections, MessagesEach: p.MessagesPerConnection, RecipientsEach: p.RecipientsPerConnection,
		}}
		for _, r := range []struct {
			text string
			into *Rate
		}{{p.ConnectionRate, &k.Bounds.NewConnections}, {p.MessageRate, &k.Bounds.Messages}} {
			var err error
			if r.text == "" {
				continue
			}
			if *r.into, err = ParseRate(r.text); err != nil {
				return nil, fmt.Errorf("providers: %s: %w", name, err)
			}
		}
		if len(p.Match) == 0 {
			return nil, fmt.Errorf("providers: %s has no match", name)
		}
		for _, m := range p.Match {
			if !strings.HasPrefix(m, ".") || strings.HasSuffix(m, ".") || m != strings.ToLower(m) {
				return nil, fmt.Errorf(`providers: %s: match %q must be like ".example.com", in small letters`, name, m)
			}
		}
		all = append(all, k)
	}
	return all, nil
}

// ProviderOf is the provider of a site with these hosts, in small letters: the
// first known one whose hosts they all are, else the registrable domain if they
// share one (as "example.com", which no known provider is called), else "".
func ProviderOf(known []KnownProvider, hosts []string) string {
	if len(hosts) == 0 {
		return ""
	}
	for _, k := range known {
		if !slices.ContainsFunc(hosts, func(h string) bool { return !matchesAny(h, k.Match) }) {
			return k.Name
		}
	}
	shared := ""
	for _, h := range hosts {
		d, err := publicsuffix.EffectiveTLDPlusOne(h)
		if err != nil || shared != "" && d != shared {
			return ""
		}
		shared = d
	}
	return shared
}

// matchesAny reports whether a host ends in one of the suffixes, or is one
// without its dot.
func matchesAny(host string, suffixes []string) bool {
	return slices.ContainsFunc(suffixes, func(s string) bool {
		return strings.HasSuffix(host, s) || host == s[1:]
	})
}
