package handoff

import (
	"fmt"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// takeMark takes the mark off a message that has come back, forwarded by a user
// or sent by a list. A mark that does not count says that the message was here,
// or claims so, and was changed since, as lists and mail programs do that send
// on: nobody knows any more who wrote it, so it counts as a stranger's, as it
// would at the exit.
func (n *session) takeMark(m message.Message) (message.Message, error) {
	if n.srv.o.Marks == nil {
		return m, nil
	}
	out, prior, why, err := n.srv.o.Marks.Take(m)
	if err != nil {
		return m, reply.With(reply.ReadError, err)
	}
	n.prior = prior
	if why != nil {
		n.prior = &pipeline.Origin{Standing: pipeline.Stranger.String(), UID: -1}
		n.srv.o.Log.Debug("a mark does not count", "id", n.rec.id, "why", why)
	}
	return out, nil
}

// marked are the messages with their origin in them, but for those that are
// held here, which have it in the queue. What a stranger sent stays a
// stranger's, whoever forwards it.
func (n *session) marked(all []pipeline.Outgoing) ([]pipeline.Outgoing, error) {
	if n.srv.o.Marks == nil {
		return all, nil
	}
	marked := make([]pipeline.Outgoing, len(all))
	for i, o := range all {
		if n.prior != nil && n.prior.IsExternal() {
			o.Origin.Standing, o.Origin.User = pipeline.Stranger.String(), ""
		}
		if o.Hold == "" {
			m, err := n.srv.o.Marks.Put(o.Message, o.Origin)
			if err != nil {
				return nil, reply.With(reply.Trouble, fmt.Errorf("marking: %w", err))
			}
			o.Message = m
		}
		marked[i] = o
	}
	return marked, nil
}
