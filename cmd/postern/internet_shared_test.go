package main

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/queue/queuetest/internet"
)

// TestInternetSharesServers: domains share what they are given by the hosts that they
// share, however those are named.
func TestInternetSharesServers(t *testing.T) {
	t.Run("one set of hosts", func(t *testing.T) {
		t.Parallel()
		n := internet.New(t)
		p := n.Provider("six", internet.Manner{Connections: 6, Full: internet.WordingOf("postfix").Full})
		p.HostSet(internet.Setting{Tarpit: 5 * time.Millisecond}, "mx1.six.example", "127.4.1.1")
		p.HostSet(internet.Setting{Tarpit: 5 * time.Millisecond}, "mx2.six.example", "127.4.1.2")
		for i := range 50 {
			hosts := []string{"mx1.six.example", "mx2.six.example"}
			n.Domain(domainOf(i), hosts[i%2], hosts[1-i%2])
		}
		s := newSender(t, n, lifted)
		s.send(400, func(i int) string { return "you@" + domainOf(i%50) })
		s.arrive(0)
		s.show(p)
		one, other, c := s.found(domainOf(0)), s.found(domainOf(1)), p.Course()
		if one.Site != other.Site || one.Control.Allowed < 5 || one.Control.Allowed > 7 {
			t.Errorf("%s and %s: %+v", one.Site, other.Site, one.Control)
		}
		if refused := c.Refused("connections"); refused == 0 || refused > 6 {
			t.Errorf("%d were refused: %+v", refused, one.Control.Moves)
		}
	})
	t.Run("one provider", func(t *testing.T) {
		t.Parallel()
		n := internet.New(t)
		p := n.Provider("office365", internet.Manner{})
		for i := range 30 {
			host := "tenant" + strconv.Itoa(i) + ".mail.protection.outlook.com"
			p.HostSet(internet.Setting{Tarpit: 5 * time.Millisecond}, host, fmt.Sprintf("127.4.2.%d", i+1))
			n.Domain(domainOf(i), host)
		}
		s := newSender(t, n, "")
		s.send(600, func(i int) string { return "you@" + domainOf(i%30) })
		s.arrive(0)
		s.show(p)
		e, c := s.found(domainOf(0)), p.Course()
		if most := line(&e, "provider", "connections"); e.Provider != "office365" || !strings.HasPrefix(most, "20 ") {
			t.Errorf("provider %s: %s", e.Provider, most)
		}
		if c.Peak > 20 || c.Peak < 15 {
			t.Errorf("%d connections at a time", c.Peak)
		}
	})
	t.Run("one provider with a limit of his own", func(t *testing.T) {
		t.Parallel()
		n := internet.New(t)
		p := n.Provider("office365", internet.Manner{PerSource: 8, Full: internet.WordingOf("office365").Full})
		for i := range 30 {
			host := "tenant" + strconv.Itoa(i) + ".mail.protection.outlook.com"
			p.HostSet(internet.Setting{Tarpit: 2 * time.Millisecond}, host, fmt.Sprintf("127.4.3.%d", i+1))
			n.Domain(domainOf(i), host)
		}
		s := newSender(t, n, "")
		s.send(600, func(i int) string { return "you@" + domainOf(i%30) })
		s.arrive(0)
		s.show(p)
		e, c := s.found(domainOf(0)), p.Course()
		if found, err := strconv.Atoi(limitOf(&e, "adapted", "provider office365")); err != nil || found < 7 || found > 9 {
			t.Errorf("found %d of 8: %+v", found, e.Limits)
		}
		if refused := c.Refused("connections"); refused == 0 || refused > 40 {
			t.Errorf("%d were refused", refused)
		}
	})
	t.Run("one address with a limit of its own", func(t *testing.T) {
		t.Parallel()
		n := internet.New(t)
		p := n.Provider("one address", internet.Manner{PerAddress: 8, Full: internet.WordingOf("postfix").Full})
		p.HostSet(internet.Setting{Tarpit: 2 * time.Millisecond}, "mx.many.example", "127.4.4.1")
		for i := range 200 {
			n.Names("mx."+domainOf(i), "127.4.4.1")
			n.Domain(domainOf(i), "mx."+domainOf(i))
		}
		s := newSender(t, n, "")
		s.send(600, func(i int) string { return "you@" + domainOf(i%200) })
		s.arrive(0)
		s.show(p)
		e, c := s.found(domainOf(0)), p.Course()
		if found, err := strconv.Atoi(limitOf(&e, "adapted", "address 127.4.4.1")); err != nil || found < 7 || found > 9 {
			t.Errorf("found %d of 8: %+v", found, e.Limits)
		}
		if refused := c.Refused("connections"); refused == 0 || refused > 40 {
			t.Errorf("%d were refused", refused)
		}
	})
}

// limitOf is the limit of connections that an explanation has for something.
func limitOf(e *api.SiteExplanation, level, name string) string {
	for _, l := range e.Limits {
		if l.Level == level && l.Name == name && l.What == "connections" {
			return l.Limit
		}
	}
	return ""
}

// TestInternetManyDomainsOnOneAddress: ten thousand domains with hosts of their own,
// which are all behind one address, have what one address has.
func TestInternetManyDomainsOnOneAddress(t *testing.T) {
	const domains = 10_000
	n := internet.New(t)
	p := n.Provider("one address", internet.Manner{})
	p.Host("mx.many.example", "127.5.1.1")
	for i := range domains {
		n.Names("mx."+domainOf(i), "127.5.1.1")
		n.Domain(domainOf(i), "mx."+domainOf(i))
	}
	s := newSender(t, n, "")
	s.send(domains, func(i int) string { return "you@" + domainOf(i) })
	s.arrive(0)
	s.show(p)
	c := p.Course()
	if c.Peak > 20 || c.Peak < 10 || c.Tried > domains/4 {
		t.Errorf("%d connections at a time, %d in all", c.Peak, c.Tried)
	}
}
