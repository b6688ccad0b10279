package sdk

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/postern-mta/postern/plugins/wire"
)

// Session is who calls. It is the same for all calls of a session, and not to be
// changed.
type Session struct {
	// ID is the same for all calls of a session; of no other meaning.
	ID string
	// Protocol is how the mail comes in: "smtp", "qmail-queue", "qmail-remote",
	// "queue"; Entrance is the entrance's name in the configuration.
	Protocol, Entrance string
	// Remote and Local are the two ends of the connection; not valid if there is
	// none.
	Remote, Local netip.AddrPort
	// RemoteName is the client's name in the DNS, as far as it is known.
	RemoteName string
	// Helo is the name that the client gave itself.
	Helo string
	// TLS is the cipher suite's name, "" without TLS.
	TLS string
	// User is who logged in, "" for nobody.
	User string
	// Relay is set if the client may send mail anywhere; LocalHost, if it is this
	// host.
	Relay, LocalHost bool
	// UID is the caller's at a shim, -1 for none.
	UID int64
}

// Transaction is an envelope, and what the filters before have found. It is not to
// be changed.
type Transaction struct {
	*Session
	// ID is the same for all calls of a transaction; of no other meaning.
	ID string
	// Sender is "" for the null sender.
	Sender string
	// Recipients are those that the plugin is asked about; All are all. Before the
	// message, both are those that have been accepted so far.
	Recipients, All []string
	// Chain is the chain's name.
	Chain string
	// Symbols and Results are what the filters before have found.
	Symbols []Symbol
	Results []AuthResult

	active []uint32
}

// Symbol is a finding with a score.
type Symbol struct {
	Name  string
	Score float64
	// Detail says what was found, for logs.
	Detail string
}

// AuthResult is a finding about who sent a message (RFC 8601 §2.2).
type AuthResult struct {
	// Method and Result are the RFC's words, "dkim" and "pass".
	Method, Result, Reason string
	Properties             []Property
}

// Property is a part of an AuthResult, "header.d" and "example.org".
type Property struct{ Name, Value string }

func addrPort(ip string, port uint32) (netip.AddrPort, error) {
	if ip == "" {
		return netip.AddrPort{}, nil
	}
	a, err := netip.ParseAddr(ip)
	if err != nil || port > 65535 {
		return netip.AddrPort{}, fmt.Errorf("the address %q, port %d, is none", ip, port)
	}
	return netip.AddrPortFrom(a, uint16(port)), nil
}

func readSession(w *wire.Session) (*Session, error) {
	remote, err := addrPort(w.GetRemoteIp(), w.GetRemotePort())
	if err != nil {
		return nil, err
	}
	local, err := addrPort(w.GetLocalIp(), w.GetLocalPort())
	if err != nil {
		return nil, err
	}
	s := &Session{
		ID: w.GetId(), Protocol: w.GetProtocol(), Entrance: w.GetEntrance(), Remote: remote, Local: local, RemoteName: w.GetRemoteName(),
		Helo: string(w.GetHelo()), TLS: w.GetTls(), User: string(w.GetUser()), Relay: w.GetRelay(), LocalHost: w.GetLocal(), UID: w.GetUid(),
	}
	return s, nil
}

func readTransaction(w *wire.Transaction, s *Session, at Stage, needs Needs) (*Transaction, error) {
	if w == nil {
		return nil, errors.New("there is no transaction")
	}
	tx := &Transaction{Session: s, ID: w.Id, Sender: string(w.Sender), Chain: w.Chain, active: w.Active}
	for _, r := range w.Recipients {
		tx.All = append(tx.All, string(r))
	}
	tx.Recipients = tx.All
	switch {
	case at >= AtMessage && needs == NeedsNothing:
		// The envelope was left out; what is said of its recipients means nobody.
		tx.active = nil
	case at >= AtMessage:
		tx.Recipients = make([]string, len(w.Active))
		for i, n := range w.Active {
			if int64(n) >= int64(len(tx.All)) {
				return nil, fmt.Errorf("there is no recipient %d", n)
			}
			tx.Recipients[i] = tx.All[n]
		}
	}
	for _, f := range w.Symbols {
		tx.Symbols = append(tx.Symbols, Symbol{f.GetName(), f.GetScore(), f.GetDetail()})
	}
	for _, r := range w.Results {
		result := AuthResult{Method: r.GetMethod(), Result: r.GetResult(), Reason: r.GetReason()}
		for _, p := range r.GetProperties() {
			result.Properties = append(result.Properties, Property{p.GetName(), p.GetValue()})
		}
		tx.Results = append(tx.Results, result)
	}
	return tx, nil
}
