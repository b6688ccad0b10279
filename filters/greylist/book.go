package greylist

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/state"
)

// Book is a filter's state as an operator's command sees it, which may be another
// process.
type Book interface {
	pipeline.State
	// Scan is that of state.Space.
	Scan(ctx context.Context, prefix, from string, each func(state.Entry) bool) error
}

// The kinds of an Entry.
const (
	Waiting = "waiting" // a triplet that has to try again
	Passed  = "passed"  // a triplet that came back
	Client  = "client"  // a client, of which some triplets came back
	Allowed = "allowed" // a client that an operator allowed
)

// Entry is one thing that the filter remembers.
type Entry struct {
	Kind   string
	Client string
	// Sender and Recipient are a triplet's, Good is of a client.
	Sender, Recipient string
	Good              int
	First, Last       time.Time
	// Left is how long it will be remembered if it is not seen again.
	Left time.Duration
	key  string
}

// Selection is what a command is about. Empty fields select all.
type Selection struct {
	// Client is a client as it is recorded (a network, or a domain), or an address,
	// which means the networks that hold it.
	Client string
	// Sender and Recipient select triplets by a part of the address.
	Sender, Recipient string
	// Kind is one of the kinds.
	Kind string
}

// Check says what is wrong with a selection.
func (s Selection) Check() error {
	switch s.Kind {
	case "", Waiting, Passed, Client, Allowed:
		return nil
	}
	return fmt.Errorf("there is no kind %q: write %s, %s, %s or %s", s.Kind, Waiting, Passed, Client, Allowed)
}

// has reports whether an entry is selected.
func (s Selection) has(e Entry) bool {
	if s.Kind != "" && s.Kind != e.Kind || !strings.Contains(e.Sender, strings.ToLower(s.Sender)) || !strings.Contains(e.Recipient, strings.ToLower(s.Recipient)) {
		return false
	}
	return s.Client == "" || isClient(s.Client, e.Client)
}

// isClient reports whether a client is the one that is meant.
func isClient(meant, recorded string) bool {
	if strings.EqualFold(meant, recorded) {
		return true
	}
	network, err := netip.ParsePrefix(recorded)
	if err != nil {
		return false
	}
	if a, err := netip.ParseAddr(meant); err == nil {
		return network.Contains(a.Unmap().WithZone(""))
	}
	p, err := netip.ParsePrefix(meant)
	return err == nil && p.Overlaps(network) && p.Bits() <= network.Bits()
}

// List calls each for what a selection selects, clients first, until it returns
// false.
func List(ctx context.Context, b Book, s Selection, each func(Entry) bool) error {
	if err := s.Check(); err != nil {
		return err
	}
	return b.Scan(ctx, "", "", func(raw state.Entry) bool {
		e, ok := entryOf(raw)
		return !ok || !s.has(e) || each(e)
	})
}

// entryOf is an entry of the state as a person reads it.
func entryOf(raw state.Entry) (e Entry, ok bool) {
	e = Entry{Left: raw.Left, key: raw.Key}
	switch {
	case raw.Key == "":
		return e, false
	case raw.Key[0] == clientKey:
		c, err := decodeKnown(raw.Value)
		e.Kind, e.Client, e.Good, e.First, e.Last = Client, raw.Key[1:], c.good, c.first, c.last
		if c.hand {
			e.Kind = Allowed
		}
		return e, err == nil
	case raw.Key[0] == tripletKey:
		t, err := decodeTriplet(raw.Value)
		e.Kind, e.Client, e.Sender, e.Recipient, e.First, e.Last = Waiting, t.client, t.sender, t.recipient, t.first, t.last
		if t.passed {
			e.Kind = Passed
		}
		return e, err == nil
	}
	return e, false
}

// Forget removes what a selection selects, and says how much that was.
func Forget(ctx context.Context, b Book, s Selection) (n int, err error) {
	return state.Forget(ctx, b, func(each func(key string) bool) error {
		return List(ctx, b, s, func(e Entry) bool { return each(e.key) })
	})
}

// Allow has all mail of a client pass, for a time: a network as the filter cuts
// them, an address, which stands for its network of the default size, or the
// registrable domain of host names, which counts with client = "name". The name
// under which it was recorded is returned.
func Allow(ctx context.Context, b Book, name string, now time.Time, ttl time.Duration) (string, error) {
	if ttl <= 0 || ttl > maxLife {
		return "", errors.New("a client is allowed for more than 0 and at most a year")
	}
	name, err := clientName(name)
	if err != nil {
		return "", err
	}
	return name, book{b}.putClient(ctx, name, known{hand: true, first: now, last: now}, ttl)
}

// clientName is a client as it is recorded.
func clientName(s string) (string, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked().String(), nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		f := Filter{bits4: defaultIPv4, bits6: defaultIPv6}
		return f.network(a.Unmap().WithZone("")), nil
	}
	if domain := registrable(s); domain != "" {
		if !strings.EqualFold(strings.TrimSuffix(s, "."), domain) {
			return "", fmt.Errorf("clients are known by the domain that is registered: write %s", domain)
		}
		return domain, nil
	}
	return "", fmt.Errorf("%q is no address, network or domain of a client", s)
}
