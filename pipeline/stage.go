package pipeline

import "github.com/postern-mta/postern/pipeline/reply"

// Action is what is to become of a message for a recipient; see package reply.
type Action = reply.Action

// The actions.
const (
	Continue   = reply.Continue
	Accept     = reply.Accept
	Reject     = reply.Reject
	Defer      = reply.Defer
	Discard    = reply.Discard
	Quarantine = reply.Quarantine
)

// Stage is the time in a message's passage at which a filter judges.
type Stage uint8

// The stages, in their order.
const (
	AtConnect Stage = iota
	AtHelo
	AtSender
	AtRecipient
	AtMessage
	AtDelivery
	stages
)

// Stages is how many stages there are, for tables indexed by Stage.
const Stages = int(stages)

var stageNames = [Stages]string{"connect", "helo", "sender", "recipient", "message", "delivery"}

// String is the stage's word in logs and traces.
func (s Stage) String() string {
	if int(s) < Stages {
		return stageNames[s]
	}
	return "invalid"
}

// legal is the table of what a filter may answer at which stage. Before there
// is a message there is nothing to quarantine; before there is an envelope,
// nothing to discard; at the exit a message may be put off, given up or held,
// but not quietly dropped.
var legal = [Stages][reply.Actions]bool{
	AtConnect:   {Continue: true, Accept: true, Reject: true, Defer: true},
	AtHelo:      {Continue: true, Accept: true, Reject: true, Defer: true},
	AtSender:    {Continue: true, Accept: true, Reject: true, Defer: true, Discard: true},
	AtRecipient: {Continue: true, Accept: true, Reject: true, Defer: true, Discard: true},
	AtMessage:   {Continue: true, Accept: true, Reject: true, Defer: true, Discard: true, Quarantine: true},
	AtDelivery:  {Continue: true, Accept: true, Reject: true, Defer: true, Quarantine: true},
}

// Legal reports whether a filter may answer a at stage s.
func Legal(s Stage, a Action) bool {
	return int(s) < Stages && int(a) < reply.Actions && legal[s][a]
}

// editable says at which stages a verdict may carry edits or a body.
func editable(s Stage) bool { return s == AtMessage || s == AtDelivery }
