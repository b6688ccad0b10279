package dkim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// The words for a result (RFC 8601 §2.7.1).
const (
	None      = "none"
	Pass      = "pass"
	Fail      = "fail"      // message or signature was changed
	Policy    = "policy"    // it may be genuine, but we do not take it
	Neutral   = "neutral"   // it makes no sense
	TempError = "temperror" // the DNS could not tell
	PermError = "permerror" // its key is missing or makes no sense
)

// Defaults of a Verifier.
const (
	DefaultSignatures = 10
	DefaultWait       = 10 * time.Second
	DefaultDrift      = time.Hour
)

// What a signature with l= is worth (RFC 6376 §8.2); see Verifier.Partial.
const (
	PartialUnsigned = "unsigned" // nothing
	PartialWhole    = "whole"    // it counts if it covers the whole body
	PartialAny      = "any"      // it counts, whatever follows
)

// Verifier verifies the signatures of messages. It must not be changed once it
// has been used, nor copied; it is safe for concurrent use.
type Verifier struct {
	// Look asks for the texts of a name; its errors are *net.DNSError.
	Look func(ctx context.Context, name string) ([]string, error)
	// Now is the clock for t= and x=; nil means time.Now.
	Now func() time.Time
	// Signatures is how many signatures of a message are judged, 0 means
	// DefaultSignatures: those of an author's domain first, then from the top.
	Signatures int
	// Partial is what a signature with l= is worth, "" means PartialUnsigned: its
	// result is Policy.
	Partial string
	// Wait bounds the questions for all keys of a message together, 0 means
	// DefaultWait.
	Wait time.Duration
	// Drift is how far in the future a signature may have been made, 0 means
	// DefaultDrift.
	Drift time.Duration

	records records
}

// Result is what one signature proves.
type Result struct {
	// Result is one of Pass to PermError, Reason says why where it is not Pass.
	Result, Reason string
	// Domain is d= and Selector s=, lower-case and as the DNS has them; they and
	// the rest are "" if they could not be read. Agent is i=.
	Domain, Selector, Agent string
	// Algorithm is a=, Value the beginning of b=.
	Algorithm, Value string
	// Testing is set if the key says that its owner is testing: a signature
	// that fails is to be taken as none (RFC 6376 §3.6.1).
	Testing bool
}

// AuthResult is the result as a finding for a chain.
func (r Result) AuthResult() pipeline.AuthResult {
	a := pipeline.AuthResult{Method: "dkim", Result: r.Result, Reason: r.Reason}
	for _, p := range [...]pipeline.Prop{
		{Name: "header.d", Value: r.Domain},
		{Name: "header.i", Value: r.Agent},
		{Name: "header.s", Value: r.Selector},
		{Name: "header.a", Value: r.Algorithm},
		{Name: "header.b", Value: r.Value},
	} {
		if p.Value != "" {
			a.Props = append(a.Props, p)
		}
	}
	return a
}

// String is the result in a few words, for a log.
func (r Result) String() string {
	s := r.Result
	if r.Domain != "" {
		s = r.Domain + " " + s
	}
	if r.Reason != "" {
		s += " (" + r.Reason + ")"
	}
	return s
}

// maxHead bounds the fields of a message whose signatures are judged, in bytes
// together.
const maxHead = message.DefaultMaxHead

// candidate is a signature of a message while it is judged.
type candidate struct {
	index  int // of the field
	parsed *signature
	err    error // of parsing
	key    *record
	keyErr error
	result Result
}

// Verify judges a message's signatures, each by itself: the results, in the
// order of the fields, and how many signatures there were. A message whose
// signatures are all passed over has none. An error is one of reading the
// message, or of a context that is done.
func (v *Verifier) Verify(ctx context.Context, m message.Message) (results []Result, seen int, err error) {
	h := m.Head()
	size := 0
	for i := range h.Len() {
		if h.Field(i).Is(FieldName) {
			seen++
		}
		size += len(h.Field(i).Text())
	}
	switch {
	case seen == 0:
		return nil, 0, nil
	case size > maxHead:
		return []Result{{Result: Neutral, Reason: fmt.Sprintf("header of more than %d bytes", maxHead)}}, seen, nil
	}
	all := v.candidates(h, seen)
	now := v.now()
	for _, c := range all {
		c.describe()
		v.preflight(c, now)
	}
	v.fetchKeys(ctx, all)
	if err := ctx.Err(); err != nil {
		return nil, seen, err
	}
	material := newMaterial(m)
	for _, c := range all {
		if err := c.judge(ctx, material, v.Partial); err != nil {
			return nil, seen, err
		}
		results = append(results, c.result)
	}
	return results, seen, nil
}

func (v *Verifier) now() time.Time {
	if v.Now == nil {
		return time.Now()
	}
	return v.Now()
}

// candidates are the signatures that are judged, from the top. Those of the
// author's domain come before others where there are too many: nobody can hide
// them under a heap of his own.
func (v *Verifier) candidates(h message.Head, seen int) (all []*candidate) {
	most := v.Signatures
	if most <= 0 {
		most = DefaultSignatures
	}
	var domains []string
	if seen > most {
		domains, _ = authors(h)
	}
	var others []*candidate
	for i := range h.Len() {
		f := h.Field(i)
		if !f.Is(FieldName) {
			continue
		}
		c := &candidate{index: i}
		c.parsed, c.err = parseSignature(f.Text(), f.Value())
		own := false
		for _, d := range domains {
			own = own || c.parsed.domain != "" && aligned(c.parsed.domain, d)
		}
		switch {
		case own && len(all) < most:
			all = append(all, c)
		case !own && len(others) < most:
			others = append(others, c)
		}
	}
	all = append(all, others[:min(len(others), most-len(all))]...)
	slices.SortFunc(all, func(a, b *candidate) int { return a.index - b.index })
	return all
}

// describe fills in what the result says of the signature.
func (c *candidate) describe() {
	s := c.parsed
	c.result = Result{Domain: s.domain, Selector: s.selector, Agent: s.agent, Algorithm: s.algorithm, Value: s.encoded}
}

func (c *candidate) is(result, format string, args ...any) {
	c.result.Result, c.result.Reason = result, reply.Clean(fmt.Sprintf(format, args...), maxReason)
}

// maxReason bounds a result's reason in bytes.
const maxReason = 200

// preflight judges what can be judged without the key.
func (v *Verifier) preflight(c *candidate, now time.Time) {
	drift := v.Drift
	if drift <= 0 {
		drift = DefaultDrift
	}
	s := c.parsed
	switch {
	case errors.Is(c.err, errAlgorithm):
		c.is(PermError, "%v", c.err)
	case c.err != nil:
		c.is(Neutral, "%v", c.err)
	case s.partial && v.Partial != PartialWhole && v.Partial != PartialAny:
		c.is(Policy, "l= leaves part of the body open")
	case !s.expires.IsZero() && now.After(s.expires):
		c.is(Policy, "signature expired")
	case s.made.After(now.Add(drift)):
		c.is(Policy, "signature is from the future")
	}
}

// fetchKeys asks for all keys at once, each once.
func (v *Verifier) fetchKeys(ctx context.Context, all []*candidate) {
	wait := v.Wait
	if wait <= 0 {
		wait = DefaultWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	names := map[string]bool{}
	for _, c := range all {
		if c.result.Result == "" {
			names[c.parsed.query()] = true
		}
	}
	got := v.ask(ctx, names)
	for _, c := range all {
		if c.result.Result != "" {
			continue
		}
		if a, ok := got[c.parsed.query()]; ok {
			c.key, c.keyErr = a.key, a.err
		} else {
			c.keyErr = temporary{errors.New("the key could not be looked up in time")}
		}
	}
}

// answer is what came of asking for a key.
type answer struct {
	name string
	key  *record
	err  error
}

// ask asks for keys until the context is done.
func (v *Verifier) ask(ctx context.Context, names map[string]bool) map[string]answer {
	got := make(map[string]answer, len(names))
	one := func(name string) answer {
		key, err := v.records.fetch(ctx, v.Look, name)
		return answer{name, key, err}
	}
	if len(names) == 1 { // nothing else is waited for
		for name := range names {
			got[name] = one(name)
		}
		return got
	}
	answers := make(chan answer, len(names))
	for name := range names {
		go func() { answers <- one(name) }()
	}
	for range names {
		select {
		case a := <-answers:
			got[a.name] = a
		case <-ctx.Done(): // who still asks finds room for the answer
		}
	}
	return got
}

// judge looks at the key, and at the message with it.
func (c *candidate) judge(ctx context.Context, m *material, partial string) error {
	if c.result.Result != "" {
		return nil
	}
	if c.keyErr == nil {
		c.result.Testing = c.key.testing
	}
	var later temporary
	s := c.parsed
	switch {
	case errors.As(c.keyErr, &later):
		c.is(TempError, "%v", c.keyErr)
	case errors.Is(c.keyErr, errShort) || errors.Is(c.keyErr, errLong):
		c.is(Policy, "%v", c.keyErr)
	case c.keyErr != nil:
		c.is(PermError, "%v", c.keyErr)
	case c.key.algorithm != s.algorithm:
		c.is(PermError, "key is of another kind than the signature")
	case c.key.strict && s.agentDomain != s.domain:
		c.is(PermError, "key does not let i= be below d=")
	default:
		return c.check(ctx, m, partial)
	}
	return nil
}

func (c *candidate) check(ctx context.Context, m *material, partial string) error {
	err := m.verify(ctx, c.parsed, c.index, c.key)
	var mismatch errMismatch
	switch {
	case err == nil:
		switch {
		case m.count("From") == 0:
			c.is(Policy, "there is no From field")
		case m.unsigned("From", c.parsed.signed) > 0:
			// RFC 6376 §8.15: a reader may be shown what nobody signed.
			c.is(Policy, "a From field is not signed")
		case c.parsed.partial && partial == PartialWhole && m.size[c.parsed.form()] != c.parsed.length:
			c.is(Policy, "l= leaves part of the body open")
		default:
			c.result.Result = Pass
		}
	case errors.As(err, &mismatch):
		c.is(Fail, "%v", err)
	case errors.Is(err, errBlank):
		c.is(Neutral, "%v", err)
	default:
		return fmt.Errorf("verifying the signature of %s: %w", c.parsed.domain, err)
	}
	return nil
}

// count is how many fields of a name there are.
func (t *material) count(name string) int {
	n := 0
	for _, f := range t.fields {
		if f.Is(name) {
			n++
		}
	}
	return n
}

// unsigned is how many fields of a name h= does not reach.
func (t *material) unsigned(name string, signed []string) int {
	n := t.count(name)
	for _, s := range signed {
		if strings.EqualFold(s, name) {
			n--
		}
	}
	return n
}
