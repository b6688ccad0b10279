package smtp_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// TestFamily: the order of IPv4 and IPv6 is the configuration's, never against the
// preference of the hosts; it may change while mail leaves, and what has no address of
// the only family waits.
func TestFamily(t *testing.T) {
	n := newInternet(t)
	n.mx["d.test"] = exchangers(resolve.Host{Name: "a", Preference: 1}, resolve.Host{Name: "b", Preference: 1}, resolve.Host{Name: "c", Preference: 2})
	for host, addresses := range map[string][]string{
		"a": {"192.0.2.1", "2001:db8::1"}, "b": {"192.0.2.2", "2001:db8::2"}, "c": {"192.0.2.3", "2001:db8::3"},
		"four.test": {"192.0.2.4"}, "six.test": {"2001:db8::6"},
	} {
		for _, a := range addresses {
			n.refuse(host, a)
		}
	}
	o := smtp.Options{MaxAddresses: 9}
	x := n.exit(o)
	for _, c := range []struct {
		family smtp.Family
		want   string
	}{
		{smtp.TakeTurns, "6 4 6 4 6 4"},
		{smtp.IPv4First, "4 4 6 6 4 6"},
		{smtp.IPv6First, "6 6 4 4 6 4"},
		{smtp.IPv4Only, "4 4 4"},
		{smtp.IPv6Only, "6 6 6"},
	} {
		o.Family, n.dialed = c.family, nil
		x.Configure(o)
		for _, host := range []string{"a", "b", "c"} {
			x.Forget(host)
		}
		if r := one(t, x, job("d.test", "r@d.test")); r.Reply.Class != reply.Temporary {
			t.Errorf("%v: %+v", c.family, r)
		}
		var got []string
		for _, a := range n.dials() {
			got = append(got, map[bool]string{true: "6", false: "4"}[strings.HasPrefix(a, "[")])
		}
		if !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%v: %v, want %s", c.family, n.dials(), c.want)
		}
	}
	for domain, family := range map[string]smtp.Family{"four.test": smtp.IPv6Only, "six.test": smtp.IPv4Only} {
		o.Family, n.dialed = family, nil
		x.Configure(o)
		r := one(t, x, job(domain, "r@"+domain))
		if want := "451 4.4.1 Mail leaves from here by " + family.String() + " only"; !strings.HasPrefix(r.Reply.SMTP(), want) || len(n.dials()) > 0 {
			t.Errorf("%s: %+v after %v", domain, r, n.dials())
		}
	}
}
