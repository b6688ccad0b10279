package spamassassin

import (
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/servers/serverstest"
)

// The suite that every filter passes, with each level.
func TestSuite(t *testing.T) {
	s := serverstest.Start(t, "unix", honest)
	address := "address = [\"" + s.Address + "\"]\n"
	const bad = "X-Spam-Flag: NO\nSubject: x\n\nGTUBE\n"
	const marks = "X-Spam-Flag: YES\nX-Spam-Score: 1000\nX-Spam-Status: Yes, score=1000 required=5 by=spamassassin\n\ttests=GTUBE,MISSING_DATE\n"
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: address,
		Cases: []filtertest.Case{
			{Name: "ham", WantReason: "score 0.5, below 5: MISSING_DATE"},
			{Name: "spam", Message: bad, WantMessage: marks + "Subject: x\n\nGTUBE\n", WantReason: "score 1000, spam from 5: GTUBE MISSING_DATE"},
			{Name: "a level of its own", Config: address + "header = 1001\nfields = \"all\"", Message: bad, WantMessage: "X-Spam-Score: 1000\nX-Spam-Status: No, score=1000 required=1001 by=spamassassin\n\ttests=GTUBE,MISSING_DATE\nSubject: x\n\nGTUBE\n"},
			{Name: "subject", Config: address + "fields = \"none\"\nsubject = 10", Message: "Subject: x\n\nGTUBE\n", WantMessage: "Subject: [SPAM] x\n\nGTUBE\n"},
			{Name: "quarantine", Config: address + "fields = \"none\"\nquarantine = 10", Message: bad, WantAction: pipeline.Quarantine},
			{Name: "refuse", Config: address + "quarantine = 10\nrefuse = 20\ntext = \"no\"", Message: bad, WantAction: pipeline.Reject, WantReply: "554 5.7.1 no", WantEnvelopes: []string{}},
			{Name: "too large", Config: address + "max = 10", Message: bad, WantMessage: "Subject: x\n\nGTUBE\n", WantReason: "not scored: larger than 10 bytes"},
			{Name: "its beginning", Config: address + "max = 30\nlarge = \"prefix\"\nfields = \"none\"", Message: "Subject: x\n\n" + strings.Repeat("x", 50) + "GTUBE\n", WantReason: "score 0.5, below 5, of its first 30 bytes"},
			{Name: "no spamd", Config: "address = [\"unix:/nonexistent/spamd\"]", WantErr: "not scored: unix:/nonexistent/spamd"},
		},
	})
}

// What spamd is asked: the message with its sender, for whom it is to be.
func TestQuestion(t *testing.T) {
	got := make(chan query, 1)
	s := serverstest.Start(t, "tcp", func(c *serverstest.Conn) {
		if q, ok := read(c); ok {
			got <- q
			c.Say(says("False ; 0 / 5.0", ""))
		}
	})
	for _, c := range []struct {
		config string
		to     []string
		user   string
	}{
		{"", nil, ""},
		{"user = \"recipient\"", []string{"joe@example.org"}, "joe@example.org"},
		{"user = \"recipient\"", []string{"joe@example.org", "jim@example.org"}, ""},
		{"user = \"recipient\"", []string{"j o@example.org"}, ""},
		{"user = \"filter\"", []string{"joe@example.org", "jim@example.org"}, "filter"},
	} {
		v := filtertest.Must(t, newFilter(t, c.config, s.Address), "Subject: x\n\nbody\n", c.to...)
		q := <-got
		if q.command != "SYMBOLS SPAMC/1.5" || q.user != c.user || q.body != "Return-Path: <a@example.net>\nSubject: x\n\nbody\n" || len(v.Symbols) != 1 {
			t.Errorf("%v: %+v, %+v", c, q, v)
		}
	}
	filtertest.Must(t, newFilter(t, "max = 14\nlarge = \"prefix\"", s.Address), "Subject: x\n\nbody\n")
	if q := <-got; q.body != "Return-Path: <a@example.net>\nSubject: x\n\nbo" {
		t.Errorf("%q", q.body)
	}
	filtertest.Must(t, newFilter(t, "", s.Address), " folded\nSubject: x\n\nbody\n")
	if q := <-got; !strings.Contains(q.body, "Return-Path: <a@example.net>\n") || !strings.HasPrefix(q.body, " folded\n") {
		t.Errorf("%q", q.body)
	}
}

// Each mistake in the configuration is told with its key.
func TestConfig(t *testing.T) {
	for config, want := range map[string]string{
		`address = ["/run/spamd"]`:   "address[0]",
		`connections = 1001`:         "connections",
		`max = -1`:                   "max",
		`large = "some"`:             "large",
		`user = "a b"`:               "user",
		"user = \"a\\r\\nb\"":        "user",
		`refuse = nan`:               "refuse",
		"quarantine = 3\nrefuse = 2": "quarantine",
		`fields = "x"`:               "fields",
	} {
		_, err := Kind().New(filtertest.Env(t), filtertest.Decode(config))
		k, ok := err.(interface{ Key() string })
		if !ok || k.Key() != want {
			t.Errorf("%s: %v", config, err)
		}
	}
	if f, err := New(pipeline.Env{}, Options{}); err != nil || f.o.Max != defaultMax || f.o.Fields != "spam" {
		t.Error(err)
	}
}

// FuzzAnswer: what is not refused is one answer, within bounds and clean.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{"", good, says("False ; -0.1 / 5.0", ""), says("True ; 9 / 5", "A,B\r\n"), "SPAMD/1.1 79 EX_TIMEOUT\r\n\r\n", strings.Replace(good, "17", "16", 1)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b)
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(c rune) bool { return c < ' ' || c > '~' }) {
				t.Errorf("%q", err)
			}
			return
		}
		if !strings.HasPrefix(string(b), "SPAMD/") || len(a.rules) > maxRules || !(a.score >= -1e6 && a.score <= 1e6 && a.required >= -1e6 && a.required <= 1e6) {
			t.Errorf("%q is %+v", b, a)
		}
		for _, r := range a.rules {
			if r == "" || strings.Trim(r, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") != "" {
				t.Errorf("rule %q", r)
			}
		}
		if _, err := parseAnswer(append(append([]byte{}, b...), b...)); err == nil {
			t.Errorf("%q may come twice", b)
		}
	})
}
