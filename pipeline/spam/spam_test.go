package spam

import (
	"math"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

func at(f float64) *float64 { return &f }

// What becomes of a message by its score, sums of tenths included.
func TestLevels(t *testing.T) {
	l := Levels{Header: at(1), Quarantine: at(5), Refuse: at(10), Text: "no, thank you"}
	if key, err := l.Check(); err != nil {
		t.Fatal(key, err)
	}
	var tenths float64
	for range 50 {
		tenths += 0.1
	}
	for _, c := range []struct {
		score  float64
		header bool
		action reply.Action
	}{{-3, false, reply.Continue}, {0.7 + 0.1 + 0.2, true, reply.Continue}, {4.99, true, reply.Continue}, {tenths, true, reply.Quarantine}, {10, true, reply.Reject}, {1e5, true, reply.Reject}} {
		action, r := l.Action(c.score)
		if action != c.action || Reached(c.score, l.Header) != c.header || action == reply.Reject && r.SMTP() != "554 5.7.1 no, thank you" {
			t.Errorf("%v: %v %v", c.score, action, r)
		}
	}
	if a, _ := (&Levels{}).Action(1e6); a != reply.Continue || Reached(1e6, nil) {
		t.Error("without levels nothing is reached")
	}
	if r := (&Levels{}).Refusal(); r.Text != defaultText {
		t.Error(r)
	}
}

// Mistakes are told with their keys.
func TestCheck(t *testing.T) {
	for want, l := range map[string]Levels{
		"header": {Header: at(math.NaN())}, "subject": {Subject: at(math.Inf(1))}, "refuse": {Refuse: at(2 * MaxScore)},
		"quarantine": {Quarantine: at(5), Refuse: at(5)}, "text": {Text: "a\nb"},
	} {
		if key, err := l.Check(); key != want || err == nil {
			t.Errorf("%s: %s, %v", want, key, err)
		}
	}
	for want, m := range map[string]Marks{"fields": {Fields: "some"}, "field": {Field: "X:Spam"}, "tag": {Tag: "a\nb"}} {
		if key, err := m.Check(); key != want || err == nil {
			t.Errorf("%s: %s, %v", want, key, err)
		}
	}
	good := Asking{Connections: 1, Most: 1, Max: 1, Large: "prefix", User: "joe@example.org"}
	if key, err := good.Check(); err != nil {
		t.Error(key, err)
	}
	for want, change := range map[string]func(*Asking){
		"connections": func(a *Asking) { a.Connections = 2 }, "max": func(a *Asking) { a.Max = 0 }, "large": func(a *Asking) { a.Large = "" }, "user": func(a *Asking) { a.User = "a b" },
	} {
		bad := good
		change(&bad)
		if key, err := bad.Check(); key != want || err == nil {
			t.Errorf("%s: %s, %v", want, key, err)
		}
	}
	var m Marks
	if key, err := m.Check(); err != nil || m != (Marks{"spam", "X-Spam", "[SPAM]"}) {
		t.Error(key, err, m)
	}
}

// What a head becomes by each kind of mark.
func TestEdits(t *testing.T) {
	const forged = "X-SPAM-flag : NO\nSubject: buy\nx-spam-status: No,\n really\nX-Spam-Other: stays\nX-Spam-Flag: NO\n\n"
	report := Report{Spam: true, Tag: true, Score: 7.25, Required: 5, Tests: []string{"A=2.25", "B=5"}, By: "score"}
	const marked = "X-Spam-Flag: YES\nX-Spam-Score: 7.25\nX-Spam-Status: Yes, score=7.25 required=5 by=score\n\ttests=A=2.25,B=5\nSubject: [SPAM] buy\nX-Spam-Other: stays\n\n"
	ham := Report{Score: -0.0001, Required: math.NaN(), By: "a b"}
	for _, c := range []struct {
		name string
		m    Marks
		r    Report
		head string
		want string
	}{
		{"spam", Marks{}, report, forged, marked},
		{"ham", Marks{}, ham, forged, "Subject: buy\nX-Spam-Other: stays\n\n"},
		{"all, ham", Marks{Fields: "all"}, ham, forged, "X-Spam-Score: 0\nX-Spam-Status: No, score=0 by=a_b\n\ttests=none\nSubject: buy\nX-Spam-Other: stays\n\n"},
		{"none", Marks{Fields: "none"}, ham, forged, forged},
		{"none but the subject", Marks{Fields: "none", Tag: "***"}, report, "Subject: buy\n\n", "Subject: *** buy\n\n"},
		{"other names", Marks{Field: "X-Ours"}, ham, "X-Ours-Score: 1\nX-Spam-Flag: NO\n\n", "X-Spam-Flag: NO\n\n"},
		{"tagged already", Marks{Fields: "none"}, report, "Subject: [SPAM] buy\n\n", "Subject: [SPAM] buy\n\n"},
		{"no subject", Marks{Fields: "none"}, report, "A: 1\n\n", "Subject: [SPAM]\nA: 1\n\n"},
		{"empty subject", Marks{Fields: "none"}, report, "Subject:\n\n", "Subject: [SPAM]\n\n"},
		{"two subjects", Marks{Fields: "none"}, report, "Subject: 1\nSubject: 2\n\n", "Subject: [SPAM] 1\nSubject: 2\n\n"},
		{"folded subject", Marks{Fields: "none"}, report, "Subject: =?utf-8?q?a?=\n\t=?utf-8?q?b?=\n\n", "Subject: [SPAM] =?utf-8?q?a?=\n\t=?utf-8?q?b?=\n\n"},
		{"subject with control bytes", Marks{Fields: "none"}, report, "Subject: a\x01b\n\n", "Subject: a\x01b\n\n"},
		{"subject as long as can be", Marks{Fields: "none"}, report, "Subject: " + strings.Repeat("x", 988) + "\n\n", "Subject: " + strings.Repeat("x", 988) + "\n\n"},
	} {
		if key, err := c.m.Check(); err != nil {
			t.Fatal(key, err)
		}
		h, _ := message.ParseHead(c.head)
		h, err := h.Edit(c.m.Edits(h, c.r)...)
		if err != nil || h.String() != c.want {
			t.Errorf("%s: %v\n%s", c.name, err, h)
		}
	}
}

// A status holds what fits, folded, and nothing that is not clean.
func TestStatus(t *testing.T) {
	r := Report{Score: 1, Required: 5, By: "x"}
	for range 150 {
		r.Tests = append(r.Tests, "LONG_NAME_OF_A_TEST=1.5")
	}
	r.Tests[1] = "evil\r\nX-Injected: \xff\x00=\n1" + strings.Repeat("x", 5000)
	m := Marks{Fields: "all"}
	m.Check()
	h, err := message.Head{}.Edit(m.Edits(message.Head{}, r)...)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(h.String(), "\n")
	for _, line := range lines {
		if len(line) > maxLine+2*maxName || reply.Clean(line, 1000) != strings.TrimSpace(line) {
			t.Errorf("%q", line)
		}
	}
	if v := h.Get("X-Spam-Status"); !strings.HasSuffix(v, ",and_50_more") || !strings.Contains(v, "evil__X-Injected____=_1xxx") || len(v) > 5000 {
		t.Errorf("%q", v)
	}
	if h.Len() != 2 {
		t.Errorf("%d fields", h.Len())
	}
}

// FuzzSubject: a tag never breaks a head, and what stood there stands there still.
func FuzzSubject(f *testing.F) {
	for _, s := range []string{"", "Subject: x\n\n", "Subject:\n x\n\n", "subject : \r\n x\n", " x\nSubject: y\x00\n", "Subject: [SPAM] x\nSubject: z\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, _ := message.ParseHead(text)
		e, ok := Subject(h, "[SPAM]")
		if !ok {
			return
		}
		after, err := h.Edit(e)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(after.Get("Subject"), "[SPAM]") || after.Len() != max(h.Len(), 1) && after.Len() != h.Len()+1 {
			t.Errorf("%q became %q", h, after)
		}
		if _, again := Subject(after, "[SPAM]"); again {
			t.Errorf("%q is tagged twice", after)
		}
	})
}
