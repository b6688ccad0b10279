package pipeline

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/postern-mta/postern/pipeline/reply"
)

// The property: whatever filters do, the recipients' fates and what is stored
// for each are those of the naive model below, and no body is left over.

// behaviour is how a scripted filter answers at a stage.
type behaviour string

// Mostly it answers: a chain of failures would only ever defer.
var behaviours = append(slices.Repeat([]behaviour{"answer"}, 20), "error", "panic", "late", "hang", "illegal")

// script is one filter of a random chain.
type script struct {
	step   Step
	stages []Stage
	how    map[Stage]behaviour
	// what it answers at the stages of the session, for a recipient, and what it
	// says of each recipient at the message stage.
	early map[Stage]Action
	rcpt  []Action
	part  []part
	// whole has it give one verdict for all who share part 0's.
	whole bool
}

// part is a verdict about one recipient.
type part struct {
	action                         Action
	field, body, rename, add, copy bool
}

func drawAction(t *rapid.T, s Stage) Action {
	var legal []Action
	for a := Continue; int(a) < reply.Actions; a++ {
		if Legal(s, a) {
			legal = append(legal, a, Continue)
		}
		if a == Discard && Legal(s, a) {
			legal = append(legal, a, a, Continue, Continue, Continue)
		}
	}
	return rapid.SampledFrom(legal).Draw(t, "action")
}

func drawScript(t *rapid.T, i, recipients int) *script {
	b := func(name string) bool { return rapid.IntRange(0, 3).Draw(t, name) == 0 }
	s := &script{how: map[Stage]behaviour{}, early: map[Stage]Action{}, whole: b("whole")}
	for stage := AtConnect; stage <= AtMessage; stage++ {
		if stage == AtMessage || b("stage") {
			s.stages = append(s.stages, stage)
			s.how[stage] = rapid.SampledFrom(behaviours).Draw(t, "behaviour")
			s.early[stage] = drawAction(t, stage)
		}
	}
	for range recipients {
		s.rcpt = append(s.rcpt, drawAction(t, AtRecipient))
		s.part = append(s.part, part{
			action: drawAction(t, AtMessage), field: b("field"), body: b("body"), rename: b("rename"), add: b("add"), copy: b("copy"),
		})
	}
	s.step = Step{
		Name: fmt.Sprintf("f%d", i), Timeout: time.Second, Always: b("always"),
		OnError: rapid.SampledFrom([]OnError{ErrorDefers, ErrorContinues}).Draw(t, "on_error"),
		Mode:    rapid.SampledFrom([]Mode{Enforce, Enforce, Enforce, Shadow, Off}).Draw(t, "mode"),
	}
	return s
}

// verdict is a part as a Verdict.
func (p part) verdict(filter string, n int, spool *memorySpool, t testing.TB) Verdict {
	v := Verdict{Action: p.action, Reason: "said so"}
	if p.field {
		v.Edits = append(v.Edits, addField("X-"+filter, fmt.Sprint(n)))
	}
	if p.rename {
		v.Edits = append(v.Edits, Edit{Kind: EditRecipient, Address: fmt.Sprintf("%s-ren-r%d", filter, n)})
	}
	if p.add {
		v.Edits = append(v.Edits, Edit{Kind: EditAddRecipient, Address: fmt.Sprintf("%s-add-r%d", filter, n)})
	}
	if p.copy {
		v.Edits = append(v.Edits, copyTo(fmt.Sprintf("%s-copy-r%d", filter, n)))
	}
	if p.body {
		v.Body = spool.body(t, fmt.Sprintf("%s-body-%d\n", filter, n))
	}
	return v
}

func (s *script) filter(t testing.TB, spool *memorySpool) *fake {
	f := &fake{on: map[Stage]func(asked) (Verdict, error){}}
	for _, stage := range s.stages {
		f.on[stage] = func(a asked) (Verdict, error) {
			switch s.how[stage] {
			case "error":
				return Verdict{Action: Accept}, errBroken
			case "panic":
				panic("scripted")
			case "late":
				<-a.ctx.Done()
			case "hang":
				time.Sleep(10 * time.Second)
			case "illegal":
				return Verdict{Action: Accept, Edits: []Edit{addField("X-Good", "1"), addField("X:", "bad")}}, nil
			}
			switch stage {
			case AtMessage:
				return s.message(t, spool, a.tx.Active), nil
			case AtRecipient:
				return Verdict{Action: s.rcpt[recipientNumber(a.rcpt.Address)]}, nil
			}
			return Verdict{Action: s.early[stage]}, nil
		}
	}
	return f
}

func recipientNumber(address string) (n int) {
	fmt.Sscanf(address, "r%d@", &n) //nolint:errcheck // our own addresses
	return n
}

func (s *script) message(t testing.TB, spool *memorySpool, active []int) Verdict {
	if s.whole {
		return s.part[0].verdict(s.step.Name, 0, spool, t)
	}
	v := Verdict{Only: []int{}}
	for _, n := range active {
		o := s.part[n].verdict(s.step.Name, n, spool, t)
		o.Only = []int{n}
		v.Others = append(v.Others, o)
	}
	return v
}

// told is what the model says of one recipient.
type told struct {
	action       Action
	by           string
	fields       []string // the newest first
	body         string
	name         string
	added, copys []string
}

// model runs the scripts naively: for each recipient by itself, remembering
// only which filters hang.
func model(scripts []*script, recipients int) []told {
	stuck := map[*script]bool{}
	all := make([]told, recipients)
	var session told
	// one has a filter judge one subject, and reports whether it did well.
	one := func(s *script, stage Stage, x *told, say Action) bool {
		if s.step.Mode == Off || x.action != Continue && !(x.action == Accept && s.step.Always) {
			return false
		}
		if stuck[s] || s.how[stage] != "answer" {
			if say = Continue; s.step.OnError == ErrorDefers {
				say = Defer
			}
			stuck[s] = stuck[s] || s.how[stage] == "hang"
			if s.step.Mode == Enforce && say != Continue {
				x.action, x.by = say, s.step.Name
			}
			return false
		}
		if s.step.Mode == Shadow {
			return false
		}
		if say != Continue && !(say == Accept && x.action == Accept) {
			x.action, x.by = say, s.step.Name
		}
		return true
	}
	for _, stage := range []Stage{AtConnect, AtHelo, AtSender} {
		for _, s := range scripts {
			if slices.Contains(s.stages, stage) {
				one(s, stage, &session, s.early[stage])
			}
		}
	}
	for n := range all {
		all[n] = told{action: session.action, by: session.by, name: fmt.Sprintf("r%d@example.org", n), body: "The body of the message.\n"}
		for _, s := range scripts {
			if slices.Contains(s.stages, AtRecipient) {
				one(s, AtRecipient, &all[n], s.rcpt[n])
			}
		}
	}
	for _, s := range scripts {
		wasStuck := stuck[s]
		for n := range all {
			stuck[s] = wasStuck // one call is about all of them
			k := n
			if s.whole {
				k = 0
			}
			if x := &all[n]; one(s, AtMessage, x, s.part[k].action) && stores(s.part[k].action) {
				x.change(s.step.Name, s.part[k], k)
			}
		}
	}
	return all
}

func (x *told) change(filter string, p part, n int) {
	if p.field {
		x.fields = append([]string{fmt.Sprintf("X-%s=%d", filter, n)}, x.fields...)
	}
	if p.body {
		x.body = fmt.Sprintf("%s-body-%d\n", filter, n)
	}
	if p.rename {
		x.name = fmt.Sprintf("%s-ren-r%d", filter, n)
	}
	if p.add {
		x.added = append(x.added, fmt.Sprintf("%s-add-r%d", filter, n))
	}
	if p.copy {
		x.copys = append(x.copys, fmt.Sprintf("%s-copy-r%d", filter, n))
	}
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		recipients := rapid.IntRange(1, 6).Draw(rt, "recipients")
		var scripts []*script
		for i := range rapid.IntRange(0, 5).Draw(rt, "filters") {
			scripts = append(scripts, drawScript(rt, i, recipients))
		}
		each := rapid.Bool().Draw(rt, "each")
		mixed := rapid.SampledFrom([]Mixed{MixedBounce, MixedReject}).Draw(rt, "mixed")
		var problems []string
		synctest.Test(t, func(t *testing.T) { problems = runModel(t, scripts, recipients, each, mixed) })
		if len(problems) > 0 {
			rt.Fatalf("%s", strings.Join(problems, "\n"))
		}
	})
}

func runModel(t *testing.T, scripts []*script, recipients int, each bool, mixed Mixed) (problems []string) {
	var spool memorySpool
	var steps []Step
	for _, s := range scripts {
		step := s.step
		step.Filter = s.filter(t, &spool)
		steps = append(steps, step)
	}
	tx := txTo(rcpts(recipients)...)
	tx.Session.AnswersEach = each
	m := spool.message(t, plain)
	o := newChain(t, ChainOptions{Mixed: mixed, Deadline: time.Hour}, steps...).Run(context.Background(), tx, m)
	problems = compare(o, model(scripts, recipients), each, mixed)
	o.Release()
	time.Sleep(time.Hour)
	synctest.Wait()
	if n := spool.count(); n != 1 || string(m.Bytes()) != plain {
		problems = append(problems, fmt.Sprintf("%d bodies are held, the caller's reads %q", n, m.Bytes()))
	}
	m.Body().Release() //nolint:errcheck // in memory
	if n := spool.count(); n != 0 {
		problems = append(problems, fmt.Sprintf("%d bodies are held in the end", n))
	}
	for i, s := range scripts {
		if n := steps[i].Filter.(*fake).counts(); n[0] > 1 || n[0] != n[1] {
			problems = append(problems, fmt.Sprintf("%s: opened, closed, reset %v", s.step.Name, n))
		}
	}
	return problems
}

func compare(o *Outcome, want []told, each bool, mixed Mixed) (problems []string) {
	say := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	var t tally
	for n, x := range want {
		if f := o.Fates[n]; f.Action != x.action || f.Filter != x.by {
			say("recipient %d: %v by %q, want %v by %q", n, f.Action, f.Filter, x.action, x.by)
		}
		switch x.action {
		case Reject:
			t.refused++
		case Defer:
			t.deferred++
		default:
			t.stored++
		}
	}
	take := t.stored > 0 && (each || t.deferred == 0 && (t.refused == 0 || mixed == MixedBounce))
	if !take {
		if len(o.Outgoing) > 0 || len(o.Refused) > 0 || o.Reply.Class == reply.Success {
			say("%+v taken: %v", t, outgoing(o))
		}
		return problems
	}
	if o.Reply.Class != reply.Success {
		say("%+v answered %v", t, o.Reply)
	}
	if reports := t.refused; each && len(o.Refused) > 0 || !each && len(o.Refused) != reports {
		say("%d reports", len(o.Refused))
	}
	got := map[string][]string{} // by address: the messages that it gets
	for i, out := range o.Outgoing {
		once := map[string]bool{}
		for _, r := range out.Envelope.Recipients {
			if once[r.Address] {
				say("message %d is for %s twice", i, r.Address)
			}
			once[r.Address] = true
			got[r.Address] = append(got[r.Address], describe(out))
		}
	}
	expected := map[string]int{}
	for n, x := range want {
		if !stores(x.action) {
			continue
		}
		text := fmt.Sprintf("%v copy=false hold=%v %s", x.fields, x.action == Quarantine, x.body)
		if !slices.Contains(got[x.name], text) {
			say("recipient %d, now %s, gets %q, want %q", n, x.name, got[x.name], text)
		}
		expected[x.name]++
	}
	return append(problems, compareExtras(got, expected, want)...)
}

// compareExtras checks that added recipients and copies are there exactly if
// one of those is stored whose fate they share, and that nobody else is. A
// verdict for all that is given to each lot adds its recipient once a lot.
func compareExtras(got map[string][]string, expected map[string]int, want []told) (problems []string) {
	extras := map[string]int{}
	for _, x := range want {
		if stores(x.action) {
			for _, a := range append(slices.Clone(x.added), x.copys...) {
				extras[a]++
			}
		}
	}
	for a, most := range extras {
		if n := len(got[a]); n < 1 || n > most {
			problems = append(problems, fmt.Sprintf("%s gets %d messages, want 1 to %d", a, n, most))
		}
	}
	for a, all := range got {
		// Recipients who have become one get what is the same for them once.
		if extras[a] == 0 && (len(all) < 1 || len(all) > expected[a]) {
			problems = append(problems, fmt.Sprintf("%s gets %d messages, want 1 to %d", a, len(all), expected[a]))
		}
	}
	return problems
}

func describe(out Outgoing) string {
	fields := []string{}
	h := out.Message.Head()
	for i := range h.Len() {
		if f := h.Field(i); strings.HasPrefix(f.Name(), "X-") {
			fields = append(fields, f.Name()+"="+f.Value())
		}
	}
	_, body, _ := strings.Cut(string(out.Message.Bytes()), "\n\n")
	return fmt.Sprintf("%v copy=%v hold=%v %s", fields, out.Copy, out.Hold != "", body)
}
