// Package submission fills in what our users' programs leave out of a message:
// Date, Message-ID, From, and the domains of bare addresses (RFC 6409 §8), as
// qmail-inject does.
//
// It promises to change nothing else: every byte that is not one of these, of
// fields that it completes as well, stays as it came; an address list that it
// cannot read is left alone; and mending a message takes time in proportion to
// its head, whatever that holds. It is for listeners of our own users: mail
// from elsewhere is not ours to mend.
package submission

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// Bcc is what becomes of the Bcc fields.
type Bcc uint8

// The zero Bcc keeps them, as RFC 6409 leaves to us.
const (
	KeepBcc Bcc = iota
	RemoveBcc
)

var bccNames = [...]string{"keep", "remove"}

// String is the word of the option "bcc".
func (b Bcc) String() string {
	if int(b) < len(bccNames) {
		return bccNames[b]
	}
	return "invalid"
}

// ParseBcc is the inverse of String.
func ParseBcc(s string) (Bcc, bool) {
	for i, name := range bccNames {
		if s == name {
			return Bcc(i), true
		}
	}
	return KeepBcc, false
}

// Options of a Mender. Only Hostname must be given; the other names default to
// it, as they do in qmail (qmail-inject.8).
type Options struct {
	Hostname string
	// DefaultHost is the domain of an address that has none, DefaultDomain what a
	// domain without a dot lies in, and PlusDomain what takes the place of a plus
	// sign at a domain's end.
	DefaultHost, DefaultDomain, PlusDomain string
	// IDHost is the domain of Message-IDs.
	IDHost string
	Bcc    Bcc
	// Now is the clock, whose zone Date shows; nil means time.Now.
	Now func() time.Time
	// Random makes Message-IDs that nobody can guess; nil means crypto/rand.
	Random io.Reader
}

// Mender mends messages. It is safe for concurrent use if its clock and its
// source of randomness are.
type Mender struct {
	o     Options
	hosts hosts
}

// New makes a mender. It fails for a name that could not stand in a header.
func New(o Options) (*Mender, error) {
	if o.Hostname == "" {
		return nil, errors.New("submission: Options.Hostname is missing")
	}
	for _, n := range []struct {
		key  string
		name *string
	}{{"hostname", &o.Hostname}, {"defaulthost", &o.DefaultHost}, {"defaultdomain", &o.DefaultDomain}, {"plusdomain", &o.PlusDomain}, {"idhost", &o.IDHost}} {
		if *n.name == "" {
			*n.name = o.Hostname
		}
		if !isHost(*n.name) {
			return nil, fmt.Errorf("%s: %q is no host name", n.key, *n.name)
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	m := &Mender{o: o, hosts: hosts{domain: "." + o.DefaultDomain, plus: "." + o.PlusDomain}}
	m.hosts.host = "@" + o.DefaultHost + m.hosts.missing(o.DefaultHost)
	return m, nil
}

// isHost takes letters, digits, hyphens and underscores between single dots.
func isHost(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return false
		}
	}
	return len(name) <= 255
}

// Mend completes the addresses of e, in which the recipients are replaced and
// not changed, and gives the message with a mended head. The body is the same.
// It fails, with reply.AddressTooLong, if a completed address is too long for
// an envelope, and temporarily if there is no randomness.
func (m *Mender) Mend(ctx context.Context, s *pipeline.Session, e *envelope.Envelope, msg message.Message) (message.Message, error) {
	if err := ctx.Err(); err != nil {
		return msg, err
	}
	if err := m.envelope(e); err != nil {
		return msg, err
	}
	msg = m.hosts.completeHead(msg)
	edits, err := m.missing(s, e, msg.Head())
	if err != nil {
		return msg, err
	}
	if m.o.Bcc == RemoveBcc {
		edits = append(edits, message.FieldEdit{Op: message.Remove, Name: "Bcc"})
	}
	head, err := msg.Head().Edit(edits...)
	if err != nil {
		return msg, reply.With(reply.Internal, err)
	}
	return msg.WithHead(head), nil
}

func (m *Mender) envelope(e *envelope.Envelope) error {
	done := e.Clone()
	done.Sender = m.hosts.complete(e.Sender)
	for i := range done.Recipients {
		done.Recipients[i].Address = m.hosts.complete(done.Recipients[i].Address)
	}
	for _, address := range append(done.Addresses(), done.Sender) {
		if len(address) > envelope.MaxAddress {
			return reply.With(reply.AddressTooLong, fmt.Errorf("an address of %d bytes, once it is complete", len(address)))
		}
	}
	*e = done
	return nil
}

// missing are the fields to be added, below those that are there. A field that
// is there counts whatever it says.
func (m *Mender) missing(s *pipeline.Session, e *envelope.Envelope, h message.Head) ([]message.FieldEdit, error) {
	var edits []message.FieldEdit
	add := func(name, value string) {
		edits = append(edits, message.FieldEdit{Op: message.Append, Name: name, Value: value})
	}
	now := m.o.Now()
	if !has(h, "Date") {
		add("Date", now.Format(time.RFC1123Z))
	}
	if !has(h, "From") {
		if from := m.from(s, e); from != "" {
			add("From", from)
		}
	}
	if !has(h, "Message-ID") {
		id, err := m.messageID(now)
		if err != nil {
			return nil, err
		}
		add("Message-ID", id)
	}
	return edits, nil
}

func has(h message.Head, name string) bool {
	for i := range h.Len() {
		if h.Field(i).Is(name) {
			return true
		}
	}
	return false
}

// messageID is RFC 5322 §3.6.4's, of the time and 128 random bits.
func (m *Mender) messageID(now time.Time) (string, error) {
	var secret [16]byte
	if _, err := io.ReadFull(m.o.Random, secret[:]); err != nil {
		return "", fmt.Errorf("no randomness for a Message-ID: %w", err)
	}
	text := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(secret[:])
	return "<" + strconv.FormatInt(now.UnixMilli(), 36) + "." + strings.ToLower(text) + "@" + m.o.IDHost + ">", nil
}

// from is the address of who logged in, or else the envelope sender: the first
// that can be written in ASCII. "" if there is none.
func (m *Mender) from(s *pipeline.Session, e *envelope.Envelope) string {
	for _, address := range []string{m.hosts.complete(s.User), e.Sender} {
		if address == "" || address == envelope.DoubleBounce {
			continue
		}
		if path, err := wire.FormatPath(address, false); err == nil {
			return strings.TrimSuffix(strings.TrimPrefix(path, "<"), ">")
		}
	}
	return ""
}
