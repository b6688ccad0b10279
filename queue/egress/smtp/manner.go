package smtp

import (
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// manner is how an Exit talks to servers: those of its Options that may change while
// it works.
type manner struct {
	hello                    string
	timeouts                 wire.Timeouts
	connectTimeout           time.Duration
	refuseEightBit, chunking bool
	idle                     time.Duration
	maxMessages              int
	tlsField                 string
	family                   Family
}

func mannerOf(o *Options) *manner {
	return &manner{
		hello: o.Hello, timeouts: o.Timeouts, connectTimeout: o.ConnectTimeout, refuseEightBit: o.RefuseEightBit, chunking: o.Chunking,
		idle: o.Idle, maxMessages: o.MaxMessages, tlsField: o.TLSField, family: o.Family,
	}
}

// Configure takes over from o what may change while the Exit works: Hello, Timeouts,
// ConnectTimeout, RefuseEightBit, Chunking, Idle, MaxMessages, TLSField and Family. A message
// on its way goes on as it was; free connections that were greeted by another name are
// closed, and those in use end with their message.
func (x *Exit) Configure(o Options) {
	o.fill()
	x.manner.Store(mannerOf(&o))
	x.kept.mu.Lock()
	defer x.kept.mu.Unlock()
	x.kept.reset()
}

// helloOf is the name given in EHLO to connections from a source.
func (m *manner) helloOf(s Source) string {
	if s.Hello != "" {
		return s.Hello
	}
	return m.hello
}

// stale reports whether a connection is one that would be made otherwise now.
func (k *kept) stale(l *link) bool {
	m := k.manner.Load()
	return l.hello != m.helloOf(l.key.source) || m.idle < 0
}

// stamped is the message with the field on top that says how the connection is
// protected. It stands above what was signed, and is signed by nobody: how a message
// leaves is known after the last filter has seen it.
func (s *session) stamped() message.Message {
	name := s.a.x.manner.Load().tlsField
	if name == "" {
		return s.content
	}
	how := s.l.tls.String()
	if how == "" {
		how = "none"
	}
	value := how + "; level " + s.policy.Level.String()
	if s.policy.Implicit && s.l.tls.Version != 0 {
		value += ", implicit"
	}
	// A host's name is what the DNS said, and a field is of ASCII here.
	to := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, reply.Clean(s.to.String(), 300))
	value += ";\n\tfrom " + s.l.hello + " to " + to
	head, err := s.content.Head().Edit(message.FieldEdit{Op: message.Add, Name: name, Value: value})
	if err != nil {
		s.a.x.o.Log.Error("a message leaves without the field that says how its connection is protected", "to", s.to.String(), "error", err)
		return s.content
	}
	return s.content.WithHead(head)
}
