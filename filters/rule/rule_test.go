package rule

import (
	"context"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

func decode(text string) pipeline.Decode {
	return func(into any) error {
		return toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(into)
	}
}

func run(t *testing.T, config string, e envelope.Envelope, s *pipeline.Session) *pipeline.Outcome {
	t.Helper()
	f, err := newFilter(pipeline.Env{}, decode(config))
	if err != nil {
		t.Fatal(err)
	}
	c, err := pipeline.NewChain("test", []pipeline.Step{{Name: "policy", Filter: f}}, pipeline.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tx := &pipeline.Transaction{ID: "t", Session: s, Envelope: e}
	o := c.Run(context.Background(), tx, message.FromString("Subject: Lottery!\n\nhello\n"))
	o.Release()
	return o
}

func TestRules(t *testing.T) {
	stranger := &pipeline.Session{Standing: pipeline.Stranger}
	own := &pipeline.Session{Standing: pipeline.Local}
	const refuseB = `[[rule]]
when = '"b@y" in recipients'
each = true
action = "reject"
reply = "550 5.1.1 b is gone"
`
	for _, c := range []struct {
		name, config string
		session      *pipeline.Session
		to           []string
		answer       string
		stored       int
		reported     int
	}{
		{"no match", "[[rule]]\nwhen = 'size > 1 * MB'\naction = 'reject'\n", stranger, []string{"a@x"}, "250 2.0.0 ok", 1, 0},
		{"reject", "[[rule]]\nwhen = 'header(\"Subject\") startsWith \"Lottery\"'\naction = 'reject'\nreply = '554 5.7.1 no lotteries'\n", stranger, []string{"a@x"}, "554 5.7.1 no lotteries", 0, 0},
		{"defer", "[[rule]]\nwhen = 'true'\naction = 'defer'\nreply = '450 later'\n", stranger, []string{"a@x"}, "450 4.7.1 later", 0, 0},
		{"discard", "[[rule]]\nwhen = 'true'\naction = 'discard'\n", stranger, []string{"a@x"}, "250 2.0.0 ok", 0, 0},
		{"first match decides", "[[rule]]\nwhen = 'true'\naction = 'accept'\n[[rule]]\nwhen = 'true'\naction = 'reject'\n", stranger, []string{"a@x"}, "250 2.0.0 ok", 1, 0},
		{"one of two, own user", refuseB, own, []string{"a@x", "b@y"}, "250 2.0.0 ok", 1, 1},
		{"one of two, stranger", refuseB, stranger, []string{"a@x", "b@y"}, "550 5.1.1 refused for <b@y>: b is gone", 0, 0},
		{"both", refuseB, stranger, []string{"b@y", "b@y"}, "550 5.1.1 b is gone", 0, 0},
		{"nobody", "[[rule]]\nwhen = 'true'\naction = 'reject'\n", stranger, nil, "554 5.7.1 message refused", 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := run(t, c.config, envelope.To("s@z", c.to...), c.session)
			if o.Reply.SMTP() != c.answer || len(o.Outgoing) != c.stored || len(o.Refused) != c.reported {
				t.Errorf("%v, %d stored, %d reported; trace %+v", o.Reply, len(o.Outgoing), len(o.Refused), o.Trace)
			}
		})
	}
}

func TestRefusedConfigurations(t *testing.T) {
	for _, c := range []struct{ config, want string }{
		{"", "there is no rule"},
		{"[[rule]]\naction = 'reject'\n", "when is missing"},
		{"[[rule]]\nwhen = 'true'\naction = 'continue'\n", "action"},
		{"[[rule]]\nwhen = 'sise > 3'\naction = 'reject'\n", `did you mean "size"`},
		{"[[rule]]\nwhen = 'true'\naction = 'reject'\nreply = '451 later'\n", "is temporary"},
		{"[[rule]]\nwhen = 'true'\naction = 'reject'\nreply = 'no'\n", "write code"},
		{"[[rule]]\nwhen = 'true'\naction = 'reject'\nrepply = 'no'\n", "strict mode"},
	} {
		if _, err := newFilter(pipeline.Env{}, decode(c.config)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.config, err, c.want)
		}
	}
}
