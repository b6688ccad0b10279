package limit

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Level is what a limit is about.
type Level uint8

// The levels, from the outermost to the innermost.
const (
	Source Level = iota
	Provider
	Group
	Site
	Address
	Adapted // what a Control allows a site from a source
	levels
)

var levelNames = [levels]string{"source", "provider", "group", "site", "address", "adapted"}

// String is the level's word.
func (l Level) String() string {
	if l < levels {
		return levelNames[l]
	}
	return "invalid"
}

// Key names one thing that has limits.
type Key struct {
	Level Level
	Name  string
}

// String is the key for people, "provider google".
func (k Key) String() string { return k.Level.String() + " " + k.Name }

// None as a bound lifts a limit that an outer layer of the configuration set.
const None = -1

// Rate is so many in a time, evenly spread, of which Burst may come at once. The
// zero Rate is not set; one with Count None lifts a limit.
type Rate struct {
	Count int
	Per   time.Duration
	// Burst is at least 1; 0 is a second's worth, or 1.
	Burst int
}

// IsSet reports whether the rate limits anything.
func (r Rate) IsSet() bool { return r.Count > 0 && r.Per > 0 }

// every is the time between two.
func (r Rate) every() time.Duration { return max(1, r.Per/time.Duration(r.Count)) }

func (r Rate) burst() int {
	if r.Burst > 0 {
		return r.Burst
	}
	return max(1, int(time.Second/r.every()))
}

var rateUnits = []struct {
	name string
	per  time.Duration
}{{"s", time.Second}, {"min", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour}}

// String is the rate as the configuration has it: "100/min".
func (r Rate) String() string {
	switch {
	case r.Count == None:
		return "none"
	case !r.IsSet():
		return ""
	}
	for _, u := range rateUnits {
		if r.Per == u.per {
			return strconv.Itoa(r.Count) + "/" + u.name
		}
	}
	return fmt.Sprintf("%d/%s", r.Count, r.Per)
}

// maxCount is the greatest number of a rate.
const maxCount = 1_000_000

// ParseRate is the inverse of String: a number, a slash and s, min, h or d; or
// "none".
func ParseRate(s string) (Rate, error) {
	if s == "none" {
		return Rate{Count: None}, nil
	}
	for _, u := range rateUnits {
		n, ok := strings.CutSuffix(s, "/"+u.name)
		if !ok {
			continue
		}
		count, err := strconv.Atoi(n)
		if err != nil || count < 1 || count > maxCount || n != strconv.Itoa(count) {
			break
		}
		return Rate{Count: count, Per: u.per}, nil
	}
	return Rate{}, fmt.Errorf(`%.40q is no rate: write it like "100/min" (s, min, h or d), or "none"`, s)
}

// MarshalText is encoding.TextMarshaler.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is encoding.TextUnmarshaler, by ParseRate.
func (r *Rate) UnmarshalText(text []byte) (err error) {
	*r, err = ParseRate(string(text))
	return err
}

// Bounds are the limits of one thing. A field that is 0 is not set, and what the
// layer below says holds; None lifts a limit.
type Bounds struct {
	// Connections are those open at once.
	Connections int
	// NewConnections is how fast they may be opened, Messages how fast
	// messages may be begun.
	NewConnections, Messages Rate
	// MessagesEach and RecipientsEach are per connection.
	MessagesEach, RecipientsEach int
}

// Over is b where it says anything, and below where it does not.
func (b Bounds) Over(below Bounds) Bounds {
	return Bounds{
		cmp.Or(b.Connections, below.Connections),
		cmp.Or(b.NewConnections, below.NewConnections), cmp.Or(b.Messages, below.Messages),
		cmp.Or(b.MessagesEach, below.MessagesEach), cmp.Or(b.RecipientsEach, below.RecipientsEach),
	}
}

// DefaultSite is what every site may have that nobody configured.
func DefaultSite() Bounds {
	return Bounds{
		Connections: 20, NewConnections: Rate{Count: 100, Per: time.Minute, Burst: 20}, Messages: Rate{Count: 100, Per: time.Second},
		MessagesEach: 100, RecipientsEach: 1000,
	}
}

// DefaultAddress is what every address may have that nobody configured: many
// small sites live on one, and each of them has limits of its own.
func DefaultAddress() Bounds { return Bounds{Connections: 20} }
