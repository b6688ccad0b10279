package dnsbl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
)

// source is where answers come from.
type source struct {
	addresses func(ctx context.Context, name string) ([]netip.Addr, error)
	texts     func(ctx context.Context, name string) ([]string, error)
}

// sourceOf asks a resolver. There may be none, where a configuration is only
// checked.
func sourceOf(r pipeline.Resolver) source {
	if r == nil {
		none := errors.New("there is no resolver")
		return source{
			addresses: func(context.Context, string) ([]netip.Addr, error) { return nil, none },
			texts:     func(context.Context, string) ([]string, error) { return nil, none },
		}
	}
	if only, ok := r.(interface {
		LookupA(ctx context.Context, name string) ([]netip.Addr, error)
	}); ok {
		return source{only.LookupA, r.LookupTXT}
	}
	return source{func(ctx context.Context, name string) ([]netip.Addr, error) {
		found, err := r.LookupHost(ctx, name)
		if err != nil {
			return nil, err
		}
		var all []netip.Addr
		for _, s := range found {
			if a, err := netip.ParseAddr(s); err == nil && a.Unmap().Is4() {
				all = append(all, a.Unmap())
			}
		}
		return all, nil
	}, r.LookupTXT}
}

// finding is what one list says.
type finding struct {
	list    *list
	answers []netip.Addr // those that count; none: not listed
	text    string       // the list's own, clean
	err     error        // why it says nothing
}

const (
	// maxCounted bounds the answers of one list that are looked at.
	maxCounted = 20
	// maxOwnText bounds the text of a list in the log.
	maxOwnText = 200
)

// ask asks all lists of the query's kind at once, and waits for them as long as
// it may. The findings are in the order of the lists. It fails if no list could
// tell.
func (f *Filter) ask(ctx context.Context, q query) ([]finding, error) {
	ctx, cancel := context.WithTimeout(ctx, f.wait)
	defer cancel()
	var all []finding
	for i := range f.lists {
		l := &f.lists[i]
		known := q.kind != byAddress || q.six && l.six || !q.six && l.four
		if l.kind == q.kind && known && len(q.name)+1+len(l.zone) <= 253 {
			all = append(all, finding{list: l, err: errLate})
		}
	}
	type result struct {
		i int
		finding
	}
	results := make(chan result, len(all))
	for i := range all {
		go func() { results <- result{i, f.look(ctx, q, all[i].list)} }()
	}
	failed := len(all)
wait:
	for range all {
		select {
		case r := <-results:
			if all[r.i] = r.finding; r.err == nil {
				failed--
			}
		case <-ctx.Done():
			break wait
		}
	}
	if len(all) > 0 && failed == len(all) {
		return nil, fmt.Errorf("no list answered: %s", reasons(all))
	}
	return all, nil
}

var errLate = errors.New("no answer in time")

// look asks one list. An answer counts only if the list does not list what no
// list has.
func (f *Filter) look(ctx context.Context, q query, l *list) finding {
	at := finding{list: l}
	found, err := f.source.addresses(ctx, q.name+"."+l.zone)
	if err != nil {
		if !resolve.IsNotFound(err) {
			at.err = plain(err)
		}
		return at
	}
	for _, a := range found[:min(len(found), maxCounted)] {
		if isBroken(a) {
			at.answers, at.err = nil, fmt.Errorf("it answers %v, which is no listing", a)
			f.warn(l, at.err.Error())
			return at
		}
		if l.counts(a) {
			at.answers = append(at.answers, a)
		}
	}
	if len(at.answers) == 0 {
		return at
	}
	switch _, err := f.source.addresses(ctx, q.never+"."+l.zone); {
	case err == nil:
		at.answers, at.err = nil, errors.New("it lists everything")
		f.warn(l, at.err.Error())
		return at
	case !resolve.IsNotFound(err):
		at.answers, at.err = nil, fmt.Errorf("whether it lists everything: %w", plain(err))
		return at
	}
	if l.txt {
		if texts, err := f.source.texts(ctx, q.name+"."+l.zone); err == nil && len(texts) > 0 {
			at.text = reply.Clean(texts[0], maxOwnText)
		}
	}
	return at
}

// plain is an error without the name that was asked for: the zone may hold a
// key.
func plain(err error) error {
	var e *net.DNSError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return errLate
	case errors.As(err, &e):
		return errors.New(reply.Clean(e.Err, maxOwnText))
	}
	return err
}

// reasons says for the log what each list says; those that say nothing are
// counted.
func reasons(findings []finding) string {
	var parts []string
	silent := 0
	for i := range findings {
		at := &findings[i]
		switch {
		case at.err != nil:
			parts = append(parts, fmt.Sprintf("%s: %v", at.list.name, at.err))
		case len(at.answers) == 0:
			silent++
		default:
			parts = append(parts, at.String())
		}
	}
	if silent > 0 {
		parts = append(parts, fmt.Sprintf("not listed by %d", silent))
	}
	return strings.Join(parts, "; ")
}

// String is a listing for the log.
func (at *finding) String() string {
	var b strings.Builder
	b.WriteString("listed by " + at.list.name + " (")
	for i, a := range at.answers {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(a.String())
	}
	if at.list.pass {
		b.WriteString(", pass)")
	} else {
		fmt.Fprintf(&b, ", weight %g)", at.list.weight)
	}
	if at.text != "" {
		b.WriteString(": " + at.text)
	}
	return b.String()
}

// symbols are the listings as findings for later filters.
func symbols(findings []finding) []pipeline.Symbol {
	var all []pipeline.Symbol
	for i := range findings {
		if at := &findings[i]; len(at.answers) > 0 {
			s := pipeline.Symbol{Name: at.list.symbol, Score: at.list.weight, Detail: at.String()}
			if at.list.pass {
				s.Score = 0
			}
			all = append(all, s)
		}
	}
	return all
}
