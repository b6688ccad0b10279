package api

// QuarantineRelease asks that messages which filters hold go on.
type QuarantineRelease struct {
	// QueueSelect chooses among the messages in quarantine.
	QueueSelect
	// From is the first filter that is to judge them; "" is the one behind that
	// which holds each. Deliver has no filter judge them.
	From    string `json:"from,omitempty"`
	Deliver bool   `json:"deliver,omitempty"`
}

// QuarantineReleased is what became of messages that were to go on.
type QuarantineReleased struct {
	DryRun bool `json:"dry_run,omitempty"`
	// Released are the messages that went on, all of whose recipients did, Partly
	// those of which some recipients are held still or that have a Warning, and
	// Held the others.
	Released int `json:"released"`
	Partly   int `json:"partly"`
	Held     int `json:"held"`
	// Messages are the first thousand.
	Messages []QuarantineResult `json:"messages"`
	// Missing are those of the IDs asked for that are not in quarantine; not told
	// where a rule was given.
	Missing []string `json:"missing,omitempty"`
	// Undecided is for how many messages the rule had no answer; they were left
	// alone. Why says why for one of them.
	Undecided int    `json:"undecided,omitempty"`
	Why       string `json:"why,omitempty"`
}

// QuarantineResult is what became of one message that was to go on.
type QuarantineResult struct {
	ID string `json:"id"`
	// Recipients is how many there were, Gone how many of them went on or would.
	Recipients int `json:"recipients"`
	Gone       int `json:"gone"`
	// To says where they went: "queue", or the path of the next program.
	To string `json:"to,omitempty"`
	// As are the messages in the queue that took its place, held ones among them.
	As []string `json:"as,omitempty"`
	// Filters are those that judge it, or with a dry run would.
	Filters []string `json:"filters,omitempty"`
	// Copies is how many further messages the filters made.
	Copies int `json:"copies,omitempty"`
	// Error says why nothing was done.
	Error string `json:"error,omitempty"`
	// Warning says what the operator must know of a message that went on: that it
	// is in quarantine all the same, and would go on once more.
	Warning string `json:"warning,omitempty"`
	// Held are the reasons for which recipients are held still.
	Held []QuarantineHeld `json:"held,omitempty"`
	// Trace is what the filters said; of the first hundred messages only.
	Trace []TraceEntry `json:"trace,omitempty"`
}

// QuarantineHeld is for whom and why a message is held still.
type QuarantineHeld struct {
	// Recipients are the first twenty of Total.
	Recipients []string `json:"recipients"`
	Total      int      `json:"total"`
	// Action is what the filter said: reject, defer, discard or quarantine.
	Action string `json:"action"`
	Filter string `json:"filter"`
	Reason string `json:"reason"`
}
