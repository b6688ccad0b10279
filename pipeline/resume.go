package pipeline

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Resume says where a message goes on that a filter held and an operator
// releases.
type Resume struct {
	// After is the filter behind which it goes on, by its name.
	After string
	// From, if set, is the first filter that judges it, in place of After.
	From string
	// Accepted, Results and Symbols are those of the message's Origin. What
	// follows the filter From is asked whether the message was accepted or not.
	Accepted bool
	Results  []AuthResult
	Symbols  []Symbol
}

// NoStepError is the error about a filter that a chain does not have, or that
// says nothing about messages.
type NoStepError struct {
	Chain, Filter string
	// Names are the filters that there are for messages, in order.
	Names []string
	// Elsewhere is set if the filter is there and judges at other stages only.
	Elsewhere bool
}

// Error says which filters there are.
func (e *NoStepError) Error() string {
	why := "has no filter"
	if e.Elsewhere {
		why = "does not ask about messages the filter"
	}
	there := "none"
	if len(e.Names) > 0 {
		there = strings.Join(e.Names, ", ")
	}
	return fmt.Sprintf("the chain %s %s %s; those that judge messages are: %s", e.Chain, why, reply.Clean(e.Filter, maxReason), there)
}

// Rest are the filters that Resume would ask, in order, by their names. The
// error is a *NoStepError.
func (c *Chain) Rest(r Resume) ([]string, error) {
	rest, err := c.rest(r)
	return c.names(rest), err
}

// Resume takes a message through the rest of the message stage. What its session
// was asked before the message it is not asked again: it is long over. The
// transaction's session answers for each recipient, whatever its protocol: the
// fates are the recipients' own, and what some accept is in Outgoing whatever
// the others do; there are no Refused. The trace is that of the rest. The caller
// keeps its hold on the body and must Release the outcome. The error is a
// *NoStepError.
func (c *Chain) Resume(ctx context.Context, tx *Transaction, m message.Message, r Resume) (*Outcome, error) {
	steps, err := c.rest(r)
	if err != nil {
		return nil, err
	}
	session, again := *tx.Session, *tx
	session.AnswersEach = true
	again.Session = &session
	j := c.Begin()
	defer j.Close()
	ctx, cancel := context.WithTimeout(ctx, c.o.Deadline)
	defer cancel()
	j.results, j.symbols = slices.Clip(r.Results), slices.Clip(r.Symbols)
	if r.Accepted && r.From == "" {
		j.sender = Fate{Action: Accept}
	}
	return j.judgeMessage(ctx, &again, m, steps), nil
}

// rest are the steps of the message stage that follow.
func (c *Chain) rest(r Resume) ([]int, error) {
	all := c.at[AtMessage]
	name := r.From
	if name == "" {
		name = r.After
	}
	at := len(c.steps) - 1
	for at >= 0 && c.steps[at].Name != name {
		at--
	}
	if at < 0 || r.From != "" && !slices.Contains(all, at) {
		return nil, &NoStepError{Chain: c.name, Filter: name, Names: c.names(all), Elsewhere: at >= 0}
	}
	first := at + 1
	if r.From != "" {
		first = at
	}
	return all[sortedIndex(all, first):], nil
}

// sortedIndex is where in a rising list the first number is that is not below n.
func sortedIndex(all []int, n int) int {
	i, _ := slices.BinarySearch(all, n)
	return i
}

func (c *Chain) names(steps []int) []string {
	all := make([]string, len(steps))
	for k, i := range steps {
		all[k] = c.steps[i].Name
	}
	return all
}
