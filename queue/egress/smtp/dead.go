package smtp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// How dead hosts are remembered. As with qmail (tcpto.c) only silence counts,
// since a refusal costs no time, and once in two minutes, since all that try at
// the same time hear the same. qmail's pause is always 64 to 97 minutes.
const (
	deadApart  = 2 * time.Minute
	deadEnough = 2
	deadFirst  = 15 * time.Minute
	deadMost   = 2 * time.Hour
	// deadKept is after how long without a failure an address is forgotten.
	deadKept = 12 * time.Hour
)

// Dead is an address that did not answer.
type Dead struct {
	Address netip.AddrPort
	// Host is the name under which it was last tried, "" if it has none.
	Host string
	// Failures are the attempts that count, Last the time of the latest of them.
	Failures int
	Last     time.Time
	// Until is up to when the address is passed over; zero while it is still tried.
	Until time.Time

	probe time.Time // up to when somebody finds out how it is now
}

// deadHosts are the addresses that did not answer lately, at most maxRemembered.
// It is safe for concurrent use.
type deadHosts struct {
	o *Options

	mu  sync.Mutex
	all map[netip.AddrPort]*Dead
}

// passes reports whether an address is passed over, and until when. When its pause
// is over, one caller is let through, and the others after him when he has had the
// time to find out.
func (d *deadHosts) passes(a netip.AddrPort) (until time.Time, over bool) {
	now := d.o.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.all[a]
	switch {
	case h == nil || h.Until.IsZero():
		return time.Time{}, false
	case now.Before(h.Until):
		return h.Until, true
	case now.Before(h.probe):
		return h.probe, true
	}
	h.probe = now.Add(d.o.ConnectTimeout)
	return time.Time{}, false
}

// silent notes that an address did not answer.
func (d *deadHosts) silent(to candidate) {
	now := d.o.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.all[to.address]
	if h != nil && now.Sub(h.Last) >= deadKept {
		h = nil
	}
	if h == nil {
		d.makeRoom(now)
		h = &Dead{Address: to.address}
		d.all[to.address] = h
	}
	h.Host = to.host
	if h.Failures > 0 && now.Sub(h.Last) < deadApart {
		return
	}
	h.Failures++
	h.Last, h.probe = now, time.Time{}
	if h.Failures < deadEnough {
		return
	}
	pause := deadMost
	if n := h.Failures - deadEnough; n < 8 {
		pause = min(deadMost, deadFirst<<n)
	}
	h.Until = now.Add(pause)
	d.o.Log.Info("a server does not answer and is passed over for a while", "to", to.String(), "failures", h.Failures, "for", pause.String())
}

// answers notes that an address did.
func (d *deadHosts) answers(to candidate) {
	d.mu.Lock()
	h := d.all[to.address]
	delete(d.all, to.address)
	d.mu.Unlock()
	if h != nil && !h.Until.IsZero() {
		d.o.Log.Info("a server answers again", "to", to.String(), "failures", h.Failures)
	}
}

// makeRoom forgets what is old, and if that is not enough the address that is
// passed over for the shortest while from now; d is locked.
func (d *deadHosts) makeRoom(now time.Time) {
	if d.all == nil {
		d.all = map[netip.AddrPort]*Dead{}
	}
	if len(d.all) < maxRemembered {
		return
	}
	var first *Dead
	for a, h := range d.all {
		if now.Sub(h.Last) >= deadKept {
			delete(d.all, a)
		} else if first == nil || h.Until.Before(first.Until) {
			first = h
		}
	}
	if len(d.all) >= maxRemembered {
		delete(d.all, first.Address)
	}
}

// forget forgets some.
func (d *deadHosts) forget(which func(*Dead) bool) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for a, h := range d.all {
		if which(h) {
			delete(d.all, a)
			n++
		}
	}
	return n
}

// Forget forgets that an address, or all addresses of a host, did not answer, so
// that they are tried with the next message. Both are as in Dead; "" stands for
// all. It returns how many addresses were forgotten.
func (x *Exit) Forget(hostOrAddress string) int {
	name := strings.TrimSuffix(hostOrAddress, ".")
	address, err := netip.ParseAddr(strings.Trim(name, "[]"))
	n := x.dead.forget(func(h *Dead) bool {
		if err == nil {
			return h.Address.Addr() == address.Unmap()
		}
		return name == "" || strings.EqualFold(strings.TrimSuffix(h.Host, "."), name)
	})
	x.o.Log.Info("servers that did not answer were forgotten", "which", hostOrAddress, "addresses", n)
	return n
}

// Dead lists the addresses that did not answer lately, by address.
func (x *Exit) Dead() []Dead {
	x.dead.mu.Lock()
	defer x.dead.mu.Unlock()
	all := make([]Dead, 0, len(x.dead.all))
	for _, h := range x.dead.all {
		all = append(all, *h)
	}
	slices.SortFunc(all, func(a, b Dead) int { return a.Address.Compare(b.Address) })
	return all
}

// noConnection notes why there is no connection: a refusal shows that somebody is
// there, as in qmail.
func (d *deadHosts) noConnection(ctx context.Context, to candidate, err error) {
	switch {
	case ctx.Err() != nil, to.hop.Socket != "":
	case isSilence(err):
		d.silent(to)
	case errors.Is(err, syscall.ECONNREFUSED):
		d.answers(to)
	}
}

// isSilence is true where nobody answered, in contrast to a no.
func isSilence(err error) bool {
	var timeout net.Error
	var e *wire.Error
	if errors.As(err, &e) && e.Phase != wire.Greeting {
		return false
	}
	return errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.EHOSTDOWN)
}

// next is the next address to try, without those that do not answer.
func (w *walk) next(ctx context.Context) (candidate, bool) {
	for {
		c, ok := w.pick(ctx)
		if !ok {
			return c, false
		}
		until, over := w.x.dead.passes(c.address)
		if !over || w.x.kept.has(c, w.source) {
			w.given = true
			return c, true
		}
		w.x.o.Log.Debug("a server that does not answer is passed over", "to", c.String(), "domain", w.to.domain, slog.Time("until", until))
		w.hopeless()
		if !w.passed || until.Before(w.until) {
			w.passed, w.until = true, until
		}
	}
}

// errDead says that no address was tried.
func (w *walk) errDead() error {
	return fmt.Errorf("no server of %s has answered lately; the next attempt is made after %s, or after postern site forget", w.to.domain, w.until.Format(time.RFC3339))
}
