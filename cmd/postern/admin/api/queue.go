package api

// Bounds of the queue's answers and questions.
const (
	// MaxPage is the most messages of a QueuePage, MaxPageRecipients the most
	// recipients of all its messages together, or of a single QueueMessage. Who
	// wants more asks for the next page.
	MaxPage           = 1000
	MaxPageRecipients = 5000
	// MaxNames is the most names of a QueueCounts, MaxSites the most Sites, and
	// MaxProblems the most problems of a Verify.
	MaxNames    = 10_000
	MaxSites    = 10_000
	MaxProblems = 10_000
	// MaxSelect bounds an encoded QueueSelect in bytes.
	MaxSelect = 4 << 20
)

// QueuePage is a part of the queue, by ascending ids.
type QueuePage struct {
	Messages []QueueMessage `json:"messages"`
	// Next and Skip are the from and skip of the page that follows; Next is "" on
	// the last one. A page may be empty and not the last: a search gives up its
	// turn after a while. Where Skip is not 0 the page that follows begins with
	// more recipients of this page's last message.
	Next string `json:"next,omitempty"`
	Skip int    `json:"skip,omitempty"`
	// Undecided is for how many messages the rule had no answer; they are not in
	// the page. Why says why for one of them.
	Undecided int    `json:"undecided,omitempty"`
	Why       string `json:"why,omitempty"`
}

// QueueStats is the queue at a glance. Recipients are those not done with.
type QueueStats struct {
	Messages int64 `json:"messages"`
	Queued   int   `json:"queued"`
	InFlight int   `json:"in_flight"`
	Held     int   `json:"held"`
	// Oldest is when the oldest message came, "" without any.
	Oldest string `json:"oldest,omitempty"`
}

// QueueMessage is a message in the queue. Times are RFC 3339.
type QueueMessage struct {
	ID string `json:"id"`
	// Number is the ID as a decimal number, as qread prints it.
	Number  string `json:"number"`
	Arrival string `json:"arrival"`
	// Age is in seconds.
	Age int64 `json:"age"`
	// Sender is the envelope's sender, "" for reports.
	Sender string `json:"sender"`
	// Size is that of head and body in bytes.
	Size int64 `json:"size"`
	// Form is 7bit, 8bit or utf8.
	Form string     `json:"form"`
	Hold *QueueHold `json:"hold,omitempty"`
	// Bounce is how many reports deep the message is, 0 for mail.
	Bounce int `json:"bounce,omitempty"`
	// Bouncing is set if recipients were given up of whom nobody was told yet.
	Bouncing bool `json:"bouncing,omitempty"`
	// Total is the number of recipients, Left of those not done with, and Counts
	// how many there are of each status.
	Total  int            `json:"total"`
	Left   int            `json:"left"`
	Counts map[string]int `json:"counts"`
	// Next is when the first of those left may be tried, "" if none is left or
	// the message is held.
	Next string `json:"next,omitempty"`
	// Recipients are the envelope's from number First on, in order; there are more
	// if First and their number do not make Total.
	First      int              `json:"first,omitempty"`
	Recipients []QueueRecipient `json:"recipients,omitempty"`
	// Origin is where it came from, and Head the head's text: of a single message
	// only.
	Origin *Origin `json:"origin,omitempty"`
	Head   string  `json:"head,omitempty"`
}

// QueueHold is why a message is held.
type QueueHold struct {
	Reason string `json:"reason"`
	// Filter is set if a filter did it, By if an operator did; neither, if the
	// message could not be delivered and its sender must not be told.
	Filter string `json:"filter,omitempty"`
	By     string `json:"by,omitempty"`
	Since  string `json:"since"`
}

// QueueRecipient is one recipient of a QueueMessage.
type QueueRecipient struct {
	Address string `json:"address"`
	// Status is fresh, deferred, delivered or failed.
	Status   string `json:"status"`
	Attempts int    `json:"attempts"`
	// Next is when it may be tried again, Last when it was tried last.
	Next string `json:"next,omitempty"`
	Last string `json:"last,omitempty"`
	// Reply is what was answered last, Where names who answered.
	Reply string `json:"reply,omitempty"`
	Where string `json:"where,omitempty"`
	// Channel and Domain are how it leaves.
	Channel string `json:"channel"`
	Domain  string `json:"domain"`
	// Site is where it waits, Lane by which pool of source addresses it leaves, ""
	// for the ordinary one, InFlight whether a delivery is going on; they are known
	// while it is not done with.
	Site     string `json:"site,omitempty"`
	Lane     string `json:"lane,omitempty"`
	InFlight bool   `json:"in_flight,omitempty"`
	// Perhaps is set if the message may have been delivered although that was not
	// acknowledged.
	Perhaps bool `json:"perhaps,omitempty"`
	// Warned is set once the sender was told of a delay, Reported once of the end.
	Warned   bool `json:"warned,omitempty"`
	Reported bool `json:"reported,omitempty"`
}

// Origin is where a message came from and what the filters did with it.
type Origin struct {
	Transaction string       `json:"transaction,omitempty"`
	Entrance    string       `json:"entrance,omitempty"`
	Protocol    string       `json:"protocol,omitempty"`
	Standing    string       `json:"standing,omitempty"`
	Peer        string       `json:"peer,omitempty"`
	PeerName    string       `json:"peer_name,omitempty"`
	Helo        string       `json:"helo,omitempty"`
	User        string       `json:"user,omitempty"`
	UID         int          `json:"uid"`
	Chain       string       `json:"chain,omitempty"`
	Generation  uint64       `json:"generation,omitempty"`
	Received    string       `json:"received,omitempty"`
	Results     []AuthResult `json:"results,omitempty"`
	Trace       []TraceEntry `json:"trace,omitempty"`
	// Error says why the origin cannot be read, if it cannot.
	Error string `json:"error,omitempty"`
}

// AuthResult is a finding about who sent a message (RFC 8601 §2.2). Props are
// "header.d=example.org".
type AuthResult struct {
	Method string   `json:"method"`
	Result string   `json:"result"`
	Reason string   `json:"reason,omitempty"`
	Props  []string `json:"props,omitempty"`
}

// TraceEntry is what one filter did at one stage.
type TraceEntry struct {
	Filter     string   `json:"filter"`
	Stage      string   `json:"stage"`
	Action     string   `json:"action,omitempty"`
	Reply      string   `json:"reply,omitempty"`
	Reason     string   `json:"reason,omitempty"`
	Error      string   `json:"error,omitempty"`
	Skipped    string   `json:"skipped,omitempty"`
	Shadow     bool     `json:"shadow,omitempty"`
	Recipients int      `json:"recipients,omitempty"`
	Edits      []string `json:"edits,omitempty"`
	// Took is in microseconds.
	Took int64 `json:"took"`
}

// QueueSelect chooses messages to be changed. One of IDs, Match and All must be
// given; IDs and Match together choose those of the IDs that match.
type QueueSelect struct {
	// IDs are ids or their decimal numbers.
	IDs []string `json:"ids,omitempty"`
	// Match is a rule.
	Match string `json:"match,omitempty"`
	// All chooses the whole queue.
	All bool `json:"all,omitempty"`
	// DryRun changes nothing and tells what would be changed.
	DryRun bool `json:"dry_run,omitempty"`
	// Reason is why, for a hold; By is who asks, for the log.
	Reason string `json:"reason,omitempty"`
	By     string `json:"by,omitempty"`
}

// QueueChanged is what was changed, or would have been.
type QueueChanged struct {
	Messages   int  `json:"messages"`
	Recipients int  `json:"recipients"`
	DryRun     bool `json:"dry_run,omitempty"`
	// InFlight are deliveries that were going on and could not be called back.
	InFlight int `json:"in_flight,omitempty"`
	// IDs are the first messages, a thousand at most.
	IDs []string `json:"ids,omitempty"`
	// Missing are those of the IDs asked for to which nothing was to be done: they
	// are not in the queue, or not as the operation needs them. It is not told
	// where a rule was given or IDs is not complete.
	Missing []string `json:"missing,omitempty"`
	// Undecided is for how many messages the rule had no answer; they were left
	// alone. Why says why for one of them.
	Undecided int    `json:"undecided,omitempty"`
	Why       string `json:"why,omitempty"`
}

// QueueCounts counts the queue by something.
type QueueCounts struct {
	By string `json:"by"`
	// Messages and Recipients are those that were counted, under whatever name;
	// not told where By is site and no rule was given.
	Messages   int `json:"messages"`
	Recipients int `json:"recipients"`
	// Names have the most recipients first.
	Names []QueueCount `json:"names"`
	// More is how many names found no room.
	More int `json:"more,omitempty"`
	// Undecided is for how many messages the rule had no answer.
	Undecided int    `json:"undecided,omitempty"`
	Why       string `json:"why,omitempty"`
}

// QueueCount is how many there are of something.
type QueueCount struct {
	Name string `json:"name"`
	// Messages are those with a recipient under this name; not told where the
	// names are sites and no rule was given.
	Messages   int `json:"messages,omitempty"`
	Recipients int `json:"recipients"`
}

// Verify is what a check of the queue, on disk and in memory, found.
type Verify struct {
	Problems []string `json:"problems"`
	// More is how many problems found no room.
	More int `json:"more,omitempty"`
}

// Site is one far end of connections, as far as mail leaves by one lane.
type Site struct {
	Name string `json:"name"`
	// Lane is the pool of source addresses, "" for the ordinary one.
	Lane     string `json:"lane,omitempty"`
	Domains  int    `json:"domains"`
	Queued   int    `json:"queued"`
	InFlight int    `json:"in_flight"`
	Held     int    `json:"held"`
	// Due are those of the queued that may be tried now; NextDue is when the first
	// of the queued may be.
	Due     int    `json:"due"`
	NextDue string `json:"next_due,omitempty"`
	// Connections are the deliveries going on, Limit the most that there may be,
	// and Allowed the most that there may be now.
	Connections int `json:"connections"`
	Limit       int `json:"limit"`
	Allowed     int `json:"allowed"`
	// Own is set if the limit is the site's own.
	Own bool `json:"own,omitempty"`
	// Living is set if it answered lately; Failures are those since, at most 3.
	Living    bool   `json:"living"`
	Failures  int    `json:"failures,omitempty"`
	Succeeded string `json:"succeeded,omitempty"`
	// Suspended is until when nothing is tried, "forever" until it is resumed.
	Suspended string `json:"suspended,omitempty"`
	Paced     string `json:"paced,omitempty"`
}
