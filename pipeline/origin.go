package pipeline

import (
	"encoding/json"
	"fmt"
	"time"
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
	PeerClaim   string       `json:"peer_claim,omitempty"`
	PeerTrouble bool         `json:"peer_trouble,omitempty"`
	TLS         string       `json:"tls,omitempty"`
	Helo        string       `json:"helo,omitempty"`
	User        string       `json:"user,omitempty"`
	UID         int          `json:"uid"`
	Chain       string       `json:"chain,omitempty"`
	Generation  uint64       `json:"generation,omitempty"`
	Received    time.Time    `json:"received"`
	Results     []AuthResult `json:"results,omitempty"`
	Trace       Trace        `json:"trace,omitempty"`
	// Pool is the pool of source addresses that a rule has chosen for the message,
	// "" for none.
	Pool string `json:"pool,omitempty"`
	// Symbols are the findings with a score, and Accepted says that a filter had
	// accepted the message: both of a message only that another filter holds, for
	// the filters that judge it when it is released.
	Symbols  []Symbol `json:"symbols,omitempty"`
	Accepted bool     `json:"accepted,omitempty"`
}

// OriginOf is the origin of a session's transaction.
func OriginOf(s *Session, tx *Transaction) Origin {
	o := Origin{
		Transaction: tx.ID, Entrance: s.Entrance, Protocol: s.Protocol, Standing: s.Standing.String(),
		PeerName: s.PeerName, PeerClaim: s.PeerClaim, PeerTrouble: s.PeerTrouble, TLS: s.TLS, Helo: s.Helo, User: s.User, UID: s.UID, Chain: tx.Chain, Received: s.Start,
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

// maxOrigin bounds an encoded origin in bytes.
const maxOrigin = 1 << 20

// Encode is the origin as the queue keeps it. What DecodeOrigin would find too
// long loses the end of its trace, then of its results: a message must not be
// lost because much was said about it.
func (o Origin) Encode() ([]byte, error) {
	for {
		b, err := json.Marshal(o)
		switch {
		case err != nil:
			return nil, err
		case len(b) <= maxOrigin:
			return b, nil
		case len(o.Trace) > 0:
			o.Trace = o.Trace[:len(o.Trace)/2]
		case len(o.Results) > 0:
			o.Results = o.Results[:len(o.Results)/2]
		case len(o.Symbols) > 0:
			o.Symbols = o.Symbols[:len(o.Symbols)/2]
		default:
			return nil, fmt.Errorf("origin of %d bytes", len(b))
		}
	}
}

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
