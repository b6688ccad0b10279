package dnsbl

import (
	"fmt"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// tally adds up what lists say of a session.
type tally struct {
	// sum is of the weights, least what it could be if all who did not answer
	// spoke for the client.
	sum, least float64
	// passed: a list lets the client pass; mayPass: one that did not answer
	// could have.
	passed, mayPass bool
	against         []charge
	text            string // of the first list against the client that has one
}

// charge is who is listed by which lists.
type charge struct {
	subject string
	lists   []string
}

// add counts findings about a subject.
func (t *tally) add(findings []finding, subject string) {
	var by []string
	for i := range findings {
		at := &findings[i]
		l := at.list
		switch {
		case at.err != nil:
			t.mayPass = t.mayPass || l.pass
			if !l.pass {
				t.least += min(l.weight, 0)
			}
		case len(at.answers) == 0:
		case l.pass:
			t.passed = true
		default:
			t.sum += l.weight
			t.least += l.weight
			if l.weight > 0 {
				by = append(by, l.name)
				if t.text == "" {
					t.text = l.text
				}
			}
		}
	}
	if len(by) > 0 {
		t.against = append(t.against, charge{subject, by})
	}
}

// join adds another tally of the same session.
func (t *tally) join(o *tally) {
	t.sum, t.least = t.sum+o.sum, t.least+o.least
	t.passed, t.mayPass = t.passed || o.passed, t.mayPass || o.mayPass
	t.against = append(t.against, o.against...)
	if t.text == "" {
		t.text = o.text
	}
}

// rounding is what a sum of weights may lack because of how numbers are kept:
// 0.7 + 0.1 + 0.2 is to be 1.
const rounding = 1e-9

// answer is what becomes of a session with that tally.
func (f *Filter) answer(t *tally) (pipeline.Action, reply.Reply) {
	enough := f.reject - rounding
	if f.reject == 0 || t.passed || t.sum < enough {
		return pipeline.Continue, reply.Reply{}
	}
	action := f.action
	if t.mayPass || t.least < enough {
		action = pipeline.Defer
	}
	code := 554
	if action == pipeline.Defer {
		code = 451
	}
	var parts []string
	for _, c := range t.against {
		parts = append(parts, fmt.Sprintf("%s is listed by %s", c.subject, strings.Join(c.lists, ", ")))
	}
	if t.text != "" {
		parts = append(parts, t.text)
	}
	return action, reply.Make(code, reply.Enhanced{Subject: 7, Detail: 1}, strings.Join(parts, "; "))
}
