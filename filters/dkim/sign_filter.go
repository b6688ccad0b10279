package dkim

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// DefaultKeys is the folder of keys.
const DefaultKeys = "/etc/postern/dkim"

// SignOptions are dkim-sign's part of the configuration; see
// DefaultSignOptions.
type SignOptions struct {
	Keys      []string `toml:"keys" doc:"where keys are: folders that hold DOMAIN/SELECTOR.pem, and patterns of qmail-dk like /etc/domainkeys/%/default"`
	Selectors []string `toml:"selectors" doc:"the keys of a folder that sign" unset:"all that a domain has"`
	Choose    []string `toml:"choose" doc:"whose domain signs, in this order: from (the author's, if aligned with the envelope sender), user (that of who logged in)"`
	Domain    string   `toml:"domain" doc:"the domain that signs where no other has a key" unset:"none"`
	Headers   []string `toml:"headers" doc:"the header fields that are signed, as often as the message has them"`
	Oversign  []string `toml:"oversign" doc:"the header fields of which nobody may add another"`
	// Canonicalization is the c= of RFC 6376 §3.5.
	Canonicalization string        `toml:"canonicalization" doc:"how much change in transit a signature bears, for header and body: relaxed or simple" oneof:"relaxed/relaxed|relaxed/simple|simple/relaxed|simple/simple"`
	Expires          time.Duration `toml:"expires" doc:"how long a signature holds; 0: for ever"`
}

// DefaultSignOptions are the options as they are without a configuration.
func DefaultSignOptions() SignOptions {
	return SignOptions{
		Keys: []string{DefaultKeys}, Choose: []string{chooseFrom, chooseUser},
		Headers: DefaultHeaders(), Oversign: DefaultOversign(), Canonicalization: relaxed + "/" + relaxed,
	}
}

// The words of choose.
const (
	chooseFrom = "from"
	chooseUser = "user"
)

// SignFilter is dkim-sign. It is its own instance, and safe for concurrent use.
type SignFilter struct {
	keys   *Keys
	signer *Signer
	choose []string
	domain string
	cache  *cache
	log    *slog.Logger
}

// Bounds of expires: a signature must outlive a queue that tries for days.
const (
	minExpires = time.Hour
	cacheLife  = time.Hour
)

// NewSignFilter makes a dkim-sign. It uses the environment's Now and Log, and
// reads no key before one is needed. Its errors say by a method Key which key
// they are about.
func NewSignFilter(env pipeline.Env, o SignOptions) (*SignFilter, error) {
	f := &SignFilter{log: env.Log, choose: o.Choose}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	now := env.Now
	if now == nil {
		now = time.Now
	}
	f.cache = newCache(now, cacheLife)
	f.signer = &Signer{Headers: o.Headers, Oversign: o.Oversign, Expires: o.Expires, Now: now}
	if len(o.Keys) == 0 {
		return nil, pipeline.AtKey("keys", errors.New("it names no place: write the folder of the keys"))
	}
	var err error
	if f.keys, err = NewKeys(o.Keys, o.Selectors); err != nil {
		return nil, err
	}
	for i, c := range o.Choose {
		if c != chooseFrom && c != chooseUser {
			return nil, oneOf(fmt.Sprintf("choose[%d]", i), c, "from", "or user")
		}
	}
	if o.Domain != "" {
		var ok bool
		if f.domain, ok = asciiName(o.Domain); !ok {
			return nil, pipeline.AtKey("domain", fmt.Errorf("%q is no domain", reply.Clean(o.Domain, 80)))
		}
	}
	if o.Expires != 0 && o.Expires < minExpires {
		return nil, pipeline.AtKey("expires", fmt.Errorf("%v: write %v or more, or 0: a message may wait in queues", o.Expires, minExpires))
	}
	if err := checkNames(o); err != nil {
		return nil, err
	}
	return f, f.setForms(o.Canonicalization)
}

func (f *SignFilter) setForms(c string) error {
	if c == "" {
		c = relaxed + "/" + relaxed
	}
	header, body, _ := strings.Cut(c, "/")
	for _, form := range [...]string{header, body} {
		if form != simple && form != relaxed {
			return oneOf("canonicalization", c, "relaxed/relaxed", "relaxed/simple", "simple/relaxed", "or simple/simple")
		}
	}
	f.signer.HeaderForm, f.signer.BodyForm = header, body
	return nil
}

// checkNames checks headers and oversign.
func checkNames(o SignOptions) error {
	length := 0
	for _, l := range [...]struct {
		key   string
		names []string
	}{{"headers", o.Headers}, {"oversign", o.Oversign}} {
		for i, n := range l.names {
			if !isFieldName(n) || isIn(n, neverSigned()) {
				return pipeline.AtKey(fmt.Sprintf("%s[%d]", l.key, i), fmt.Errorf("%q is no header field that can be signed", reply.Clean(n, 80)))
			}
			length += len(n) + 1
		}
		if length > maxNamesLine {
			return pipeline.AtKey(l.key, fmt.Errorf("the names have more than %d bytes together", maxNamesLine))
		}
	}
	if o.Headers != nil && !isIn("From", o.Headers) {
		return pipeline.AtKey("headers", errors.New("it lacks From, which must be signed (RFC 6376 §5.4)"))
	}
	return nil
}

// neverSigned are fields that change on the way (RFC 6376 §5.4), and the
// signature itself.
func neverSigned() []string {
	return []string{"Return-Path", "Received", FieldName, "Delivered-To", ResultsField}
}

// Traits of a filter whose work others count on.
func (f *SignFilter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorDefers, Stages: []pipeline.Stage{pipeline.AtDelivery}}
}

// Open returns the filter itself.
func (f *SignFilter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return f, nil
}

// Close does nothing.
func (f *SignFilter) Close() error { return nil }

// Deliver signs a message that leaves, if it is ours.
func (f *SignFilter) Deliver(ctx context.Context, d *pipeline.Delivery, m message.Message) (pipeline.Verdict, error) {
	if d.Origin.IsExternal() {
		return pipeline.Verdict{Reason: "not ours, not signed"}, nil
	}
	keys, why, err := f.keysFor(d, m.Head())
	if err != nil {
		var bad *KeyFileError
		if errors.As(err, &bad) {
			f.log.Error("a DKIM key cannot be used; mail of its domain waits", "domain", bad.Domain, "path", bad.Path, "error", bad.Err)
		}
		return pipeline.Verdict{}, err
	}
	if len(keys) == 0 {
		return pipeline.Verdict{Reason: why + ", not signed"}, nil
	}
	var v pipeline.Verdict
	var said []string
	content := digest(d, m)
	for _, k := range keys {
		value, err := f.cache.get(ctx, cacheKey(content, k), func() (string, error) { return f.sign(ctx, m, k) })
		switch {
		case errors.Is(err, errBlank):
			said = append(said, "not signed: "+err.Error())
		case err != nil:
			return pipeline.Verdict{}, err
		case value == "":
			said = append(said, "signed by "+k.Query()+" already")
		default:
			v.Edits = append(v.Edits, pipeline.Field(message.FieldEdit{Op: message.Add, Name: FieldName, Value: value}))
			said = append(said, "signed by "+k.Query())
		}
	}
	v.Reason = strings.Join(said, ", ")
	return v, nil
}

// keysFor are the keys that sign a message; if there are none, why.
func (f *SignFilter) keysFor(d *pipeline.Delivery, h message.Head) (keys []Key, why string, err error) {
	domains, n := authors(h)
	if n != 1 {
		return nil, fmt.Sprintf("%d From fields", n), nil
	}
	var tried []string
	for _, c := range f.candidates(d, domains) {
		if slices.Contains(tried, c) {
			continue
		}
		tried = append(tried, c)
		if keys, err = f.keys.For(c); err != nil || len(keys) > 0 {
			return keys, "", err
		}
	}
	if len(tried) == 0 {
		return nil, "no domain of ours is responsible", nil
	}
	return nil, "no key for " + strings.Join(tried, ", "), nil
}

// candidates are the domains that may sign a message of these authors.
func (f *SignFilter) candidates(d *pipeline.Delivery, authors []string) []string {
	var all []string
	for _, c := range f.choose {
		switch c {
		case chooseFrom:
			if len(authors) == 1 && fits(authors[0], d.Envelope.Sender) {
				all = append(all, authors[0])
			}
		case chooseUser:
			if name, ok := asciiName(envelope.Domain(d.Origin.User)); ok {
				all = append(all, name)
			}
		}
	}
	if f.domain != "" {
		all = append(all, f.domain)
	}
	return all
}

// fits reports whether an author's domain is aligned with the envelope sender,
// as it is for bounces, which have none.
func fits(author, sender string) bool {
	sender = envelope.BounceAddress(sender)
	if sender == "" || sender == envelope.DoubleBounce {
		return true
	}
	domain, ok := asciiName(envelope.Domain(sender))
	return ok && aligned(author, domain)
}

// sign is a message's signature, "" if it has one of the key that holds.
func (f *SignFilter) sign(ctx context.Context, m message.Message, k Key) (string, error) {
	already, err := isSigned(ctx, m, k, f.cache.now())
	if err != nil || already {
		return "", err
	}
	return f.signer.Sign(ctx, m, k)
}

// maxOwn bounds the signatures that are looked at to find one of our own.
const maxOwn = 20

// isSigned reports whether a message has a signature of a key which holds.
func isSigned(ctx context.Context, m message.Message, k Key, now time.Time) (bool, error) {
	var t *material
	var key *record
	h, seen := m.Head(), 0
	for i := range h.Len() {
		field := h.Field(i)
		if !field.Is(FieldName) {
			continue
		}
		if seen++; seen > maxOwn {
			break
		}
		s, err := parseSignature(field.Text(), field.Value())
		if err != nil || s.partial || !s.expires.IsZero() && now.After(s.expires) || s.domain != k.Domain || s.selector != k.Selector || s.algorithm != k.Algorithm() {
			continue
		}
		if t == nil {
			t = newMaterial(m)
			if key, err = recordOf(k.Signer.Public()); err != nil {
				return false, err
			}
		}
		var mismatch errMismatch
		err = t.verify(ctx, s, i, key)
		if err != nil && !errors.As(err, &mismatch) {
			return false, err
		}
		if err == nil && t.unsigned("From", s.signed) <= 0 {
			return true, nil
		}
	}
	return false, nil
}

// digest tells messages on their way out apart. The queue's name of a message
// names its body; what stands in memory is looked at all the same. What a server
// can carry beyond what the message needs makes no difference to it.
func digest(d *pipeline.Delivery, m message.Message) []byte {
	h := sha256.New()
	part := func(s []byte) {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(s)))
		h.Write(length[:])
		h.Write(s)
	}
	part([]byte(d.ID))
	part([]byte{byte(min(d.Form, m.Form()))})
	part([]byte(m.HeadText()))
	content, ok := m.Body().Memory()
	if !ok {
		content = binary.BigEndian.AppendUint64(nil, uint64(m.Body().Size()))
		content = binary.BigEndian.AppendUint64(content, uint64(m.Body().LFs()))
	}
	part(content)
	return h.Sum(nil)
}

// cacheKey is for a message and a key.
func cacheKey(content []byte, k Key) [sha256.Size]byte {
	print := k.print
	if print == "" {
		print = fingerprint(k.Signer.Public())
	}
	return sha256.Sum256(slices.Concat(content, []byte(k.Domain+"\n"+k.Selector+"\n"+print)))
}
