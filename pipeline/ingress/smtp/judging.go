package smtp

import (
	"errors"
	"fmt"

	"github.com/postern-mta/postern/pipeline"
)

// judging is a session's part of the chain. The Judge is made when a stage with
// filters comes: most connections of an idle hour never get that far.
type judging struct {
	generation *pipeline.Generation
	chain      *pipeline.Chain
	judge      *pipeline.Judge
	connected  bool // the connect stage is behind
	greeted    bool // the helo stage is
}

var errNoConfig = errors.New("no configuration is in force")

// startJudging takes the configuration in force, with which the session goes on
// to its end.
func (n *session) startJudging() error {
	if n.generation != nil {
		n.rejudge()
		return nil
	}
	o := &n.srv.o
	if n.generation = o.Chains.Acquire(); n.generation == nil {
		return errNoConfig
	}
	if n.chain = n.generation.Chain(o.Chain); n.chain == nil {
		return fmt.Errorf("the configuration has no chain %q", o.Chain)
	}
	return nil
}

// rejudge starts anew: what was held against the client before counts no more.
func (n *session) rejudge() {
	if n.judge != nil {
		n.judge.Close()
		n.judge = nil
	}
	n.connected, n.greeted = false, false
}

func (n *session) stopJudging() {
	n.rejudge()
	if n.generation != nil {
		n.generation.Release() //nolint:errcheck // what is closed late is no business of this session
		n.generation = nil
	}
}

func (n *session) begun() *pipeline.Judge {
	if n.judge == nil {
		n.judge = n.chain.Begin()
	}
	return n.judge
}

// held reports whether a verdict against a client is not told before MAIL,
// because it may yet turn out to be a user of ours.
func (n *session) held() bool {
	o := &n.srv.o
	return o.Late || n.facts.User == "" && (o.Auth != nil || o.Service == Submission)
}

// judgeConnect runs the connect stage; told says that its verdict is against
// the client and is to be told now.
func (n *session) judgeConnect() (f pipeline.Fate, told bool) {
	if n.srv.o.Service == Submission && n.facts.User == "" {
		return f, false // nobody is judged before we know who it is
	}
	n.connected = true
	if !n.chain.JudgesAt(pipeline.AtConnect) {
		return f, false
	}
	f = n.begun().Connect(n.srv.ctx, n.show())
	return f, against(f) && !n.held()
}

// judgeHelo runs the helo stage likewise.
func (n *session) judgeHelo() (f pipeline.Fate, told bool) {
	if !n.connected {
		return f, false
	}
	n.greeted = true
	if !n.chain.JudgesAt(pipeline.AtHelo) {
		return f, false
	}
	f = n.begun().Helo(n.srv.ctx, n.show())
	return f, against(f) && !n.held()
}

// catchUp runs the stages that wait for MAIL.
func (n *session) catchUp() {
	if !n.connected {
		n.connected = true
		if n.chain.JudgesAt(pipeline.AtConnect) {
			n.begun().Connect(n.srv.ctx, n.show())
		}
	}
	if !n.greeted {
		n.judgeHelo()
	}
}

func against(f pipeline.Fate) bool {
	return f.Action == pipeline.Reject || f.Action == pipeline.Defer
}
