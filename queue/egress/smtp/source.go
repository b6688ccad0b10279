package smtp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Source is where mail leaves from: an address of ours for each family, and the
// name that goes with them. The zero Source is the address that the system chooses.
type Source struct {
	// Name is what connections from it count for at the Gate; "" is nothing.
	Name string
	// IPv4 and IPv6 are what is connected from. With one of them set, servers of the
	// other family are not tried; with none, the system chooses for both.
	IPv4, IPv6 netip.Addr
	// Hello is the name given in EHLO; "" is that of Options.
	Hello string
}

// chosen reports whether there are addresses to connect from.
func (s Source) chosen() bool { return s.IPv4.IsValid() || s.IPv6.IsValid() }

// reaching is the address from which one is connected to, invalid for the system's
// choice; ok is false if the source has none of that family.
func (s Source) reaching(to netip.Addr) (from netip.Addr, ok bool) {
	from = s.IPv6
	if to.Unmap().Is4() {
		from = s.IPv4
	}
	return from, from.IsValid() || !s.chosen()
}

// label names the source for people.
func (s Source) label() string {
	switch {
	case s.Name != "":
		return s.Name
	case s.IPv4.IsValid():
		return s.IPv4.String()
	case s.IPv6.IsValid():
		return s.IPv6.String()
	}
	return "default"
}

// SourceError says that mail could not leave from a source, whoever was to get it:
// no server heard of it.
type SourceError struct {
	Source Source
	// Address is the one that cannot be used; invalid where the source has none of
	// the server's family.
	Address netip.Addr
	// Err is the system's; nil without an Address.
	Err error
}

// Error names the source.
func (e *SourceError) Error() string {
	if !e.Address.IsValid() {
		return fmt.Sprintf("source %s has no address from which the servers of this domain can be reached", e.Source.label())
	}
	return fmt.Sprintf("source %s: %s cannot be connected from: %v", e.Source.label(), e.Address, e.Err)
}

// Unwrap is the system's error.
func (e *SourceError) Unwrap() error { return e.Err }

// sourceFault is the SourceError in an error, nil if there is none.
func sourceFault(err error) *SourceError {
	var e *SourceError
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// SourceDialer is a Dialer that is told which address to connect from.
type SourceDialer interface {
	Dialer
	// DialFrom connects from an address of the other's family; the zero Addr is the
	// system's choice.
	DialFrom(ctx context.Context, from netip.Addr, network, address string) (net.Conn, error)
}

// dialer is the one of this machine.
type dialer struct{}

// DialContext is Dialer.
func (dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, address)
}

// DialFrom is SourceDialer.
func (dialer) DialFrom(ctx context.Context, from netip.Addr, network, address string) (net.Conn, error) {
	var d net.Dialer
	if from.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: from.AsSlice(), Zone: from.Zone()}
		d.Control = latePort
	}
	return d.DialContext(ctx, network, address)
}

// latePort has the port chosen when the peer is known, so that one address of ours
// is good for more connections than there are ports (ip(7)). Where the system does
// not know that, it is no worse than without.
func latePort(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) //nolint:errcheck // see above
	})
}

// dialTo connects to an address from the job's source.
func (v *visit) dialTo(ctx context.Context) (net.Conn, error) {
	x, s := v.a.x, v.a.source
	from, ok := s.reaching(v.to.address.Addr())
	if !ok {
		return nil, &SourceError{Source: s}
	}
	d, knows := x.o.Dialer.(SourceDialer)
	if !knows {
		return x.o.Dialer.DialContext(ctx, "tcp", v.to.address.String())
	}
	conn, err := d.DialFrom(ctx, from, "tcp", v.to.address.String())
	var call *os.SyscallError
	if err != nil && from.IsValid() && errors.As(err, &call) && call.Syscall == "bind" {
		err = &SourceError{Source: s, Address: from, Err: call}
		x.sayFault(from, err)
	}
	return conn, err
}

// faultEvery is how often the log hears of a source that cannot be used.
const faultEvery = time.Minute

// sayFault tells of an address that is not ours to use.
func (x *Exit) sayFault(from netip.Addr, err error) {
	now, key := x.o.Now(), netip.AddrPortFrom(from, 0)
	if x.faults.has(key, now) {
		return
	}
	x.faults.hold(key, now, now.Add(faultEvery))
	x.o.Log.Error("mail cannot leave from a source address, which is no fault of the servers that it goes to; it waits, or takes another source of its pool. "+
		"Give this machine the address (ip address show), or take it out of the configuration", "address", from.String(), "error", err)
}
