package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// callouts asks servers about recipients, through the exit of our own queue, whose
// limits hold for questions as well, or through one of its own where there is no
// queue.
type callouts struct {
	d *daemon

	mu   sync.Mutex
	exit *smtp.Exit
}

// Ask is pipeline.Callouts.
func (c *callouts) Ask(ctx context.Context, domain string, recipients ...string) ([]reply.Reply, error) {
	current := c.d.current.Load()
	if current != nil && current.IsLocal(domain) {
		return nil, fmt.Errorf("mail for %s is delivered here, and there is no server to ask: name other domains in the check's domains", clean(domain))
	}
	exit, err := c.way()
	if err != nil {
		return nil, err
	}
	answers, err := exit.Ask(ctx, domain, recipients...)
	all := make([]reply.Reply, len(answers))
	for i, a := range answers {
		all[i] = a.Reply()
	}
	return all, err
}

func (c *callouts) way() (*smtp.Exit, error) {
	if c.d.engine != nil {
		return c.d.engine.remote, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exit != nil {
		return c.exit, nil
	}
	var err error
	c.exit, err = c.d.newRemoteExit(c.d.current.Load())
	return c.exit, err
}
