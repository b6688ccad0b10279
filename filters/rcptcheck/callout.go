package rcptcheck

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
)

// How long what servers said is kept.
const (
	calloutValid   = 24 * time.Hour
	calloutInvalid = time.Hour
	// calloutDomain is for whether a domain's server takes everybody.
	calloutDomain = 24 * time.Hour
)

// What is kept, as values in the state.
const (
	keptYes = "+"
	keptNo  = "-"
)

// callout asks the server that a recipient's mail goes to.
type callout struct {
	ways   pipeline.Callouts // nil where nobody may be asked
	state  pipeline.State    // nil: nothing is kept
	secret []byte
	wait   time.Duration
	places chan struct{} // bounds those that go on at a time
}

func (*callout) name() string { return "the callout" }

func (*callout) close() error { return nil }

// ask asks the server once for each address and, once for each domain, for one that
// cannot be there: a domain whose server takes that has no opinion about anybody.
func (c *callout) ask(ctx context.Context, address string, _ *pipeline.Transaction) (finding, error) {
	if c.ways == nil {
		return finding{}, errors.New("servers are not asked from here")
	}
	domain := envelope.Domain(address)
	everybody, known, err := c.kept(ctx, "domain "+domain)
	if err != nil || everybody {
		return finding{answer: noOpinion}, err
	}
	there, ok, err := c.kept(ctx, "address "+address)
	switch {
	case err != nil:
		return finding{}, err
	case ok && there:
		return finding{answer: valid}, nil
	case ok:
		return finding{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	select {
	case c.places <- struct{}{}:
		defer func() { <-c.places }()
	case <-ctx.Done():
		return finding{}, fmt.Errorf("too many servers are being asked: %w", ctx.Err())
	}
	all := []string{address}
	if !known {
		all = []string{c.nobody(domain), address}
	}
	answers, err := c.ways.Ask(ctx, domain, all...)
	if err == nil && len(answers) != len(all) {
		err = errors.New("not every question was answered")
	}
	if err != nil {
		return finding{}, fmt.Errorf("the server for %s cannot be asked: %w", reply.Clean(domain, 100), err)
	}
	if !known {
		switch said := answers[0]; {
		case said.Class == reply.Success:
			return finding{answer: noOpinion}, c.keep(ctx, "domain "+domain, true, calloutDomain)
		case isNobody(said):
			if err := c.keep(ctx, "domain "+domain, false, calloutDomain); err != nil {
				return finding{}, err
			}
		}
	}
	switch said := answers[len(answers)-1]; {
	case said.Class == reply.Success:
		return finding{answer: valid}, c.keep(ctx, "address "+address, true, calloutValid)
	case isNobody(said):
		return finding{}, c.keep(ctx, "address "+address, false, calloutInvalid)
	default:
		return finding{}, fmt.Errorf("the server for %s does not say: %s", reply.Clean(domain, 100), said.SMTP())
	}
}

// isNobody reports whether an answer is about the recipient: a no for good that is
// not about who asks (5.7).
func isNobody(r reply.Reply) bool {
	return r.Class == reply.Permanent && r.Enhanced.Subject != 7 && r.Code >= 550 && r.Code != 554
}

// nobody is an address that is in no mailbox, and that nobody outside can tell.
func (c *callout) nobody(domain string) string {
	sum := sha256.Sum256(append(append([]byte{}, c.secret...), domain...))
	return "nobody-" + hex.EncodeToString(sum[:8]) + "@" + domain
}

func (c *callout) kept(ctx context.Context, key string) (yes, ok bool, err error) {
	if c.state == nil {
		return false, false, nil
	}
	v, ok, err := c.state.Get(ctx, key)
	return string(v) == keptYes, ok, err
}

func (c *callout) keep(ctx context.Context, key string, yes bool, life time.Duration) error {
	if c.state == nil {
		return nil
	}
	v := keptNo
	if yes {
		v = keptYes
	}
	return c.state.Put(ctx, key, []byte(v), life)
}

// newCallout makes a callout of what a filter is given.
func newCallout(env pipeline.Env, wait time.Duration, most int) *callout {
	c := &callout{ways: env.Callouts, state: env.State, wait: orElse(wait, defaultWait), places: make(chan struct{}, orElse(most, defaultPrograms))}
	if env.Secret != nil {
		c.secret = env.Secret("rcptcheck callout")
	}
	return c
}
