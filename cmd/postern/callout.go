package main

import (
	"context"
	"fmt"

	"github.com/postern-mta/postern/pipeline/reply"
)

// callouts asks servers about recipients. Limits hold for questions as for mail: where
// they have no room now, it waits for as long as the asker does, and not in line,
// because a client waits.
type callouts struct{ d *daemon }

// Ask is pipeline.Callouts.
func (c *callouts) Ask(ctx context.Context, domain string, recipients ...string) ([]reply.Reply, error) {
	current := c.d.current.Load()
	if current != nil && current.IsLocal(domain) {
		return nil, fmt.Errorf("mail for %s is delivered here, and there is no server to ask: name other domains in the check's domains", clean(domain))
	}
	answers, err := c.d.outward.ask(ctx, domain, recipients...)
	all := make([]reply.Reply, len(answers))
	for i, a := range answers {
		all[i] = a.Reply()
	}
	return all, err
}
