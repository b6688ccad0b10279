package host

import (
	"net/netip"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/plugins/wire"
)

// sessionOf is a session as a plugin is told of it.
func sessionOf(s *pipeline.Session) *wire.Session {
	w := &wire.Session{
		Id: text(s.ID), Protocol: text(s.Protocol), Entrance: text(s.Entrance), RemoteName: text(s.PeerName), Helo: []byte(s.Helo),
		Tls: text(s.TLS), User: []byte(s.User), Relay: s.Standing == pipeline.Relayed || s.Standing == pipeline.Authenticated,
		Local: s.Standing == pipeline.Local, Uid: int64(s.UID),
	}
	setPeer(w, s.Peer)
	return w
}

func setPeer(w *wire.Session, peer netip.AddrPort) {
	if peer.IsValid() {
		w.RemoteIp, w.RemotePort = peer.Addr().String(), uint32(peer.Port())
	}
}

// departing is the session by which a message came that leaves now.
func departing(o *pipeline.Origin) *wire.Session {
	standing := pipeline.ParseStanding(o.Standing)
	return &wire.Session{
		Id: text(o.Transaction), Protocol: text(o.Protocol), Entrance: text(o.Entrance), RemoteIp: text(o.Peer), RemoteName: text(o.PeerName),
		Helo: []byte(o.Helo), Tls: text(o.TLS), User: []byte(o.User), Uid: int64(o.UID),
		Relay: standing == pipeline.Relayed || standing == pipeline.Authenticated, Local: standing == pipeline.Local,
	}
}

// transactionOf is a transaction; its envelope is left out where the plugin does
// not need it.
func transactionOf(tx *pipeline.Transaction, envelope bool) *wire.Transaction {
	w := &wire.Transaction{Id: text(tx.ID), Chain: text(tx.Chain), Symbols: symbolsOf(tx.Symbols), Results: resultsOf(tx.Results)}
	if envelope {
		setEnvelope(w, &tx.Envelope)
	}
	w.Active = indexes(tx.Active)
	return w
}

func setEnvelope(w *wire.Transaction, e *envelope.Envelope) {
	w.Sender = []byte(e.Sender)
	if len(e.Recipients) > 0 {
		w.Recipients = make([][]byte, len(e.Recipients))
	}
	for i, r := range e.Recipients {
		w.Recipients[i] = []byte(r.Address)
	}
}

func indexes(all []int) []uint32 {
	if len(all) == 0 {
		return nil
	}
	some := make([]uint32, len(all))
	for i, n := range all {
		some[i] = uint32(n)
	}
	return some
}

func symbolsOf(all []pipeline.Symbol) []*wire.Symbol {
	var some []*wire.Symbol
	for _, s := range all {
		some = append(some, &wire.Symbol{Name: text(s.Name), Score: s.Score, Detail: text(s.Detail)})
	}
	return some
}

func resultsOf(all []pipeline.AuthResult) []*wire.AuthResult {
	var some []*wire.AuthResult
	for _, r := range all {
		w := &wire.AuthResult{Method: text(r.Method), Result: text(r.Result), Reason: text(r.Reason)}
		for _, p := range r.Props {
			w.Properties = append(w.Properties, &wire.Property{Name: text(p.Name), Value: text(p.Value)})
		}
		some = append(some, w)
	}
	return some
}

// messageOf is a message without its body, as far as the plugin needs it.
func messageOf(m message.Message, needs wire.Needs) *wire.Message {
	head := m.Head().String()
	w := &wire.Message{BodySize: m.Body().Size()}
	if n := len(head); n > 0 {
		if bare := withoutBlank(head); needs >= wire.Needs_NEEDS_HEAD {
			w.Head, n = []byte(bare), len(bare)
		} else {
			n = len(bare)
		}
		w.HeadSize = int64(n)
	}
	return w
}

// withoutBlank takes off the blank line that ends a head.
func withoutBlank(head string) string {
	switch n := len(head); {
	case head == "\n" || head == "\r\n":
		return ""
	case n >= 2 && head[n-2:] == "\n\n":
		return head[:n-1]
	case n >= 3 && head[n-3:] == "\n\r\n":
		return head[:n-2]
	}
	return head
}
