package pipeline

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

func rule(t testing.TB, src string) *rules.Rule {
	t.Helper()
	r, err := rules.Compile(Facts(), src)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func only(a Action, recipients ...int) Verdict { return Verdict{Action: a, Only: recipients} }

// each gives every recipient that is asked about a verdict of its own.
func each(verdict func(n int) Verdict) func(asked) (Verdict, error) {
	return func(a asked) (Verdict, error) {
		v := Verdict{Only: []int{}}
		for _, n := range a.tx.Active {
			o := verdict(n)
			o.Only = []int{n}
			v.Others = append(v.Others, o)
		}
		return v, nil
	}
}

// TestEdits runs chains of verdicts at the message stage for three recipients
// and compares what is stored.
func TestEdits(t *testing.T) {
	const all = "r0@example.org r1@example.org r2@example.org"
	rename := Edit{Kind: EditRecipient, Address: "new@example.net"}
	add := Edit{Kind: EditAddRecipient, Address: "more@example.net"}
	sender := Edit{Kind: EditSender, Address: "s@example.net"}
	a, b := addField("X-A", "1"), addField("X-B", "2")
	tests := []struct {
		name  string
		steps []Verdict
		want  string
	}{
		{"nothing", []Verdict{{}}, "a@example.org -> " + all + "\n"},
		{"for all", []Verdict{{Edits: []Edit{a}}, {Edits: []Edit{b}}}, "a@example.org -> " + all + " X-B=2 X-A=1\n"},
		{"in order", []Verdict{{Edits: []Edit{a, b, addField("X-A", "3")}}}, "a@example.org -> " + all + " X-A=3 X-B=2 X-A=1\n"},
		{
			"split",
			[]Verdict{{Only: []int{1}, Edits: []Edit{a}}, {Edits: []Edit{b}}},
			"a@example.org -> r0@example.org r2@example.org X-B=2\na@example.org -> r1@example.org X-B=2 X-A=1\n",
		},
		{
			"unsorted",
			[]Verdict{{Only: []int{2, 0}, Edits: []Edit{a}}},
			"a@example.org -> r1@example.org\na@example.org -> r0@example.org r2@example.org X-A=1\n",
		},
		{
			"others",
			[]Verdict{{Edits: []Edit{a}, Others: []Verdict{{Only: []int{0}, Edits: []Edit{b}}}}},
			"a@example.org -> r1@example.org r2@example.org X-A=1\na@example.org -> r0@example.org X-B=2\n",
		},
		{"nobody", []Verdict{{Only: []int{}, Action: Reject, Edits: []Edit{a}}}, "a@example.org -> " + all + "\n"},
		{"all but the dead", []Verdict{only(Discard, 1), {Edits: []Edit{a}}}, "a@example.org -> r0@example.org r2@example.org X-A=1\n"},
		{
			"rest dies in the same verdict",
			[]Verdict{{Action: Discard, Others: []Verdict{{Only: []int{1}, Edits: []Edit{a}}}}},
			"a@example.org -> r1@example.org X-A=1\n",
		},
		{
			"not the accepted",
			[]Verdict{only(Accept, 1), {Edits: []Edit{a}}},
			"a@example.org -> r1@example.org\na@example.org -> r0@example.org r2@example.org X-A=1\n",
		},
		{
			"quarantined with edits",
			[]Verdict{{Action: Quarantine, Reason: "odd", Only: []int{0}, Edits: []Edit{a}}},
			"a@example.org -> r1@example.org r2@example.org\na@example.org -> r0@example.org hold(f0: odd) X-A=1\n",
		},
		{
			"held for two reasons",
			[]Verdict{{Action: Quarantine, Reason: "x", Only: []int{0}, Others: []Verdict{{Only: []int{2}, Action: Quarantine, Reason: "y"}}}},
			"a@example.org -> r0@example.org hold(f0: x)\na@example.org -> r1@example.org\na@example.org -> r2@example.org hold(f0: y)\n",
		},
		{
			"edits of the discarded",
			[]Verdict{{Action: Discard, Only: []int{0}, Edits: []Edit{a, add, copyTo("c")}}},
			"a@example.org -> r1@example.org r2@example.org\n",
		},
		{"sender", []Verdict{{Edits: []Edit{sender}, Only: []int{0}}}, "a@example.org -> r1@example.org r2@example.org\ns@example.net -> r0@example.org\n"},
		{"sender becomes null", []Verdict{{Edits: []Edit{{Kind: EditSender}}}}, " -> " + all + "\n"},
		{"rename without split", []Verdict{{Only: []int{1}, Edits: []Edit{rename}}}, "a@example.org -> r0@example.org new@example.net r2@example.org\n"},
		{"rename all", []Verdict{{Edits: []Edit{rename}}}, "a@example.org -> new@example.net\n"},
		{"add", []Verdict{{Edits: []Edit{add}}}, "a@example.org -> " + all + " more@example.net\n"},
		{
			"add once, split later",
			[]Verdict{{Edits: []Edit{add}}, {Only: []int{0}, Edits: []Edit{a}}},
			"a@example.org -> r1@example.org r2@example.org\na@example.org -> r0@example.org more@example.net X-A=1\n",
		},
		{
			"add, then its recipients are split off",
			[]Verdict{{Only: []int{0}, Edits: []Edit{add}}, {Only: []int{0}, Edits: []Edit{a}}},
			"a@example.org -> r1@example.org r2@example.org\na@example.org -> r0@example.org more@example.net X-A=1\n",
		},
		{"add, then discard", []Verdict{{Only: []int{0}, Edits: []Edit{add}}, only(Discard, 0)}, "a@example.org -> r1@example.org r2@example.org\n"},
		{
			"add, one held",
			[]Verdict{{Edits: []Edit{add}}, {Action: Quarantine, Only: []int{0}}},
			"a@example.org -> r0@example.org hold(f1: )\na@example.org -> r1@example.org r2@example.org more@example.net\n",
		},
		{"add, all held", []Verdict{{Edits: []Edit{add}}, {Action: Quarantine}}, "a@example.org -> " + all + " more@example.net hold(f1: )\n"},
		{
			"copy",
			[]Verdict{{Edits: []Edit{a, copyTo("c", message.FieldEdit{Name: "X-C", Value: "3"})}}},
			"a@example.org -> " + all + " X-A=1\n -> c copy X-C=3\n",
		},
		{
			"copy after edit",
			[]Verdict{{Edits: []Edit{a}}, {Edits: []Edit{copyTo("c")}}, {Edits: []Edit{b}}},
			"a@example.org -> " + all + " X-B=2 X-A=1\n -> c copy X-A=1\n",
		},
		{"copy of the later held", []Verdict{{Edits: []Edit{copyTo("c")}}, {Action: Quarantine}}, "a@example.org -> " + all + " hold(f1: )\n -> c copy\n"},
		{"copy of the later discarded", []Verdict{{Only: []int{0}, Edits: []Edit{copyTo("c")}}, only(Discard, 0)}, "a@example.org -> r1@example.org r2@example.org\n"},
		{"discard all", []Verdict{{Edits: []Edit{copyTo("c")}}, {Action: Discard}}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var steps []Step
			for _, v := range test.steps {
				steps = append(steps, Step{Filter: at(AtMessage, func(asked) (Verdict, error) { return v, nil }), OnError: ErrorContinues})
			}
			// Verdicts that name recipients are given to whoever is asked about them.
			for i, v := range test.steps {
				if i > 0 && v.Only != nil {
					steps[i].Filter = at(AtMessage, func(a asked) (Verdict, error) {
						if !slices.Contains(a.tx.Active, v.Only[0]) {
							return Verdict{}, nil
						}
						return v, nil
					})
				}
			}
			runIn(t, context.Background(), newChain(t, ChainOptions{}, steps...), txTo(rcpts(3)...), func(o *Outcome) {
				if got := outgoing(o); got != test.want {
					t.Errorf("stored\n%swant\n%s", got, test.want)
				}
				if o.Reply != reply.OK {
					t.Errorf("reply %v", o.Reply)
				}
				for _, e := range o.Trace {
					if e.Err != "" {
						t.Errorf("%+v", e)
					}
				}
			})
		})
	}
}

// TestBodies: a new body for some splits, and every body lives as long as its
// message.
func TestBodies(t *testing.T) {
	var spool memorySpool
	f := at(AtMessage, each(func(n int) Verdict {
		if n == 1 {
			return Verdict{Body: spool.body(t, "refused\n"), Action: Discard}
		}
		return Verdict{Body: spool.body(t, fmt.Sprintf("body %d\n", n)), Edits: []Edit{copyTo("c")}}
	}))
	g := at(AtMessage, func(asked) (Verdict, error) {
		return Verdict{Body: spool.body(t, "again\n"), Only: []int{}, Others: nil}, nil
	})
	runWith(t, context.Background(), &spool, newChain(t, ChainOptions{}, Step{Filter: f}, Step{Filter: g}), txTo(rcpts(4)...), func(o *Outcome) {
		var got []string
		for _, out := range o.Outgoing {
			got = append(got, strings.Join(out.Envelope.Addresses(), " ")+": "+string(out.Message.Bytes()))
		}
		const head = "Subject: hello\nFrom: a@example.org\n\n"
		const old = head + "The body of the message.\n"
		want := []string{
			"r0@example.org: " + head + "body 0\n", "r2@example.org: " + head + "body 2\n", "r3@example.org: " + head + "body 3\n",
			"c: " + old, "c: " + old, "c: " + old,
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// TestTooManyLots: a verdict that would split a message into more than 64 is an
// error; one that renames as many is not.
func TestTooManyLots(t *testing.T) {
	split := at(AtMessage, each(func(n int) Verdict { return Verdict{Edits: []Edit{addField("X-N", fmt.Sprint(n))}} }))
	rename := at(AtMessage, each(func(n int) Verdict {
		return Verdict{Edits: []Edit{{Kind: EditRecipient, Address: fmt.Sprintf("n%d@example.net", n)}}}
	}))
	header := says(AtMessage, Verdict{Edits: []Edit{addField("X-A", "1")}})
	for _, n := range []int{maxLots, maxLots + 1} {
		c := newChain(t, ChainOptions{}, Step{Filter: rename}, Step{Filter: split}, Step{Filter: header})
		runIn(t, context.Background(), c, txTo(rcpts(n)...), func(o *Outcome) {
			if n > maxLots {
				if o.Reply.SMTPCode() != 451 || !strings.Contains(o.Trace[1].Err, "too many") {
					t.Errorf("%d: %v %+v", n, o.Reply, o.Trace)
				}
				return
			}
			lines := strings.SplitAfter(outgoing(o), "\n")
			if len(o.Outgoing) != n || lines[5] != "a@example.org -> n5@example.net X-A=1 X-N=5\n" {
				t.Errorf("%d: %v %q", n, o.Reply, lines)
			}
			if len(o.Trace) != 3 {
				t.Errorf("trace of %d entries", len(o.Trace))
			}
		})
	}
}

// TestManyHolds: reasons to hold do not multiply a message without bound.
func TestManyHolds(t *testing.T) {
	f := at(AtMessage, each(func(n int) Verdict { return Verdict{Action: Quarantine, Reason: fmt.Sprint(n)} }))
	runIn(t, context.Background(), newChain(t, ChainOptions{}, Step{Filter: f}), txTo(rcpts(1000)...), func(o *Outcome) {
		n := 0
		for _, out := range o.Outgoing {
			if n += len(out.Envelope.Recipients); out.Hold == "" {
				t.Error("not held")
			}
		}
		if len(o.Outgoing) != maxHolds || n != 1000 {
			t.Errorf("%d messages for %d recipients", len(o.Outgoing), n)
		}
	})
}

// TestNoRecipients: a message without recipients is judged and stored.
func TestNoRecipients(t *testing.T) {
	seen := at(AtMessage, func(a asked) (Verdict, error) {
		if len(a.tx.Active) > 0 {
			t.Errorf("asked about %v", a.tx.Active)
		}
		return Verdict{Edits: []Edit{addField("X-A", "1"), {Kind: EditRecipient, Address: "x"}}}, nil
	})
	for _, test := range []struct {
		v    Verdict
		code int
		want string
	}{
		{Verdict{}, 250, "a@example.org ->  X-A=1\n"},
		{Verdict{Action: Reject}, 554, ""},
		{Verdict{Action: Defer}, 451, ""},
		{Verdict{Action: Discard}, 250, ""},
		{Verdict{Action: Quarantine}, 250, "a@example.org ->  hold(f1: ) X-A=1\n"},
		{Verdict{Edits: []Edit{{Kind: EditAddRecipient, Address: "b"}, copyTo("c")}}, 250, "a@example.org -> b X-A=1\n -> c copy X-A=1\n"},
		{only(Reject, 0), 451, ""},
	} {
		c := newChain(t, ChainOptions{}, Step{Filter: seen}, Step{Filter: says(AtMessage, test.v)}, Step{Filter: says(AtRecipient, Verdict{Action: Reject})})
		runIn(t, context.Background(), c, txTo(), func(o *Outcome) {
			if got := outgoing(o); got != test.want || o.Reply.SMTPCode() != test.code || len(o.Fates) > 0 {
				t.Errorf("%v: %v %q, want %q", test.v.Action, o.Reply, got, test.want)
			}
		})
	}
}

// TestManyRecipients: a hundred thousand recipients, each with a verdict of its
// own at two stages, pass in one go.
func TestManyRecipients(t *testing.T) {
	const n = 100_000
	r := func(a asked) (Verdict, error) { return Verdict{Reason: a.rcpt.Address[:2]}, nil }
	f := at(AtMessage, each(func(n int) Verdict {
		switch n % 4 {
		case 0:
			return Verdict{Action: Discard}
		case 1:
			return Verdict{Edits: []Edit{{Kind: EditRecipient, Address: fmt.Sprintf("n%d@example.net", n)}}}
		}
		return Verdict{Reason: fmt.Sprint("reason ", n)}
	}))
	header := says(AtMessage, Verdict{Edits: []Edit{addField("X-A", "1")}})
	half := at(AtMessage, func(a asked) (Verdict, error) {
		return Verdict{Only: slices.Clone(a.tx.Active[:len(a.tx.Active)/2]), Edits: []Edit{addField("X-B", "1")}}, nil
	})
	c := newChain(t, ChainOptions{}, Step{Filter: at(AtRecipient, r)}, Step{Filter: f}, Step{Filter: header},
		Step{Filter: half}, Step{Filter: half, When: rule(t, `size > 10`)})
	runIn(t, context.Background(), c, txTo(rcpts(n)...), func(o *Outcome) {
		stored := 0
		for _, out := range o.Outgoing {
			stored += len(out.Envelope.Recipients)
		}
		if stored != n*3/4 || len(o.Outgoing) != 4 || o.Reply != reply.OK {
			t.Errorf("%d stored in %d messages, %v", stored, len(o.Outgoing), o.Reply)
		}
		if len(o.Trace) > maxTrace || len(entries(o.Trace, "f1", AtMessage)) != 1 {
			t.Errorf("trace of %d entries", len(o.Trace))
		}
		if b, err := o.Outgoing[0].Origin.Encode(); err != nil || len(b) > 100_000 {
			t.Errorf("origin of %d bytes: %v", len(b), err)
		}
	})
}

// TestAlways: after Accept only filters that always run do, and they can still
// refuse.
func TestAlways(t *testing.T) {
	for _, stage := range []Stage{AtConnect, AtHelo, AtSender, AtRecipient, AtMessage} {
		allow := says(stage, Verdict{Action: Accept, Reason: "friend"})
		skipped := says(AtMessage, Verdict{Action: Reject})
		tap := says(AtMessage, Verdict{Action: Accept, Edits: []Edit{addField("X-A", "1")}})
		c := newChain(t, ChainOptions{}, Step{Filter: allow}, Step{Filter: skipped}, Step{Filter: tap, Always: true})
		runIn(t, context.Background(), c, txTo(rcpts(2)...), func(o *Outcome) {
			if got := outgoing(o); got != "a@example.org -> r0@example.org r1@example.org X-A=1\n" {
				t.Errorf("%v: %s", stage, got)
			}
			if f := o.Fates[0]; f.Filter != "f0" || f.Reason != "friend" {
				t.Errorf("%v: %+v", stage, f)
			}
			if e := entries(o.Trace, "f1", AtMessage); len(e) != 1 || e[0].Skipped != "decided" || e[0].Recipients != 2 {
				t.Errorf("%v: %+v", stage, e)
			}
		})
		virus := says(AtMessage, Verdict{Action: Reject, Reason: "Eicar"})
		c = newChain(t, ChainOptions{}, Step{Filter: allow}, Step{Filter: virus, Always: true})
		runIn(t, context.Background(), c, txTo(rcpts(2)...), func(o *Outcome) {
			if o.Reply.SMTPCode() != 554 || o.Fates[1].Reason != "Eicar" {
				t.Errorf("%v: %+v", stage, o)
			}
		})
	}
}

// TestFirstDecides: the first verdict that is not continue decides, at every
// stage and for each recipient.
func TestFirstDecides(t *testing.T) {
	for _, first := range []Stage{AtConnect, AtHelo, AtSender, AtRecipient, AtMessage} {
		for _, a := range []Action{Reject, Defer, Discard, Quarantine} {
			if !Legal(first, a) {
				continue
			}
			late := says(AtMessage, Verdict{Action: Discard, Reason: "late"})
			c := newChain(t, ChainOptions{}, Step{Filter: says(first, Verdict{Action: a, Reason: "first"})}, Step{Filter: late, Always: true})
			runIn(t, context.Background(), c, txTo("r@example.org"), func(o *Outcome) {
				if f := o.Fates[0]; f.Action != a || f.Reason != "first" || f.Filter != "f0" {
					t.Errorf("%v %v: %+v", first, a, f)
				}
				if len(late.called()) > 0 {
					t.Errorf("%v %v: asked although it was decided", first, a)
				}
			})
		}
	}
}

// TestStrangers: filters that judge strangers pass our own by, whatever their
// rule says.
func TestStrangers(t *testing.T) {
	f := says(AtMessage, Verdict{Action: Reject})
	f.traits.Strangers = true
	for standing := Stranger; standing <= Local; standing++ {
		tx := txTo("r@example.org")
		tx.Session.Standing = standing
		c := newChain(t, ChainOptions{}, Step{Filter: f, When: rule(t, "true")})
		runIn(t, context.Background(), c, tx, func(o *Outcome) {
			want := Continue
			if standing == Stranger {
				want = Reject
			} else if o.Trace[0].Skipped != "not for our own" {
				t.Errorf("%v: %+v", standing, o.Trace)
			}
			if o.Fates[0].Action != want {
				t.Errorf("%v: %v", standing, o.Fates[0].Action)
			}
		})
	}
}

// TestWhen: a rule decides whether a filter runs; one that fails is the
// filter's failure.
func TestWhen(t *testing.T) {
	for _, test := range []struct {
		when    string
		onError OnError
		want    Action
		skipped string
		err     string
	}{
		{"size > 5", ErrorDefers, Reject, "", ""},
		{"size < 5", ErrorDefers, Continue, "when", ""},
		{`"r1@example.org" in recipients`, ErrorDefers, Reject, "", ""},
		{"ours", ErrorDefers, Reject, "", ""},
		{"uid % (size - size) == 0", ErrorDefers, Defer, "", "divi"},
		{"uid % (size - size) == 0", ErrorContinues, Continue, "", "divi"},
	} {
		t.Run(test.when, func(t *testing.T) {
			f := says(AtMessage, Verdict{Action: Reject})
			tx := txTo(rcpts(2)...)
			tx.Session.Ours = func(domain string) bool { return domain == "example.org" }
			c := newChain(t, ChainOptions{}, Step{Filter: f, When: rule(t, test.when), OnError: test.onError})
			runIn(t, context.Background(), c, tx, func(o *Outcome) {
				e := o.Trace[0]
				if o.Fates[1].Action != test.want || e.Skipped != test.skipped || !strings.Contains(e.Err, test.err) || (e.Err != "") != (test.err != "") {
					t.Errorf("%v, trace %+v", o.Fates[1].Action, e)
				}
			})
		})
	}
}

// TestFindings: what filters find reaches the rules and filters that follow,
// the outcome and the origin, but not from shadow, and not without bound.
func TestFindings(t *testing.T) {
	finds := func(n int, score float64) Verdict {
		v := Verdict{Others: []Verdict{{Only: []int{0}, Results: []AuthResult{{Method: "spf"}}, Symbols: []Symbol{{Name: "OTHER"}}}}}
		for range n {
			v.Results = append(v.Results, AuthResult{Method: "dkim", Result: "pass"})
			v.Symbols = append(v.Symbols, Symbol{Name: "S", Score: score})
		}
		return v
	}
	last := at(AtMessage, func(a asked) (Verdict, error) {
		if len(a.tx.Results) != maxFindings || len(a.tx.Symbols) != maxFindings || a.tx.Chain != "test" {
			t.Errorf("%d results, %d symbols, chain %q", len(a.tx.Results), len(a.tx.Symbols), a.tx.Chain)
		}
		return Verdict{Action: Quarantine, Reason: "spam"}, nil
	})
	c := newChain(t, ChainOptions{Generation: 7},
		Step{Filter: says(AtMessage, finds(2, 3))},
		Step{Filter: says(AtMessage, finds(5, 100)), Mode: Shadow},
		Step{Filter: says(AtMessage, finds(5000, 0))},
		Step{Filter: last, When: rule(t, `score == 6 && "OTHER" in symbols`)})
	runIn(t, context.Background(), c, txTo("r@example.org"), func(o *Outcome) {
		if len(o.Results) != maxFindings || len(o.Outgoing) != 1 || o.Outgoing[0].Hold != "f3: spam" {
			t.Errorf("%d results, %s", len(o.Results), outgoing(o))
		}
		origin := o.Outgoing[0].Origin
		if origin.Chain != "test" || origin.Generation != 7 || len(origin.Results) != maxFindings || len(origin.Trace) != 4 || origin.Transaction != "t1" {
			t.Errorf("%+v", origin)
		}
	})
}

// TestModes: an operator's override, until it ends.
func TestModes(t *testing.T) {
	now := time.Unix(1000, 0)
	modes := NewModes(func() time.Time { return now })
	f := says(AtMessage, Verdict{Action: Reject, Edits: []Edit{addField("X-A", "1")}})
	c := newChain(t, ChainOptions{Modes: modes}, Step{Name: "rbl", Filter: f, Mode: Shadow})
	check := func(want string, action Action) {
		t.Helper()
		runIn(t, context.Background(), c, txTo("r@example.org"), func(o *Outcome) {
			e := o.Trace[0]
			if got := fmt.Sprintf("shadow=%v skipped=%s action=%s", e.Shadow, e.Skipped, e.Action); got != want || o.Fates[0].Action != action {
				t.Errorf("%s, %v; want %s, %v", got, o.Fates[0].Action, want, action)
			}
		})
	}
	check("shadow=true skipped= action=reject", Continue)
	modes.Set("other", Off, 0)
	check("shadow=true skipped= action=reject", Continue)
	if o := modes.Set("rbl", Enforce, time.Hour); !o.Until.Equal(now.Add(time.Hour)) {
		t.Errorf("%+v", o)
	}
	check("shadow=false skipped= action=reject", Reject)
	now = now.Add(time.Hour)
	check("shadow=true skipped= action=reject", Continue)
	modes.Set("rbl", Off, 0)
	now = now.Add(1e6 * time.Hour)
	check("shadow=false skipped=off action=", Continue)
	modes.Clear("rbl")
	check("shadow=true skipped= action=reject", Continue)
	for m := Enforce; m <= Off; m++ {
		if got, ok := ParseMode(m.String()); !ok || got != m {
			t.Errorf("%v", m)
		}
	}
	if _, ok := ParseMode("no"); ok || Mode(9).String() != "invalid" {
		t.Error("a mode that there is not")
	}
	if _, ok := (*Modes)(nil).Get("x"); ok || !NewModes(nil).Set("x", Off, time.Hour).Until.After(time.Now()) {
		t.Error("nil")
	}
}

// TestNewChain: what a configuration can get wrong is told when the chain is
// made.
func TestNewChain(t *testing.T) {
	for name, test := range map[string]struct {
		step Step
		o    ChainOptions
		err  string
	}{
		"no stage":          {Step{Filter: &fake{}}, ChainOptions{}, "judges at no stage"},
		"no interface":      {Step{Filter: plainFilter{}}, ChainOptions{}, "judges at no stage"},
		"no filter":         {Step{}, ChainOptions{}, "judges at no stage"},
		"stage":             {Step{Filter: says(Stage(9), Verdict{})}, ChainOptions{}, "stage 9"},
		"rule too late":     {Step{Filter: says(AtConnect, Verdict{}), When: rule(t, "size > 1")}, ChainOptions{}, `"size > 1" asks for what is known only at the message stage`},
		"negative timeout":  {Step{Filter: says(AtConnect, Verdict{}), Timeout: -1}, ChainOptions{}, "timeout -1ns is negative"},
		"negative deadline": {Step{Filter: says(AtConnect, Verdict{})}, ChainOptions{Deadline: -1}, "deadline -1ns is negative"},
	} {
		if _, err := NewChain("c", []Step{test.step}, test.o); err == nil || !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := &fake{on: map[Stage]func(asked) (Verdict, error){AtConnect: nil, AtMessage: nil}}
	c := newChain(t, ChainOptions{}, Step{Filter: f, When: rule(t, "size > 1")})
	if c.JudgesAt(AtConnect) || !c.JudgesAt(AtMessage) || c.Name() != "test" {
		t.Error("a rule about the message is asked of a connection")
	}
	if s := c.Steps(); len(s) != 1 || s[0].Timeout != DefaultTimeout || s[0].Filter != f {
		t.Errorf("%+v", s)
	}
	if got := fmt.Sprint(StagesOf(connectFilter{})); got != "[connect]" {
		t.Errorf("stages %s", got)
	}
}

type plainFilter struct{}

func (plainFilter) Open(context.Context, *Session) (Instance, error) { return nil, nil }

type connectFilter struct{ connectOnly }

func (f connectFilter) Open(context.Context, *Session) (Instance, error) { return f, nil }

// TestDeliver: the stage at the exit edits the message and may hold it back.
func TestDeliver(t *testing.T) {
	sign := func(a asked) (Verdict, error) {
		if a.delivery.Host != "mx.example.net" {
			t.Errorf("%+v", a.delivery)
		}
		return Verdict{Edits: []Edit{addField("X-Signed", "1")}}, nil
	}
	for _, test := range []struct {
		name    string
		f       func(asked) (Verdict, error)
		onError OnError
		want    Action
		head    string
		err     string
	}{
		{"sign", sign, ErrorDefers, Continue, "X-Signed", ""},
		{"defer", func(asked) (Verdict, error) { return Verdict{Action: Defer}, nil }, ErrorDefers, Defer, "Subject", ""},
		{"hold", func(asked) (Verdict, error) { return Verdict{Action: Quarantine}, nil }, ErrorDefers, Quarantine, "Subject", ""},
		{"discard", func(asked) (Verdict, error) { return Verdict{Action: Discard}, nil }, ErrorDefers, Defer, "Subject", "discard is not allowed"},
		{"error", func(asked) (Verdict, error) { return Verdict{}, errBroken }, ErrorContinues, Continue, "Subject", "broken"},
		{"rename", func(asked) (Verdict, error) { return Verdict{Edits: []Edit{{Kind: EditSender}}}, nil }, ErrorContinues, Continue, "Subject", "not allowed at the delivery stage"},
		{"some", func(asked) (Verdict, error) { return only(Defer, 0), nil }, ErrorContinues, Continue, "Subject", "for some recipients"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var spool memorySpool
			m := spool.message(t, plain)
			d := &Delivery{ID: "q1", Envelope: envelope.To("a", "b", "c"), Host: "mx.example.net", Origin: Origin{Standing: "auth", User: "me", Peer: "192.0.2.1"}}
			c := newChain(t, ChainOptions{}, Step{Filter: at(AtDelivery, test.f), OnError: test.onError, When: rule(t, `auth && ip == "192.0.2.1"`)})
			out, fate, trace := c.Deliver(context.Background(), d, m)
			if fate.Action != test.want || fate.Reply.Class != reply.For(test.want, reply.Reply{}).Class || out.Head().Field(0).Name() != test.head {
				t.Errorf("%+v, first field %q", fate, out.Head().Field(0).Name())
			}
			if len(trace) != 1 || trace[0].Recipients != 2 || !strings.Contains(trace[0].Err, test.err) {
				t.Errorf("%+v", trace)
			}
			out.Body().Release() //nolint:errcheck // in memory
			checkOnlyMine(t, &spool, m)
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	m := message.FromString(plain)
	c := newChain(t, ChainOptions{}, Step{Filter: at(AtDelivery, sign), OnError: ErrorContinues})
	if _, fate, _ := c.Deliver(ctx, &Delivery{}, m); fate.Action != Defer {
		t.Errorf("unsigned after the caller has gone: %+v", fate)
	}
}
