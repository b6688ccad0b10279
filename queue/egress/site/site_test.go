package site_test

import (
	"fmt"
	"slices"
	"strings"
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

func TestGroup(t *testing.T) {
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("mx%d.example", i))
	}
	for _, s := range []site.Site{site.Of("mx.example"), site.Of(many...), site.Of("localhost")} {
		if got := site.Hosts(s.Name); !strings.HasPrefix(s.Name, "sha256=") && strings.Join(got, ",") != s.Name || len(s.Name) > 100 && got != nil {
			t.Errorf("hosts of %s: %q", s.Name, got)
		}
		if got := site.Group(s.Name); got != "" || s.In("") != s {
			t.Errorf("%s is in %q", s.Name, got)
		}
		for _, group := range []string{"partner", "sha256"} {
			in := s.In(group)
			if !slices.Equal(site.Hosts(in.Name), site.Hosts(s.Name)) {
				t.Errorf("hosts of %s: %q", in.Name, site.Hosts(in.Name))
			}
			if in == s || in == s.In("other") || site.Group(in.Name) != group {
				t.Errorf("%s in %s is %+v, in %q", s.Name, group, in, site.Group(in.Name))
			}
		}
	}
}
