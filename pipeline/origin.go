package pipeline

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
)

// Origin is where a message came from. It is stored with the message, and
// decides at the exit, after a restart as well, whether we may sign it, whether
// we may send a bounce, and where a message that is released continues. The
// queue keeps its encoding without looking into it.
type Origin struct {
	Transaction string       `json:"id"`
	Entrance    string       `json:"entrance"`
	Protocol    string       `json:"protocol,omitempty"`
	Standing    string       `json:"standing"`
	Peer        string       `json:"peer,omitempty"`
	PeerName    string       `json:"peer_name,omitempty"`
	Helo        string       `json:"helo,omitempty"`
	User        string       `json:"user,omitempty"`
	UID         int          `json:"uid"`
	Chain       string       `json:"chain,omitempty"`
	Generation  uint64       `json:"generation,omitempty"`
	Received    time.Time    `json:"received"`
	Results     []AuthResult `json:"results,omitempty"`
	Trace       Trace        `json:"trace,omitempty"`
}

// OriginOf is the origin of a session's transaction.
func OriginOf(s *Session, tx *Transaction) Origin {
	o := Origin{
		Transaction: tx.ID, Entrance: s.Entrance, Protocol: s.Protocol, Standing: s.Standing.String(),
		PeerName: s.PeerName, Helo: s.Helo, User: s.User, UID: s.UID, Chain: tx.Chain, Received: s.Start,
		Results: tx.Results,
	}
	if s.Peer.IsValid() {
		o.Peer = s.Peer.Addr().String()
	}
	return o
}

// IsExternal reports whether the message came from a stranger, to whom a
// bounce would be backscatter.
func (o Origin) IsExternal() bool { return ParseStanding(o.Standing) == Stranger }

// Encode is the origin as the queue keeps it.
func (o Origin) Encode() ([]byte, error) { return json.Marshal(o) }

// maxOrigin bounds what DecodeOrigin reads, in bytes.
const maxOrigin = 1 << 20

// DecodeOrigin is the inverse of Encode. Fields that a later version added are
// passed over, so that a queue can be read by an older program.
func DecodeOrigin(b []byte) (Origin, error) {
	var o Origin
	if len(b) > maxOrigin {
		return o, fmt.Errorf("origin of %d bytes", len(b))
	}
	if err := json.Unmarshal(b, &o); err != nil {
		return Origin{}, fmt.Errorf("origin: %w", err)
	}
	return o, nil
}

// AuthResult is one finding about who sent a message (RFC 8601 §2.2).
type AuthResult struct {
	// Method and Result are the RFC's words, "dkim" and "pass".
	Method string `json:"method"`
	Result string `json:"result"`
	Reason string `json:"reason,omitempty"`
	// Props are ptype.property and value, "header.d" and "example.org".
	Props []Prop `json:"props,omitempty"`
}

// Prop is a property of an AuthResult.
type Prop struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Symbol is a finding with a score, for a filter that adds them up.
type Symbol struct {
	Name  string  `json:"name"`
	Score float64 `json:"score"`
	// Detail says what was found, for logs.
	Detail string `json:"detail,omitempty"`
}

// Trace is what every filter did with a message, in order.
type Trace []Entry

// Entry is what one filter did at one stage.
type Entry struct {
	Filter string `json:"filter"`
	Stage  string `json:"stage"`
	// Action is the verdict's word, "" if the filter did not run.
	Action string `json:"action,omitempty"`
	// Reply is what the peer would hear of a verdict that decides.
	Reply string `json:"reply,omitempty"`
	// Reason is the filter's own explanation, Err its error or the chain's.
	Reason string `json:"reason,omitempty"`
	Err    string `json:"error,omitempty"`
	// Skipped says why it did not run: "when", "off", "not for our own", "decided".
	Skipped string `json:"skipped,omitempty"`
	// Shadow is set where the verdict was recorded only.
	Shadow bool `json:"shadow,omitempty"`
	// Recipients is for how many recipients the entry speaks.
	Recipients int `json:"recipients,omitempty"`
	// Edits describe what it changed.
	Edits []string `json:"edits,omitempty"`
	// Took is the filter's time.
	Took time.Duration `json:"took,omitempty"`
}

// maxTrace bounds a trace in entries, maxReason each of its texts in bytes.
const (
	maxTrace  = 256
	maxReason = 500
)

// add appends an entry, or adds it to the last one if they say the same about
// different recipients.
func (t Trace) add(e Entry) Trace {
	e.Reason = reply.Clean(e.Reason, maxReason)
	e.Err = reply.Clean(e.Err, maxReason)
	if n := len(t); n > 0 && e.Edits == nil && t[n-1].same(e) {
		t[n-1].Recipients += e.Recipients
		t[n-1].Took += e.Took
		return t
	}
	if len(t) >= maxTrace {
		return t
	}
	return append(t, e)
}

func (e Entry) same(o Entry) bool {
	return e.Filter == o.Filter && e.Stage == o.Stage && e.Action == o.Action && e.Reply == o.Reply &&
		e.Reason == o.Reason && e.Err == o.Err && e.Skipped == o.Skipped && e.Shadow == o.Shadow && e.Edits == nil
}
