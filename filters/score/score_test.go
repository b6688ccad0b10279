package score

import (
	"context"
	"math"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
)

const points = "[[rule]]\nwhen = 'header(\"Subject\") == \"buy\"'\nscore = 7.5\nsymbol = \"BUY\"\n[[rule]]\nwhen = 'header(\"List-Id\") != \"\"'\nscore = -3\n"

// The suite that every filter passes, and each level.
func TestSuite(t *testing.T) {
	const buy = "Subject: buy\n\nbody\n"
	const marks = "X-Spam-Flag: YES\nX-Spam-Score: 7.5\nX-Spam-Status: Yes, score=7.5 required=5 by=score\n\ttests=BUY=7.5\n"
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: points,
		Cases: []filtertest.Case{
			{Name: "no points", Message: "Subject: x\n\nbody\n", WantReason: "score 0, below 5"},
			{Name: "marked", Message: buy, WantReason: "score 7.5, spam from 5: BUY=7.5", WantMessage: marks + buy},
			{
				Name: "forged marks", Message: "x-spam-flag: NO\nX-Spam-Status : No\nSubject: buy\n\nbody\n", WantMessage: marks + buy,
				WantEdits: []string{"remove X-Spam-Flag", "remove X-Spam-Status", "add X-Spam-Status: Yes, score=7.5 required=5 by=score tests=BUY=7.5", "add X-Spam-Score: 7.5", "add X-Spam-Flag: YES"},
			},
			{Name: "forged marks of ham", Message: "X-Spam-Score: -100\nSubject: x\n\nbody\n", WantMessage: "Subject: x\n\nbody\n"},
			{Name: "speaks for it", Message: "Subject: buy\nList-Id: <l>\n\nbody\n", WantReason: "score 4.5, below 5: BUY=7.5 RULE_2=-3"},
			{Name: "all", Config: "fields = \"all\"\n", Message: "Subject: x\n\n", WantMessage: "X-Spam-Score: 0\nX-Spam-Status: No, score=0 required=5 by=score\n\ttests=none\nSubject: x\n\n"},
			{Name: "subject", Config: "fields = \"none\"\nsubject = 7\n" + points, Message: buy, WantMessage: "Subject: [SPAM] buy\n\nbody\n"},
			{Name: "quarantine", Config: "fields = \"none\"\nquarantine = 7\nrefuse = 8\n" + points, Message: buy, WantAction: pipeline.Quarantine, WantReason: "score 7.5, spam from 5: BUY=7.5"},
			{Name: "refuse", Config: "refuse = 7.5\ntext = \"no shops\"\n" + points, Message: buy, WantAction: pipeline.Reject, WantReply: "554 5.7.1 no shops", WantEnvelopes: []string{}},
			{Name: "a rule that cannot be answered", Config: "[[rule]]\nwhen = '1 % (size - size) > 0'\nscore = 1\n", WantErr: "rule 1: "},
		},
	})
}

func newFilter(t testing.TB, config string) *Filter {
	t.Helper()
	f, err := Kind().New(filtertest.Env(t), filtertest.Decode(config))
	if err != nil {
		t.Fatal(err)
	}
	return f.(*Filter)
}

// What filters found counts by weight, factor and once, and results of
// authentication by rules; evil numbers and names do no harm.
func TestSum(t *testing.T) {
	const results = "[[rule]]\nwhen = '\"dkim=fail\" in results'\nscore = 2.5\nsymbol = \"DKIM_FAIL\"\n[[rule]]\nwhen = '\"DKIM_FAIL\" in symbols'\nscore = 100\n[[rule]]\nwhen = '\"SA_X\" in symbols and score > 5'\nscore = 0.25\nsymbol = \"X\"\n"
	for _, c := range []struct {
		config  string
		symbols []pipeline.Symbol
		reason  string
	}{
		{"", nil, "score 0, below 5"},
		{"", []pipeline.Symbol{{Name: "A", Score: 0.7}, {Name: "B", Score: 4.1}, {Name: "C", Score: 0.2}, {Name: "D"}}, "score 5, spam from 5: B=4.1 A=0.7 C=0.2"},
		{"[weight]\nA = 3\nD = 1\n[factor]\nB = 0.5\nA = 9\n", []pipeline.Symbol{{Name: "A", Score: 0.7}, {Name: "B", Score: 4}, {Name: "D"}}, "score 6, spam from 5: A=3 B=2 D=1"},
		{"", []pipeline.Symbol{{Name: "A", Score: 1}, {Name: "A", Score: 4}, {Name: "A", Score: 2}}, "score 4, below 5: A=4"},
		{results, []pipeline.Symbol{{Name: "SA_X"}, {Name: "SPAMASSASSIN", Score: 5.5}}, "score 8.25, spam from 5: SPAMASSASSIN=5.5 DKIM_FAIL=2.5 X=0.25"},
		{"", []pipeline.Symbol{{Name: "A", Score: math.MaxFloat64}, {Name: "B", Score: -math.MaxFloat64}}, "score 0, below 5: A=1000000 B=-1000000"},
		{"", []pipeline.Symbol{{Name: "a\r\nX: \xff", Score: 6}}, "score 6, spam from 5: a__X___=6"},
	} {
		tx := &pipeline.Transaction{
			Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", "r@example.org"), Active: []int{0}, Symbols: c.symbols,
			Results: []pipeline.AuthResult{{Method: "spf", Result: "pass"}, {Method: "dkim", Result: "fail"}},
		}
		v, err := newFilter(t, c.config).Message(context.Background(), tx, message.FromString("Subject: x\n\n"))
		if err != nil || v.Reason != c.reason {
			t.Errorf("%v: %q, %v; want %q", c.symbols, v.Reason, err, c.reason)
		}
		for _, e := range v.Edits {
			if err := e.Field.Check(); err != nil {
				t.Error(err)
			}
		}
	}
}

// The chain brings what earlier filters found, at every stage, and shows rules
// behind what this one gave.
func TestChain(t *testing.T) {
	f := newFilter(t, "refuse = 6\n"+points)
	c, err := pipeline.NewChain("test", []pipeline.Step{{Name: "finder", Filter: finder{}}, {Name: Name, Filter: f}}, pipeline.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for text, want := range map[string]string{"Subject: x\n\n": "250", "Subject: buy\n\n": "554 5.7.1"} {
		tx := &pipeline.Transaction{Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", "r@example.org")}
		o := c.Run(context.Background(), tx, message.FromString(text))
		if !strings.HasPrefix(o.Reply.SMTP(), want) {
			t.Errorf("%q: %s, %v", text, o.Reply.SMTP(), o.Trace)
		}
		if last := o.Trace[len(o.Trace)-1]; !strings.Contains(last.Reason, "EARLY=-2") || !strings.Contains(last.Reason, "SEEN=1") {
			t.Errorf("%q: %s", text, last.Reason)
		}
		o.Release()
	}
}

// finder finds something at two stages.
type finder struct{}

func (finder) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return finder{}, nil
}
func (finder) Close() error { return nil }
func (finder) Traits() pipeline.Traits {
	return pipeline.Traits{Stages: []pipeline.Stage{pipeline.AtConnect, pipeline.AtMessage}}
}

func (finder) Connect(context.Context, *pipeline.Session) (pipeline.Verdict, error) {
	return pipeline.Verdict{Symbols: []pipeline.Symbol{{Name: "EARLY", Score: -2}}}, nil
}

func (finder) Message(context.Context, *pipeline.Transaction, message.Message) (pipeline.Verdict, error) {
	return pipeline.Verdict{Symbols: []pipeline.Symbol{{Name: "SEEN", Score: 1}}}, nil
}

// Each mistake in the configuration is told with its key.
func TestConfig(t *testing.T) {
	for config, want := range map[string]string{
		"header = nan":                                  "header: NaN: write a number",
		"quarantine = 5\nrefuse = 4":                    "quarantine: nothing would be held",
		"fields = \"some\"":                             "fields",
		"tag = \"\\n\"":                                 "tag",
		"[weight]\nA = inf":                             "weight.A",
		"[factor]\nB = 2_000_000":                       "factor.B",
		"[[rule]]\nscore = 1":                           "rule[0].when: it is missing",
		"[[rule]]\nwhen = 'siz > 1'":                    "rule[0].when",
		points + "[[rule]]\nwhen='true'\nscore=inf":     "rule[2].score",
		"[[rule]]\nwhen='true'\nsymbol=\"a b\"":         "rule[0].symbol",
		strings.Repeat("[[rule]]\nwhen='true'\n", 1001): "rule[1000]: more than 1000 rules",
	} {
		_, err := Kind().New(filtertest.Env(t), filtertest.Decode(config))
		k, ok := err.(interface{ Key() string })
		if !ok || !strings.HasPrefix(k.Key()+": "+err.Error(), want) {
			t.Errorf("%.60s: %v", config, err)
		}
	}
}

// BenchmarkScore is a message with 60 symbols and 20 rules.
func BenchmarkScore(b *testing.B) {
	var config strings.Builder
	for range 20 {
		config.WriteString("[[rule]]\nwhen = '\"dkim=fail\" in results'\nscore = 0.1\n")
	}
	f := newFilter(b, config.String())
	tx := &pipeline.Transaction{Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", "r@example.org"), Active: []int{0}, Results: []pipeline.AuthResult{{Method: "dkim", Result: "fail"}}}
	for i := range 60 {
		tx.Symbols = append(tx.Symbols, pipeline.Symbol{Name: "SYMBOL_" + strings.Repeat("X", i), Score: 0.1})
	}
	m := message.FromString("Subject: x\n\nbody\n")
	b.ReportAllocs()
	for b.Loop() {
		if v, err := f.Message(context.Background(), tx, m); err != nil || v.Edits == nil {
			b.Fatal(err)
		}
	}
}
