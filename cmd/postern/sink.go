package main

import (
	"context"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// discard takes everything and keeps nothing, for measuring.
type discard struct{}

// Submit forgets the messages.
func (discard) Submit(context.Context, []pipeline.Outgoing) (reply.Reply, error) {
	return reply.OK, nil
}
