// Package envelope holds sender, recipients and ESMTP parameters of a message,
// the qmail-queue format that carries them on descriptor 1, and the parts of
// an address.
//
// It promises that an envelope which ends early is an error and never a
// shorter list (qmail's callers abort a message that way), that lengths are
// bounded before anything is kept, and that one address can never become two
// records.
package envelope

import "strings"

// MaxAddress is the longest address in bytes, as in qmail-queue.c.
const MaxAddress = 1002

// Envelope says whom a message is from and whom it is for. It is a value;
// copies share Recipients, which is not changed after the envelope has been
// handed on (Clone first).
type Envelope struct {
	// Sender is the return path without brackets; "" is the null sender and
	// "#@[]" qmail's sender of double bounces.
	Sender string
	// Recipients in the order in which they were given.
	Recipients []Recipient
	// NoScan is s/qmail's Q record: the caller asks for no virus scan.
	NoScan bool
	// UTF8 and RequireTLS are MAIL's parameters SMTPUTF8 (RFC 6531 §3.4) and
	// REQUIRETLS (RFC 8689 §2).
	UTF8, RequireTLS bool
	// Ret and EnvID are MAIL's RET (FULL, HDRS or "") and ENVID, still
	// xtext-encoded (RFC 3461 §4.3, §4.4).
	Ret, EnvID string
}

// Recipient is one address a message is for.
type Recipient struct {
	// Address without brackets.
	Address string
	// DSN holds the recipient's notification parameters; nil for none.
	DSN *DSN
}

// DSN holds a recipient's parameters of RFC 3461 §4.1 and §4.2.
type DSN struct {
	// Notify holds what the sender wants to hear of.
	Notify Notify
	// ORcpt is the original recipient, "rfc822;" and xtext, as it came.
	ORcpt string
}

// Notify is the set of NOTIFY keywords; the zero set means none was given.
type Notify uint8

// The NOTIFY keywords (RFC 3461 §4.1).
const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// To is an envelope to plain recipients.
func To(sender string, recipients ...string) Envelope {
	e := Envelope{Sender: sender, Recipients: make([]Recipient, len(recipients))}
	for i, r := range recipients {
		e.Recipients[i].Address = r
	}
	return e
}

// Clone is a copy whose Recipients may be changed.
func (e Envelope) Clone() Envelope {
	e.Recipients = append([]Recipient(nil), e.Recipients...)
	return e
}

// Addresses are the recipients' addresses.
func (e Envelope) Addresses() []string {
	all := make([]string, len(e.Recipients))
	for i, r := range e.Recipients {
		all[i] = r.Address
	}
	return all
}

// Domain is what follows the last @, lower-cased, without a trailing dot; ""
// if there is none.
func Domain(address string) string {
	i := strings.LastIndexByte(address, '@')
	if i < 0 {
		return ""
	}
	return strings.TrimSuffix(lower(address[i+1:]), ".")
}

// Local is what precedes the last @, as it stands; all of it if there is none.
func Local(address string) string {
	if i := strings.LastIndexByte(address, '@'); i >= 0 {
		return address[:i]
	}
	return address
}

// lower folds ASCII only: addresses are bytes, and strings.ToLower would
// rewrite those that are not UTF-8.
func lower(s string) string {
	for i := 0; i < len(s); i++ {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// DoubleBounce is the sender of qmail's double bounces (qmail-send.c).
const DoubleBounce = "#@[]"

// verpMark ends a sender that asks for a variable envelope return path.
const verpMark = "-@[]"

// VERP is the sender that one recipient's copy carries: a sender of the form
// owner-@host-@[] becomes owner-box=domain@host for box@domain
// (qmail-send.c:senderadd); every other sender stays.
func VERP(sender, recipient string) string {
	base, ok := strings.CutSuffix(sender, verpMark)
	if !ok || sender == DoubleBounce {
		return sender
	}
	at := strings.LastIndexByte(base, '@')
	rat := strings.LastIndexByte(recipient, '@')
	if at < 0 || rat < 0 {
		return sender
	}
	return base[:at] + recipient[:rat] + "=" + recipient[rat+1:] + base[at:]
}

// BounceAddress is where reports about a message from sender go: the sender
// itself, or for a VERP sender its base (qmail-send.c:injectbounce).
func BounceAddress(sender string) string {
	if base, ok := strings.CutSuffix(sender, verpMark); ok && sender != DoubleBounce {
		return base
	}
	return sender
}

// ValidBytes reports whether an address is free of control bytes. No mail
// system can use one that is not, and its bytes must not reach a log or a reply.
func ValidBytes(address string) bool {
	for i := 0; i < len(address); i++ {
		if address[i] < 0x20 || address[i] == 0x7f {
			return false
		}
	}
	return true
}
