package limit

import (
	"slices"
	"testing"
	"time"
)

// TestRoomIsPassedOn has room at a provider offered to a site that may not use it, and to
// one that does not ask any more: others who wait for it are told.
func TestRoomIsPassedOn(t *testing.T) {
	for name, ask := range map[string]func(*Gate, Path) *Refusal{
		"one path": func(g *Gate, p Path) *Refusal { _, no := g.Open(start, p); return no },
		"several":  func(g *Gate, p Path) *Refusal { _, _, no := g.OpenFirst(start, []Path{p}); return no },
		"nobody":   func(g *Gate, p Path) *Refusal { g.Sweep(start); return &Refusal{What: suspendedWhat} },
	} {
		var woken []string
		g := New(Options{
			Wake: func(site string) { woken = append(woken, site) },
			Bounds: func(k Key) Bounds {
				if k.Level == Provider {
					return Bounds{Connections: 1}
				}
				return Bounds{}
			},
		})
		path := func(site string) Path { return Path{Site: site, Provider: "p"} }
		first, no := g.Open(start, path("first"))
		if no != nil {
			t.Fatal(no)
		}
		for _, site := range []string{"stopped", "next"} {
			if no := ask(g, path(site)); name != "nobody" && (no == nil || !no.Until.IsZero()) {
				t.Fatalf("%s: %v", site, no)
			} else if name == "nobody" {
				g.Open(start, path(site))
			}
		}
		g.Suspend(start, Key{Site, "stopped"}, start.Add(time.Hour), "")
		if first.Close(start); !slices.Equal(woken, []string{"stopped"}) {
			t.Fatalf("%s: woken %q", name, woken)
		}
		if no := ask(g, path("stopped")); no == nil || no.What != suspendedWhat {
			t.Fatalf("%s: %v", name, no)
		}
		if !slices.Equal(woken, []string{"stopped", "next"}) {
			t.Errorf("%s: woken %q", name, woken)
		}
		if _, no := g.Open(start, path("next")); no != nil {
			t.Errorf("%s: %v", name, no)
		}
	}
}
