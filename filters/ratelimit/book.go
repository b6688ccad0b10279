package ratelimit

import (
	"context"
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

// Entry is what is counted of one subject under one limit.
type Entry struct {
	Limit, Subject string
	// Per is the limit's window, as it was when this was counted.
	Per time.Duration
	// Messages, Recipients, Bytes and Attempts are what counts now.
	Messages, Recipients, Bytes, Attempts uint64
	// Last is when something was last counted, to a sixtieth of the window.
	Last time.Time
	// Left is how long it will be remembered if nothing more is counted.
	Left time.Duration
	key  string
}

// Selection is what a command is about. Empty fields select all.
type Selection struct {
	// Limit is the name of a limit.
	Limit string
	// Subject is a part of a sender, user, domain or recipient, or an address,
	// which is also in its network.
	Subject string
}

func (s Selection) has(e Entry) bool {
	if s.Limit != "" && s.Limit != e.Limit {
		return false
	}
	if s.Subject == "" {
		return true
	}
	if a, err := netip.ParseAddr(s.Subject); err == nil {
		a = a.Unmap().WithZone("")
		p, err := netip.ParsePrefix(e.Subject)
		return e.Subject == a.String() || err == nil && p.Contains(a)
	}
	return strings.Contains(e.Subject, strings.ToLower(s.Subject))
}

// List calls each for what a selection selects, in the order of limits and
// subjects, until it returns false. What has gone by is left out.
func List(ctx context.Context, b Book, s Selection, now time.Time, each func(Entry) bool) error {
	return b.Scan(ctx, string(recordKey), "", func(raw state.Entry) bool {
		e, ok := entryOf(raw, now)
		return !ok || !s.has(e) || each(e)
	})
}

// entryOf is an entry of the state as a person reads it.
func entryOf(raw state.Entry, now time.Time) (e Entry, ok bool) {
	name, subject, ok := strings.Cut(strings.TrimPrefix(raw.Key, string(recordKey)), "\x00")
	if !ok {
		return e, false
	}
	per, err := perOf(raw.Value)
	if err != nil {
		return e, false
	}
	w, err := decode(raw.Value, per)
	if err != nil {
		return e, false
	}
	w.forget(per, now)
	n := w.total()
	e = Entry{
		Limit: name, Subject: subject, Per: per.Round(time.Millisecond), Left: raw.Left, key: raw.Key,
		Messages: n[messages], Recipients: n[recipients], Bytes: n[bytes], Attempts: n[attempts],
	}
	if len(w.slots) == 0 {
		return e, false
	}
	e.Last = time.Unix(0, w.slots[len(w.slots)-1].at*widthOf(per))
	return e, true
}

// perOf is the length of the window that a record is of.
func perOf(b []byte) (time.Duration, error) {
	if len(b) == 0 || b[0] != version {
		return 0, errRecord
	}
	r := reader{b: b[1:]}
	per := time.Duration(r.number(uint64(maxPer/parts))) * parts
	if r.bad || per == 0 {
		return 0, errRecord
	}
	return per, nil
}

// Forget removes what a selection selects, and says how much that was.
func Forget(ctx context.Context, b Book, s Selection, now time.Time) (n int, err error) {
	return state.Forget(ctx, b, func(each func(key string) bool) error {
		return List(ctx, b, s, now, func(e Entry) bool { return each(e.key) })
	})
}
