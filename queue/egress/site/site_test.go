package site_test

import (
	"fmt"
	"testing"

	"github.com/postern-mta/postern/queue/egress/site"
)

func TestOf(t *testing.T) {
	if a, b := site.Of("MX2.example.org.", "mx1.example.org"), site.Of("mx1.example.org", "mx2.example.org", "mx1.Example.org"); a != b {
		t.Errorf("%v and %v are the same hosts", a, b)
	}
	if s := site.Of("b.test", "a.test"); s != (site.Site{Name: "a.test,b.test", Label: "a.test +1"}) {
		t.Errorf("%+v", s)
	}
	if site.Of() != (site.Site{}) {
		t.Error("no hosts")
	}
	seen := map[string]int{}
	var hosts []string
	for i := range 300 {
		hosts = append(hosts, fmt.Sprintf("mx%d.example.org", i))
		name := site.Of(hosts...).Name
		if k, ok := seen[name]; ok || len(name) > 200 {
			t.Fatalf("%d hosts: name %q, that of %d", i+1, name, k)
		}
		seen[name] = i + 1
	}
}
