// Package mark makes the header field by which a message that came in through
// our qmail-queue shim, and went through a queue that is not ours, is known
// again when the qmail-remote shim takes it out.
//
// The field holds the message's origin, encrypted and bound to every byte that
// stands below it (AES-256-GCM with the SHA-256 of those bytes as additional
// data). So nobody without the key can make one, read one, or use one for
// another message, and a message that is changed below its mark loses it. Above
// it only what mail systems put on top may stand: trace fields, signatures, and
// fields whose names begin with X-. A second Subject above the mark would be
// signed with the rest, so such a mark does not count. Nor does one that is
// older than its life, or one below another.
//
// A mark does not stop a replay: whoever has a marked message, such as a local
// user whose mailbox it reached, can hand the very same message in again, past
// our shim, within the mark's life, and it leaves as it would have left the
// first time. What that wins is what the signed message wins, which whoever
// receives it can replay as well. Our own shim takes every mark off before it
// puts its own on.
package mark

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

// FieldName is the mark's header field.
const FieldName = "X-Postern-Origin"

// KeySize is the length of a key in bytes.
const KeySize = 32

// DefaultLife is how long a mark counts: as long as a message stays in a qmail
// queue by default (queuelifetime, a week), and the pause before its last try.
const DefaultLife = 8 * 24 * time.Hour

// Bounds in bytes, and how far clocks may go back.
const (
	maxValue = 8 << 10
	maxText  = 320
	width    = 72
	drift    = time.Hour
)

// Options of a Marker. The zero value works.
type Options struct {
	// Life is how long a mark counts; 0 means DefaultLife.
	Life time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Marker makes and knows marks. It is safe for concurrent use.
type Marker struct {
	aead cipher.AEAD
	life time.Duration
	now  func() time.Time
}

// New makes a Marker with a key of KeySize bytes.
func New(key []byte, o Options) (*Marker, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("mark: a key of %d bytes, not %d", len(key), KeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	k := &Marker{aead: aead, life: o.Life, now: o.Now}
	if k.life <= 0 {
		k.life = DefaultLife
	}
	if k.now == nil {
		k.now = time.Now
	}
	return k, nil
}

// content is what a mark holds.
type content struct {
	Time   int64           `json:"t"`
	Origin pipeline.Origin `json:"o"`
}

// short is what of an origin is worth carrying in a header.
func short(o pipeline.Origin) pipeline.Origin {
	cut := func(s string) string { return s[:min(len(s), maxText)] }
	return pipeline.Origin{
		Transaction: cut(o.Transaction), Entrance: cut(o.Entrance), Protocol: cut(o.Protocol), Standing: cut(o.Standing),
		Peer: cut(o.Peer), User: cut(o.User), UID: o.UID, Chain: cut(o.Chain), Pool: cut(o.Pool), Received: o.Received.UTC().Truncate(time.Second),
	}
}

// Put is a message with a mark of its origin on top. An error means that the
// message could not be read. The body is not retained.
func (k *Marker) Put(m message.Message, o pipeline.Origin) (message.Message, error) {
	// A field on top may also part a head from a body that had no line between
	// them, so what the mark is bound to is taken from a message that has one.
	h, err := m.Head().Edit(message.FieldEdit{Op: message.Add, Name: FieldName, Value: "-"})
	if err != nil {
		return m, err
	}
	sum, err := below(m.WithHead(h), first(h))
	if err != nil {
		return m, err
	}
	plain, err := json.Marshal(content{k.now().Unix(), short(o)})
	if err != nil {
		return m, err
	}
	value := fold(base64.StdEncoding.EncodeToString(k.aead.Seal(nil, nil, plain, sum)))
	if h, err = m.Head().Edit(message.FieldEdit{Op: message.Add, Name: FieldName, Value: value}); err != nil {
		return m, err
	}
	return m.WithHead(h), nil
}

// first is the index of the topmost mark, -1 if there is none.
func first(h message.Head) int {
	for i := range h.Len() {
		if h.Field(i).Is(FieldName) {
			return i
		}
	}
	return -1
}

// fold cuts a word into lines.
func fold(s string) string {
	var b strings.Builder
	for ; len(s) > width; s = s[width:] {
		b.WriteString(s[:width])
		b.WriteString("\n ")
	}
	b.WriteString(s)
	return b.String()
}

// below is the sum of what stands below the field at index i.
func below(m message.Message, i int) ([]byte, error) {
	var at int64
	for n := range i + 1 {
		at += int64(len(m.Head().Field(n).Text()))
	}
	r := m.Reader()
	sum := sha256.New()
	n, err := io.Copy(sum, io.NewSectionReader(r, at, r.Size()-at))
	if err == nil && n != r.Size()-at {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("reading the message: %w", err)
	}
	return sum.Sum(nil), nil
}

// Why a mark does not count.
var (
	errForged = errors.New("not made here, or for another message, or the message was changed")
	errStale  = errors.New("too old")
	errFuture = errors.New("from the future")
)

// Take is a message without its marks. If the topmost one counts, origin is
// what it holds; if there is one that does not, why says the reason. An error
// means that the message could not be read. The body is not retained.
func (k *Marker) Take(m message.Message) (out message.Message, origin *pipeline.Origin, why, err error) {
	out, had, err := Strip(m)
	if !had || err != nil {
		return m, nil, nil, err
	}
	h := m.Head()
	at := first(h)
	for i := range at {
		if name := h.Field(i).Name(); !mayStandAbove(name) {
			return out, nil, fmt.Errorf("below a field %.40q, which no mail system puts on top", name), nil
		}
	}
	sealed, ok := unfold(h.Field(at).Value())
	if !ok {
		return out, nil, errForged, nil
	}
	sum, err := below(m, at)
	if err != nil {
		return m, nil, nil, err
	}
	plain, failed := k.aead.Open(nil, nil, sealed, sum)
	if failed != nil {
		return out, nil, errForged, nil
	}
	var c content
	if failed := json.Unmarshal(plain, &c); failed != nil {
		return out, nil, errForged, nil // made here, by a later version
	}
	switch age := k.now().Sub(time.Unix(c.Time, 0)); {
	case age > k.life:
		return out, nil, errStale, nil
	case age < -drift:
		return out, nil, errFuture, nil
	}
	return out, &c.Origin, nil, nil
}

// Strip is a message without its marks, for an exit that looks at none; had
// tells whether there were any. The body is not retained.
func Strip(m message.Message) (out message.Message, had bool, err error) {
	h := m.Head()
	if first(h) < 0 {
		return m, false, nil
	}
	if h, err = h.Edit(message.FieldEdit{Op: message.Remove, Name: FieldName}); err != nil {
		return m, true, err
	}
	return m.WithHead(h), true, nil
}

func unfold(value string) ([]byte, bool) {
	if len(value) > maxValue {
		return nil, false
	}
	b, err := base64.StdEncoding.DecodeString(strings.Map(func(c rune) rune {
		if c == ' ' || c == '\t' || c == '\r' || c == '\n' {
			return -1
		}
		return c
	}, value))
	return b, err == nil
}

// mayStandAbove reports whether a field is one that mail systems put on top of a
// message, and that says nothing to its reader.
func mayStandAbove(name string) bool {
	name = strings.ToLower(name)
	switch name {
	case "received", "return-path", "delivered-to", "authentication-results", "received-spf", "dkim-signature", "domainkey-signature":
		return true
	}
	return strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "arc-")
}
