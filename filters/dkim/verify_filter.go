package dkim

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// VerifyOptions are dkim-verify's part of the configuration; see
// DefaultVerifyOptions.
type VerifyOptions struct {
	AuthservID  string        `toml:"authserv_id" doc:"our name in the field Authentication-Results" unset:"hostname"`
	AlsoOurs    []string      `toml:"also_ours" doc:"further names under which only our own machines write results: a field that bears one is removed"`
	Signatures  int           `toml:"signatures" doc:"how many signatures of a message are judged at most"`
	Wait        time.Duration `toml:"wait" doc:"how long the keys of a message are waited for, all together"`
	Partial     string        `toml:"partial" doc:"what a signature with l= is worth, which leaves what follows in the body to anybody: unsigned (nothing), whole (it counts if it covers the whole body) or any (it counts, whatever follows)" oneof:"unsigned|whole|any"`
	Drift       time.Duration `toml:"drift" doc:"how far in the future a signature may have been made"`
	OnFail      string        `toml:"on_fail" doc:"what becomes of mail of whose signatures one fails and none passes" oneof:"continue|score|quarantine|reject"`
	OnMissing   string        `toml:"on_missing" doc:"what becomes of mail from a domain in always_signed that no signature of that domain proves" oneof:"continue|score|quarantine|reject"`
	OnTemporary string        `toml:"on_temporary" doc:"what becomes of mail whose keys the DNS could not tell, if no signature passes" oneof:"continue|defer"`
	// AlwaysSigned holds domains, each with all below it.
	AlwaysSigned []string `toml:"always_signed" doc:"domains, with all below them, whose mail is always signed"`
	FailScore    float64  `toml:"fail_score" doc:"the score of a failure with on_fail = \"score\""`
	MissingScore float64  `toml:"missing_score" doc:"the score of a missing signature with on_missing = \"score\""`
}

// DefaultVerifyOptions are the options as they are without a configuration.
func DefaultVerifyOptions() VerifyOptions {
	return VerifyOptions{
		Signatures: DefaultSignatures, Wait: DefaultWait, Drift: DefaultDrift, Partial: PartialUnsigned,
		OnFail: "continue", OnMissing: "continue", OnTemporary: "continue", FailScore: 2, MissingScore: 5,
	}
}

// scored is the action of a finding that only adds a score.
const scored = "score"

// VerifyFilter is dkim-verify. It does not change, is its own instance, and is
// safe for concurrent use.
type VerifyFilter struct {
	verifier     *Verifier
	id           string
	ours         []string
	always       []string
	onFail       policy
	onMissing    policy
	onTemporary  pipeline.Action
	failScore    float64
	missingScore float64
}

// policy is what becomes of a finding.
type policy struct {
	action pipeline.Action
	scored bool
}

func parsePolicy(key, word string) (policy, error) {
	switch word {
	case "", "continue":
		return policy{}, nil
	case scored:
		return policy{scored: true}, nil
	case "quarantine", "reject":
		a, _ := reply.ParseAction(word)
		return policy{action: a}, nil
	}
	return policy{}, oneOf(key, word, "continue", scored, "quarantine or reject")
}

// maxNames bounds the lists of an option.
const maxNames = 10_000

// maxScore bounds a score.
const maxScore = 1e6

// NewVerifyFilter makes a dkim-verify. It uses the environment's Resolver, Now
// and, if the options have no name for results, Host. Its errors say by a method Key which key they are about.
func NewVerifyFilter(env pipeline.Env, o VerifyOptions) (*VerifyFilter, error) {
	f := &VerifyFilter{failScore: o.FailScore, missingScore: o.MissingScore}
	f.verifier = &Verifier{Look: lookTXT(env.Resolver), Now: env.Now, Signatures: o.Signatures, Wait: o.Wait, Drift: o.Drift, Partial: o.Partial}
	if o.AuthservID == "" {
		o.AuthservID = env.Host
	}
	for _, check := range []func(VerifyOptions) error{f.setBounds, f.setNames, f.setPolicies} {
		if err := check(o); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// lookTXT is how keys are asked for; without a resolver nobody can tell.
func lookTXT(r pipeline.Resolver) texts {
	if r == nil {
		return func(context.Context, string) ([]string, error) { return nil, errors.New("there is no resolver") }
	}
	return r.LookupTXT
}

func (f *VerifyFilter) setBounds(o VerifyOptions) error {
	switch {
	case o.Signatures < 0 || o.Signatures > 100:
		return pipeline.AtKey("signatures", fmt.Errorf("%d: write a number from 1 to 100", o.Signatures))
	case o.Wait < 0:
		return pipeline.AtKey("wait", errors.New("it must not be negative"))
	case o.Drift < 0:
		return pipeline.AtKey("drift", errors.New("it must not be negative"))
	}
	for key, score := range map[string]float64{"fail_score": o.FailScore, "missing_score": o.MissingScore} {
		if math.IsNaN(score) || math.Abs(score) > maxScore {
			return pipeline.AtKey(key, fmt.Errorf("%v: write a number up to %v", score, maxScore))
		}
	}
	return nil
}

func (f *VerifyFilter) setNames(o VerifyOptions) error {
	if f.id = o.AuthservID; f.id == "" {
		return pipeline.AtKey("authserv_id", errors.New("it is missing: write our name for results"))
	}
	if len(f.id) > maxWord || reply.Clean(f.id, maxWord) != f.id || strings.ContainsAny(f.id, ` "\;()/`) {
		return pipeline.AtKey("authserv_id", fmt.Errorf("%q is no name: write one like mx.example.org", reply.Clean(f.id, 80)))
	}
	if len(o.AlsoOurs) > maxNames || len(o.AlwaysSigned) > maxNames {
		return fmt.Errorf("more than %d names in also_ours or always_signed", maxNames)
	}
	for i, name := range append([]string{f.id}, o.AlsoOurs...) {
		folded := strings.TrimRight(fold(name), ".")
		if folded == "" {
			return pipeline.AtKey(fmt.Sprintf("also_ours[%d]", i-1), errors.New("it is empty"))
		}
		f.ours = append(f.ours, folded)
	}
	for i, d := range o.AlwaysSigned {
		name, ok := asciiName(d)
		if !ok {
			return pipeline.AtKey(fmt.Sprintf("always_signed[%d]", i), fmt.Errorf("%q is no domain", reply.Clean(d, 80)))
		}
		f.always = append(f.always, name)
	}
	return nil
}

func (f *VerifyFilter) setPolicies(o VerifyOptions) (err error) {
	if f.onFail, err = parsePolicy("on_fail", o.OnFail); err != nil {
		return err
	}
	if f.onMissing, err = parsePolicy("on_missing", o.OnMissing); err != nil {
		return err
	}
	switch o.Partial {
	case "", PartialUnsigned, PartialWhole, PartialAny:
	default:
		return oneOf("partial", o.Partial, PartialUnsigned, PartialWhole, "or "+PartialAny)
	}
	switch o.OnTemporary {
	case "", "continue":
	case "defer":
		f.onTemporary = pipeline.Defer
	default:
		return oneOf("on_temporary", o.OnTemporary, "continue", "or defer")
	}
	return nil
}

// Traits of a filter that advises.
func (f *VerifyFilter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorContinues, Stages: []pipeline.Stage{pipeline.AtMessage}}
}

// Open returns the filter itself.
func (f *VerifyFilter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return f, nil
}

// Close does nothing.
func (f *VerifyFilter) Close() error { return nil }

// Message verifies the signatures. Whatever comes of that, results that claim
// to be ours are removed.
func (f *VerifyFilter) Message(ctx context.Context, tx *pipeline.Transaction, m message.Message) (pipeline.Verdict, error) {
	results, seen, err := f.verifier.Verify(ctx, m)
	if ctx.Err() != nil {
		return pipeline.Verdict{}, ctx.Err()
	}
	if err != nil {
		results = []Result{{Result: TempError, Reason: "the message could not be read"}}
	}
	v := f.decide(m, results)
	for _, r := range results {
		v.Results = append(v.Results, r.AuthResult())
	}
	if len(results) == 0 {
		v.Results = []pipeline.AuthResult{{Method: "dkim", Result: None}}
	}
	edits, removed := forged(m.Head(), f.ours)
	all := slices.Concat(tx.Results, v.Results)
	v.Edits = append(edits, pipeline.Field(message.FieldEdit{Op: message.Add, Name: ResultsField, Value: FormatResults(f.id, all)}))
	v.Reason = reason(v.Reason, results, seen, removed, err)
	return v, nil
}

// reason is what the log hears.
func reason(decided string, results []Result, seen, removed int, err error) string {
	var all []string
	if decided != "" {
		all = append(all, decided)
	}
	for _, r := range results {
		all = append(all, r.String())
	}
	if seen == 0 {
		all = append(all, "no signature")
	}
	if more := seen - len(results); more > 0 {
		all = append(all, fmt.Sprintf("%d more signatures not judged", more))
	}
	if removed > 0 {
		all = append(all, fmt.Sprintf("%d results that claimed to be ours removed", removed))
	}
	if err != nil {
		all = append(all, err.Error())
	}
	return strings.Join(all, ", ")
}

// tally is what a message's results come to.
type tally struct {
	passed, failed, later bool
	// missing is an author's domain that always signs and did not; unknown is
	// set if the DNS could have said otherwise.
	missing string
	unknown bool
}

func (f *VerifyFilter) count(m message.Message, results []Result) (t tally) {
	for _, r := range results {
		t.passed = t.passed || r.Result == Pass
		t.failed = t.failed || r.Result == Fail && !r.Testing
		t.later = t.later || r.Result == TempError
	}
	if len(f.always) == 0 {
		return t
	}
	domains, _ := authors(m.Head())
	for _, d := range domains {
		if !f.alwaysSigns(d) {
			continue
		}
		proved, later := false, false
		for _, r := range results {
			near := r.Domain == "" || aligned(r.Domain, d)
			proved = proved || r.Result == Pass && near
			later = later || r.Result == TempError && near
		}
		if !proved {
			t.missing, t.unknown = d, later
			if !later {
				return t
			}
		}
	}
	return t
}

func (f *VerifyFilter) alwaysSigns(domain string) bool {
	for _, a := range f.always {
		if isBelow(domain, a) {
			return true
		}
	}
	return false
}

// Replies of RFC 7372 §3.1.
const (
	codeRefused    = 550
	noValidDetail  = 20 // X.7.20: no passing signature
	noAuthorDetail = 22 // X.7.22: none of the author's domain
)

// decide is the verdict on a message with these results.
func (f *VerifyFilter) decide(m message.Message, results []Result) (v pipeline.Verdict) {
	t := f.count(m, results)
	finding := func(name string, score float64, p policy) {
		s := pipeline.Symbol{Name: name}
		if p.scored {
			s.Score = score
		}
		v.Symbols = append(v.Symbols, s)
	}
	decide := func(a pipeline.Action, r reply.Reply, why string) {
		if v.Action == pipeline.Continue && a != pipeline.Continue {
			v.Action, v.Reply, v.Reason = a, r, why
		}
	}
	switch {
	case t.missing != "" && t.unknown:
		finding("DKIM_TEMPORARY", 0, policy{})
		if f.onMissing.action != pipeline.Continue {
			decide(pipeline.Defer, later(), "the DNS could not tell whether "+t.missing+" signed it")
		}
	case t.missing != "":
		finding("DKIM_MISSING", f.missingScore, f.onMissing)
		decide(f.onMissing.action, reply.Make(codeRefused, reply.Enhanced{Subject: 7, Detail: noAuthorDetail}, "mail from "+t.missing+" needs a valid DKIM signature of that domain"), t.missing+" always signs and did not sign this")
	}
	switch {
	case t.passed:
		finding("DKIM_PASS", 0, policy{})
	case t.failed:
		finding("DKIM_FAIL", f.failScore, f.onFail)
		decide(f.onFail.action, reply.Make(codeRefused, reply.Enhanced{Subject: 7, Detail: noValidDetail}, "no DKIM signature of this message is valid"), "a signature fails and none passes")
	case t.later:
		if t.missing == "" {
			finding("DKIM_TEMPORARY", 0, policy{})
		}
		decide(f.onTemporary, later(), "the DNS could not tell the keys")
	case len(results) == 0:
		finding("DKIM_NONE", 0, policy{})
	}
	return v
}

func later() reply.Reply {
	return reply.Make(451, reply.Enhanced{Subject: 7, Detail: 5}, "the DKIM keys could not be looked up, please try again later")
}
