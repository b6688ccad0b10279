package qfilter

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
)

// parseEnvelope reads what a program wrote on descriptor 4. What follows the
// envelope's end is not read, as by qmail-queue.
func parseEnvelope(raw []byte) (envelope.Envelope, error) {
	e, err := envelope.Read(bytes.NewReader(raw), envelope.Limits{})
	if err != nil {
		return e, err
	}
	if !envelope.ValidBytes(e.Sender) {
		return e, fmt.Errorf("the sender %q holds a control character", reply.Clean(e.Sender, 200))
	}
	for _, r := range e.Recipients {
		switch {
		case r.Address == "":
			return e, errors.New("a recipient is empty")
		case !envelope.ValidBytes(r.Address):
			return e, fmt.Errorf("the recipient %q holds a control character", reply.Clean(r.Address, 200))
		}
	}
	return e, nil
}

// envelopeEdits puts into a verdict what programs have made of the envelope.
func (r *run) envelopeEdits(v *pipeline.Verdict) error {
	if !r.moved {
		return nil
	}
	was := r.tx.Envelope
	if r.env.Sender != was.Sender {
		v.Edits = append(v.Edits, pipeline.Edit{Kind: pipeline.EditSender, Address: r.env.Sender})
	}
	gone, added := compare(was, r.tx.Active, r.env)
	switch {
	case len(added) > 0 && len(r.tx.Active) == 0:
		return errors.New("a program adds recipients to a message that has none")
	case len(gone) == 0 && len(added) == 0:
		return nil
	case len(r.env.Recipients) == 0:
		v.Action, v.Edits = pipeline.Discard, nil
		v.Reason += "; no recipient is left"
		return nil
	case r.changed == nil && r.env.Sender == was.Sender && inPlace(was, r.tx.Active, r.env, len(gone), len(added)):
		v.Others = renamed(was, r.tx.Active, r.env)
		return nil
	case len(gone) == len(r.tx.Active): // the new ones take their place
		v.Edits = append(v.Edits, pipeline.Edit{Kind: pipeline.EditRecipient, Address: added[0]})
		added = added[1:]
	case len(gone) > 0:
		v.Others = []pipeline.Verdict{{Action: pipeline.Discard, Only: gone, Reason: "a program has dropped the recipient"}}
	}
	for _, address := range added {
		v.Edits = append(v.Edits, pipeline.Edit{Kind: pipeline.EditAddRecipient, Address: address})
	}
	return nil
}

// inPlace is whether each recipient that is gone has another in its place, each
// its own, and nothing else has changed.
func inPlace(was envelope.Envelope, active []int, is envelope.Envelope, gone, added int) bool {
	if len(is.Recipients) != len(active) || gone != added {
		return false
	}
	times := make(map[string]int, len(is.Recipients))
	for _, r := range is.Recipients {
		times[r.Address]++
	}
	for i, n := range active {
		if a := is.Recipients[i].Address; a != was.Recipients[n].Address {
			if gone--; times[a] > 1 {
				return false
			}
		}
	}
	return gone == 0
}

// renamed are verdicts about recipients that have other addresses in their places.
// They stay who they are, with the parameters that came with them.
func renamed(was envelope.Envelope, active []int, is envelope.Envelope) (others []pipeline.Verdict) {
	for i, n := range active {
		if a := is.Recipients[i].Address; a != was.Recipients[n].Address {
			others = append(others, pipeline.Verdict{Only: []int{n}, Reason: "another address", Edits: []pipeline.Edit{{Kind: pipeline.EditRecipient, Address: a}}})
		}
	}
	return others
}

// compare tells which recipients, of those that the filter was asked about, are
// gone, and which are new. One that stands there twice counts twice.
func compare(was envelope.Envelope, active []int, is envelope.Envelope) (gone []int, added []string) {
	left := make(map[string]int, len(is.Recipients))
	for _, r := range is.Recipients {
		left[r.Address]++
	}
	for _, n := range active {
		a := was.Recipients[n].Address
		if left[a] == 0 {
			gone = append(gone, n)
			continue
		}
		left[a]--
	}
	// Of one that has become more, the last ones are new.
	for i := len(is.Recipients) - 1; i >= 0; i-- {
		if a := is.Recipients[i].Address; left[a] > 0 {
			left[a]--
			added = append(added, a)
		}
	}
	slices.Reverse(added)
	return gone, added
}
