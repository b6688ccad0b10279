package pipeline

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/rules"
)

// Step is one filter in its place in a chain.
type Step struct {
	// Name is the filter's name in the configuration.
	Name   string
	Filter Filter
	// When is the rule that must match for it to run; nil matches.
	When *rules.Rule
	// Timeout bounds each of its calls; 0 means DefaultTimeout.
	Timeout time.Duration
	OnError OnError
	Always  bool
	Mode    Mode
}

// The default deadlines of a call and of the whole message stage.
const (
	DefaultTimeout  = 30 * time.Second
	DefaultDeadline = 120 * time.Second
)

// Mixed is the one answer to a message that some recipients take and others
// refuse.
type Mixed uint8

// The zero Mixed goes by the session's standing: MixedReject for strangers,
// MixedBounce for everybody else. A report, whose sender is nobody, is always
// answered by MixedReject.
const (
	MixedByStanding Mixed = iota
	MixedBounce           // store for those who accept, a report for the rest
	MixedReject           // refuse for all, naming those who refuse
)

var mixedNames = [...]string{"auto", "bounce", "reject"}

// String is the word of the option "mixed".
func (m Mixed) String() string {
	if int(m) < len(mixedNames) {
		return mixedNames[m]
	}
	return "invalid"
}

// ParseMixed is the inverse of String.
func ParseMixed(s string) (Mixed, bool) {
	for i, name := range mixedNames {
		if s == name {
			return Mixed(i), true
		}
	}
	return 0, false
}

// of is the answer to a transaction. Where nobody can be told, because the
// message is a report itself, nothing may be promised to anybody.
func (m Mixed) of(tx *Transaction) Mixed {
	nobody := tx.Envelope.Sender == "" || tx.Envelope.Sender == envelope.DoubleBounce
	switch {
	case nobody:
		return MixedReject
	case m != MixedByStanding:
		return m
	case tx.Session.Standing == Stranger:
		return MixedReject
	}
	return MixedBounce
}

// ChainOptions are what a chain has besides its filters. The zero value works.
type ChainOptions struct {
	// Deadline bounds the message stage as a whole; 0 means DefaultDeadline.
	Deadline time.Duration
	Mixed    Mixed
	// Modes are the operator's overrides; they may be nil.
	Modes *Modes
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Pool chooses the pool of source addresses that a message leaves from, for its
	// Origin, by what is known when it is accepted; "" for none. It is called
	// concurrently. Nil: none is chosen.
	Pool func(tx *Transaction, m message.Message) string
	// Generation numbers the configuration that the chain came with.
	Generation uint64
	// Log hears of panics, with their stacks, and of calls that overran their
	// time; nil means nobody does. Everything else is in the trace.
	Log *slog.Logger
}

// Chain is an ordered list of filters. It does not change and is safe for
// concurrent use. The goroutines that make its calls outlast them for a moment,
// unless the chain is closed.
type Chain struct {
	name  string
	o     ChainOptions
	steps []step
	at    [Stages][]int // the steps that judge at a stage
	crew  crew
}

// step is a Step with what the chain knows of it.
type step struct {
	Step
	strangers     bool
	unconditional bool
	// overrun counts the calls that overran their time and still go on.
	overrun atomic.Int32
}

// NewChain makes a chain of steps. It fails if a filter has no stage, or a rule
// that no stage of its filter could answer.
func NewChain(name string, steps []Step, o ChainOptions) (*Chain, error) {
	if o.Deadline == 0 {
		o.Deadline = DefaultDeadline
	}
	if o.Deadline < 0 {
		return nil, fmt.Errorf("chain %q: deadline %v is negative", name, o.Deadline)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Chain{name: name, o: o, steps: make([]step, len(steps))}
	for i, s := range steps {
		c.steps[i].Step = s
		if err := c.place(i); err != nil {
			return nil, fmt.Errorf("filter %q: %w", s.Name, err)
		}
	}
	return c, nil
}

func (c *Chain) place(i int) error {
	s := &c.steps[i]
	if s.Timeout == 0 {
		s.Timeout = DefaultTimeout
	}
	if s.Timeout < 0 {
		return fmt.Errorf("timeout %v is negative", s.Timeout)
	}
	if s.When == nil {
		s.When, s.unconditional = rules.Always(), true
	}
	s.strangers = TraitsOf(s.Filter).Strangers
	all := StagesOf(s.Filter)
	if len(all) == 0 {
		return errors.New("it judges at no stage")
	}
	placed := false
	for _, stage := range all {
		if int(stage) >= Stages {
			return fmt.Errorf("it judges at stage %d, which there is not", stage)
		}
		if Stage(s.When.Since()) > stage {
			continue
		}
		if at := c.at[stage]; len(at) == 0 || at[len(at)-1] != i { // told once
			c.at[stage] = append(at, i)
		}
		placed = true
	}
	if !placed {
		return fmt.Errorf("its rule %q asks for what is known only at the %v stage, when it no longer judges", s.When, Stage(s.When.Since()))
	}
	return nil
}

// Name is the chain's name in the configuration.
func (c *Chain) Name() string { return c.name }

// Steps are the chain's filters, in order.
func (c *Chain) Steps() []Step {
	all := make([]Step, len(c.steps))
	for i := range c.steps {
		all[i] = c.steps[i].Step
	}
	return all
}

// JudgesAt reports whether a filter of the chain judges at a stage.
func (c *Chain) JudgesAt(s Stage) bool { return len(c.at[s]) > 0 }

// Close closes the filters that hold something open. It is for the owner of
// the chain, after the last session; the chains of a Generation are closed with
// it.
func (c *Chain) Close() error { return closeFilters(c) }

// closeFilters closes the filters of chains, one that stands in several places
// once, and lets the chains' workers go.
func closeFilters(chains ...*Chain) error {
	var errs []error
	closed := map[any]bool{}
	for _, c := range chains {
		c.crew.dismiss()
		for i := range c.steps {
			f := c.steps[i].Filter
			closer, ok := f.(io.Closer)
			if !ok {
				continue
			}
			if reflect.ValueOf(f).Comparable() {
				if closed[f] {
					continue
				}
				closed[f] = true
			}
			errs = append(errs, c.closing(c.steps[i].Name, closer))
		}
	}
	return errors.Join(errs...)
}

func (c *Chain) closing(filter string, f io.Closer) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = c.panicked(filter, "close", p)
		}
	}()
	if err = f.Close(); err != nil {
		err = fmt.Errorf("closing filter %q: %w", filter, err)
	}
	return err
}

// StagesOf are the stages at which a filter judges: those it tells, or for one
// that is its own instance, those whose interface it has.
func StagesOf(f Filter) []Stage {
	if t := TraitsOf(f).Stages; t != nil {
		return t
	}
	var all []Stage
	for stage, has := range stageInterfaces {
		if has(f) {
			all = append(all, Stage(stage))
		}
	}
	return all
}

// TraitsOf are the filter's traits.
func TraitsOf(f Filter) Traits {
	if t, ok := f.(Traited); ok {
		return t.Traits()
	}
	return Traits{}
}

var stageInterfaces = [Stages]func(any) bool{
	AtConnect:   func(f any) bool { _, ok := f.(Connecter); return ok },
	AtHelo:      func(f any) bool { _, ok := f.(Heloer); return ok },
	AtSender:    func(f any) bool { _, ok := f.(Senderer); return ok },
	AtRecipient: func(f any) bool { _, ok := f.(Recipienter); return ok },
	AtMessage:   func(f any) bool { _, ok := f.(Messager); return ok },
	AtDelivery:  func(f any) bool { _, ok := f.(Deliverer); return ok },
}

// parseAddr reads an address into an AddrPort with port 0.
func parseAddr(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(s)
	return netip.AddrPortFrom(a, 0), err
}
