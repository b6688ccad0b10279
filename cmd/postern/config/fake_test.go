package config

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/user"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/rules"
)

// The filters of the tests: each is its own instance and does nothing.

type fake struct {
	traits pipeline.Traits
	closed *int
}

func (f *fake) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return f, nil }
func (f *fake) Traits() pipeline.Traits                                            { return f.traits }

func (f *fake) Close() error {
	if f.closed != nil {
		*f.closed++
	}
	return nil
}

type messager struct{ fake }

func (*messager) Message(context.Context, *pipeline.Transaction, message.Message) (pipeline.Verdict, error) {
	return pipeline.Verdict{}, nil
}

type recipienter struct{ fake }

func (*recipienter) Recipient(context.Context, *pipeline.Transaction, envelope.Recipient) (pipeline.Verdict, error) {
	return pipeline.Verdict{}, nil
}

type deliverer struct{ fake }

func (*deliverer) Deliver(context.Context, *pipeline.Delivery, message.Message) (pipeline.Verdict, error) {
	return pipeline.Verdict{}, nil
}

type scanOptions struct {
	Address  string         `toml:"address" doc:"where the scanner listens"`
	Wait     time.Duration  `toml:"wait" doc:"how long to wait for it"`
	Max      int64          `toml:"max" unit:"bytes" doc:"the longest message that is scanned"`
	Nets     []netip.Prefix `toml:"nets" doc:"networks that are not scanned"`
	Weight   float64        `toml:"weight" doc:"the score of a find"`
	Database string         `toml:"database" path:"file" doc:"signatures of our own"`
	Level    uint8          `toml:"level" doc:"how deep to look"`
	Word     string         `toml:"word" oneof:"fast|thorough" doc:"how to look"`
}

type tapOptions struct {
	Rules []string `toml:"rules" doc:"whom to tap, as in control/taps" unset:"control/taps"`
	Rule  []struct {
		To   string `toml:"to" doc:"an expression"`
		Copy any    `toml:"copy" doc:"one address or several"`
	} `toml:"rule" doc:"rules as tables"`
	All bool `toml:"all" doc:"a copy for each rule that matches"`
}

type policyOptions struct {
	Rules  []policyRule      `toml:"rule" doc:"the rules"`
	Labels map[string]string `toml:"labels" doc:"names of domains"`
}

type policyRule struct {
	When   string `toml:"when" doc:"the condition"`
	Action string `toml:"action" doc:"what to do"`
}

// keyError is an error of a filter that knows its key.
type keyError struct {
	key string
	error
}

func (e keyError) Key() string { return e.key }

// newScan, and the like, are what the tests' kinds do. Each that is made
// appends what it was made from.
type makes struct {
	made   []any
	closed int
}

func (m *makes) base(traits pipeline.Traits, o any) fake {
	m.made = append(m.made, o)
	return fake{traits: traits, closed: &m.closed}
}

func (m *makes) scan(_ pipeline.Env, decode pipeline.Decode) (pipeline.Filter, error) {
	o := scanOptions{Address: "unix:/run/scan", Wait: 3 * time.Second, Max: 50 << 20}
	if err := decode(&o); err != nil {
		return nil, fmt.Errorf("scan: %w", err)
	}
	return &messager{m.base(pipeline.Traits{Always: true}, o)}, nil
}

func (m *makes) tap(_ pipeline.Env, decode pipeline.Decode) (pipeline.Filter, error) {
	var o tapOptions
	if err := decode(&o); err != nil {
		return nil, err
	}
	if len(o.Rules)+len(o.Rule) == 0 {
		return nil, errors.New("tap without rules")
	}
	for i, r := range o.Rules {
		if _, err := rules.ParseTap(r); err != nil {
			return nil, keyError{fmt.Sprintf("rules[%d]", i), err}
		}
	}
	return &messager{m.base(pipeline.Traits{}, o)}, nil
}

func (m *makes) policy(_ pipeline.Env, decode pipeline.Decode) (pipeline.Filter, error) {
	var o policyOptions
	if err := decode(&o); err != nil {
		return nil, err
	}
	for i, r := range o.Rules {
		if _, err := rules.Compile(pipeline.Facts(), r.When); err != nil {
			return nil, keyError{fmt.Sprintf("rule[%d].when", i), err}
		}
	}
	return &messager{m.base(pipeline.Traits{}, o)}, nil
}

func (m *makes) kinds() []pipeline.Kind {
	return []pipeline.Kind{
		{Name: "scan", New: m.scan},
		{Name: "tap", New: m.tap},
		{Name: "policy", New: m.policy},
		{Name: "greylist", New: func(pipeline.Env, pipeline.Decode) (pipeline.Filter, error) {
			return &recipienter{m.base(pipeline.Traits{OnError: pipeline.ErrorContinues, Strangers: true}, nil)}, nil
		}},
		{Name: "dkim-sign", New: func(pipeline.Env, pipeline.Decode) (pipeline.Filter, error) {
			return &deliverer{m.base(pipeline.Traits{}, nil)}, nil
		}},
		{Name: "panics", New: func(pipeline.Env, pipeline.Decode) (pipeline.Filter, error) { panic("a bug\x1b[31m") }},
		{Name: "idle", New: func(pipeline.Env, pipeline.Decode) (pipeline.Filter, error) { return &fake{}, nil }},
		{Name: "nothing", New: func(pipeline.Env, pipeline.Decode) (pipeline.Filter, error) { return nil, nil }},
		{Name: "refuses", New: func(pipeline.Env, pipeline.Decode) (pipeline.Filter, error) {
			return nil, errors.New("no such\r\nserver\x00")
		}},
		{Name: "wrong", New: func(_ pipeline.Env, decode pipeline.Decode) (pipeline.Filter, error) {
			return nil, decode(tapOptions{})
		}},
	}
}

// options are surroundings that are the same everywhere.
func (m *makes) options() Options {
	return Options{
		Kinds: m.kinds(),
		LookupUser: func(name string) (uint32, error) {
			switch name {
			case "root":
				return 0, nil
			case "qmaild":
				return 7791, nil
			case "broken":
				return 0, errors.New("directory server is down")
			}
			return 0, user.UnknownUserError(name)
		},
		Hostname: func() (string, error) { return "box.example.net", nil },
		Shims:    []string{"testdata/shim", "testdata/missing"},
		Control:  "testdata/no-such-directory",
	}
}
