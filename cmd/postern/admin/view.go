package admin

import (
	"strconv"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/store"
)

// stamp is a time as the API says it, "" for none.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// replyText is an answer as the API says it, "" for none.
func replyText(s store.State) string {
	if s.Reply == (reply.Reply{}) {
		return ""
	}
	return s.Reply.SMTP()
}

// messageOf puts a view into the API's words, without its recipients.
func messageOf(v *queue.View, now time.Time) api.QueueMessage {
	m := api.QueueMessage{
		ID: v.ID.String(), Number: strconv.FormatUint(uint64(v.ID), 10), Arrival: stamp(v.Arrival),
		Age: int64(max(now.Sub(v.Arrival), 0) / time.Second), Sender: v.Envelope.Sender, Size: v.Size, Form: v.Form.String(),
		Bounce: int(v.Bounce), Bouncing: v.Bouncing(), Total: len(v.Recipients), Left: v.Left(), Counts: map[string]int{},
	}
	if v.Hold != nil {
		m.Hold = &api.QueueHold{Reason: v.Hold.Reason, Filter: v.Hold.Filter, By: v.Hold.By, Since: stamp(v.Hold.Since)}
	}
	var next time.Time
	for i := range v.Recipients {
		r := &v.Recipients[i]
		m.Counts[r.Status.String()]++
		if at := nextOf(v, r); !r.Status.Done() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	if v.Hold == nil {
		m.Next = stamp(next)
	}
	return m
}

// nextOf is when a recipient may be tried: as the schedule says, else as the
// store does, and at once for one that never was.
func nextOf(v *queue.View, r *queue.Recipient) time.Time {
	switch {
	case !r.Next.IsZero():
		return r.Next
	case !r.Due.IsZero():
		return r.Due
	}
	return v.Arrival
}

// recipientsOf are up to most recipients of a view from number first on.
func recipientsOf(v *queue.View, first, most int) []api.QueueRecipient {
	from := min(max(first, 0), len(v.Recipients))
	all := make([]api.QueueRecipient, 0, min(most, len(v.Recipients)-from))
	for i := from; i < len(v.Recipients) && len(all) < most; i++ {
		r := &v.Recipients[i]
		to := api.QueueRecipient{
			Address: r.Address, Status: r.Status.String(), Attempts: int(r.Attempts), Last: stamp(r.Last), Reply: replyText(r.State),
			Where: r.Where, Channel: r.Channel, Domain: r.Domain, Site: r.Site, Lane: r.Lane, InFlight: r.InFlight, Perhaps: r.Perhaps,
			Warned: r.Warned, Reported: r.Reported,
		}
		if !r.Status.Done() && v.Hold == nil {
			to.Next = stamp(nextOf(v, r))
		}
		all = append(all, to)
	}
	return all
}

// originOf puts a stored origin into the API's words.
func originOf(b []byte) *api.Origin {
	if len(b) == 0 {
		return nil
	}
	o, err := pipeline.DecodeOrigin(b)
	if err != nil {
		return &api.Origin{UID: -1, Error: err.Error()}
	}
	a := &api.Origin{
		Transaction: o.Transaction, Entrance: o.Entrance, Protocol: o.Protocol, Standing: o.Standing, Peer: o.Peer, PeerName: o.PeerName,
		Helo: o.Helo, User: o.User, UID: o.UID, Chain: o.Chain, Generation: o.Generation, Received: stamp(o.Received),
	}
	for _, r := range o.Results {
		one := api.AuthResult{Method: r.Method, Result: r.Result, Reason: r.Reason}
		for _, p := range r.Props {
			one.Props = append(one.Props, p.Name+"="+p.Value)
		}
		a.Results = append(a.Results, one)
	}
	a.Trace = TraceOf(o.Trace)
	return a
}

// TraceOf puts a trace into the API's words.
func TraceOf(t pipeline.Trace) (all []api.TraceEntry) {
	for _, e := range t {
		all = append(all, api.TraceEntry{
			Filter: e.Filter, Stage: e.Stage, Action: e.Action, Reply: e.Reply, Reason: e.Reason, Error: e.Err, Skipped: e.Skipped,
			Shadow: e.Shadow, Recipients: e.Recipients, Edits: e.Edits, Took: e.Took.Microseconds(),
		})
	}
	return all
}
