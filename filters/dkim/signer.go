package dkim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	msgauth "github.com/emersion/go-msgauth/dkim"

	"github.com/postern-mta/postern/pipeline/message"
)

// Bounds of what is signed: go-msgauth v0.7.0 writes h= on one line, which must
// stay within RFC 5322 §2.1.1.
const (
	maxInstances = 20  // fields of one name
	maxNamesLine = 850 // bytes of h=
)

// DefaultHeaders are the fields that are signed if a message has them (RFC 6376
// §5.4.1).
func DefaultHeaders() []string {
	return []string{
		"From", "Sender", "Reply-To", "Subject", "Date", "Message-ID", "To", "Cc", "In-Reply-To", "References",
		"MIME-Version", "Content-Type", "Content-Transfer-Encoding",
		"List-Id", "List-Post", "List-Help", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Subscribe", "List-Owner", "List-Archive",
	}
}

// DefaultOversign are the fields of which no other may be added: those that a
// reader is shown, or that say how he is shown the rest (RFC 6376 §8.15).
func DefaultOversign() []string {
	return []string{"From", "Reply-To", "Subject", "Date", "Message-ID", "To", "Cc", "MIME-Version", "Content-Type", "Content-Transfer-Encoding"}
}

// Signer makes signatures. It must not be changed once it has made one, nor
// copied; it is safe for concurrent use.
type Signer struct {
	// Headers are the names of the fields that are signed, Oversign those of
	// which no other may be added. nil means the defaults.
	Headers, Oversign []string
	// HeaderForm and BodyForm are the canonicalisations, "simple" or "relaxed";
	// "" means relaxed.
	HeaderForm, BodyForm string
	// Expires is how long a signature holds; 0 means for ever.
	Expires time.Duration
	// Now is the clock of Expires; nil means time.Now.
	Now func() time.Time

	once  sync.Once
	cover coverage
}

// Sign is the value of the field FieldName that signs a message with a key,
// folded with LF. The message must have a From field.
func (s *Signer) Sign(ctx context.Context, m message.Message, key Key) (string, error) {
	fields, names := s.covered(m.Head())
	if !slices.ContainsFunc(fields, func(f message.Field) bool { return f.Is("From") }) {
		return "", fmt.Errorf("signing for %s: the message has no From field", key.Domain)
	}
	o := &msgauth.SignOptions{
		Domain: key.Domain, Selector: key.Selector, Signer: key.Signer, HeaderKeys: names,
		HeaderCanonicalization: formOr(s.HeaderForm), BodyCanonicalization: formOr(s.BodyForm),
	}
	if s.Expires > 0 {
		now := time.Now
		if s.Now != nil {
			now = s.Now
		}
		o.Expiration = now().Add(s.Expires)
	}
	signer, err := msgauth.NewSigner(o)
	if err != nil {
		return "", fmt.Errorf("signing for %s: %w", key.Domain, err)
	}
	_, err = newFeed(ctx, headOf("", fields), m.Body(), string(o.BodyCanonicalization)).WriteTo(signer)
	// It must be closed to end its goroutine.
	if closed := signer.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return "", fmt.Errorf("signing for %s: %w", key.Domain, err)
	}
	_, value, _ := strings.Cut(signer.Signature(), ":")
	return strings.Trim(strings.ReplaceAll(value, "\r\n", "\n"), " \n"), nil
}

func formOr(form string) msgauth.Canonicalization {
	if form == "" {
		return msgauth.CanonicalizationRelaxed
	}
	return msgauth.Canonicalization(form)
}

// coverage is what a Signer covers, made ready once.
type coverage struct {
	names []string
	over  []bool         // of each, whether it is oversigned
	index map[string]int // by lower-case name
}

func (s *Signer) coverage() *coverage {
	s.once.Do(func() {
		headers, oversign := s.Headers, s.Oversign
		if headers == nil {
			headers = DefaultHeaders()
		}
		if oversign == nil {
			oversign = DefaultOversign()
		}
		s.cover.index = map[string]int{}
		for _, n := range slices.Concat(headers, oversign) {
			key := string(appendLower(nil, n))
			if _, twice := s.cover.index[key]; twice {
				continue
			}
			s.cover.index[key] = len(s.cover.names)
			s.cover.names = append(s.cover.names, n)
			s.cover.over = append(s.cover.over, isIn(n, oversign))
		}
	})
	return &s.cover
}

// covered are the fields that a signature covers, and the names for its h=:
// each as often as the message has it, and once more if it is oversigned. What
// there are too many of is left out as a whole, but for From.
func (s *Signer) covered(h message.Head) (fields []message.Field, names []string) {
	c := s.coverage()
	has := make([]int, len(c.names))
	var room [64]byte
	for i := range h.Len() {
		f := h.Field(i)
		if n, ok := c.index[string(appendLower(room[:0], f.Name()))]; ok {
			has[n]++
			fields = append(fields, f)
		}
	}
	names = make([]string, 0, 2*len(has))
	length := 0
	for i, name := range c.names {
		n := has[i]
		if c.over[i] {
			n++
		}
		if more := n * (len(name) + 1); n <= maxInstances && length+more <= maxNamesLine || strings.EqualFold(name, "From") {
			for range n {
				names = append(names, name)
			}
			length += more
		}
	}
	return fields, names
}

func isIn(name string, names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) })
}
