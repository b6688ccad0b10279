package dkim

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
)

// FieldName is the header field that holds a signature.
const FieldName = "DKIM-Signature"

// Bounds of one signature. The longest that are seen in the wild have a tenth.
const (
	maxSignature = 16 << 10 // bytes of the field
	maxSigned    = 500      // names in h=
	maxValue     = 1 << 10  // bytes of b=: a key of 8192 bits
	maxTime      = 12       // digits, RFC 6376 §3.5
)

// signature is a signature field that can be verified.
type signature struct {
	// text is the field as it stands.
	text string
	// domain and selector are d= and s= as the DNS has them, agent is i= as it
	// is meant, "" if it is not there.
	domain, selector, agent string
	// agentDomain is that of agent, as the DNS has it.
	agentDomain string
	algorithm   string // a=
	header      string // canonicalisation of the head, "simple" or "relaxed"
	body        string // and of the body
	signed      []string
	bodyHash    []byte
	value       []byte
	// encoded is the beginning of b= as it is written (RFC 6008 §4).
	encoded       string
	made, expires time.Time
	// partial is set if l= leaves part of the body unsigned, or could.
	partial bool
	// length is that of l=, in bytes of the canonical body; -1 without it.
	length int64
}

// form is what the body's hash depends on besides the body.
func (s *signature) form() string {
	if !s.partial {
		return s.body
	}
	return s.body + "/" + strconv.FormatInt(s.length, 10)
}

// hashLength is that of SHA-256 in bytes, the one hash in use (RFC 8301 §3.1).
const hashLength = 32

// Words of RFC 6376 §3.3 and §3.4.
const (
	rsaSHA256     = "rsa-sha256"
	ed25519SHA256 = "ed25519-sha256"
	simple        = "simple"
	relaxed       = "relaxed"
)

// errAlgorithm is a signature by what is historic (RFC 8301 §3.1).
var errAlgorithm = errors.New("rsa-sha1 is historic and proves nothing")

// parseSignature reads a field, given as it stands and as its unfolded value.
// With an error come those parts that could be read.
func parseSignature(text, value string) (*signature, error) {
	s := &signature{text: text, header: simple, body: simple, length: -1}
	if len(text) > maxSignature {
		return s, fmt.Errorf("signature of more than %d bytes", maxSignature)
	}
	t, err := parseTags(value)
	if err != nil {
		return s, err
	}
	if b := unspace(t["b"]); isBase64Text(b) {
		s.encoded = b[:min(len(b), identifying)]
	}
	var ok bool
	if s.domain, ok = asciiName(t["d"]); !ok {
		return s, fmt.Errorf("d=%s is no domain", reply.Clean(t["d"], 80))
	}
	if s.selector, ok = asciiName(t["s"]); !ok || len(s.selector)+len(middle)+len(s.domain) > maxName {
		return s, fmt.Errorf("s=%s is no selector", reply.Clean(t["s"], 80))
	}
	for _, step := range []func(tags) error{s.setForm, s.setAgent, s.setSigned, s.setTimes, s.setValues} {
		if err := step(t); err != nil {
			return s, err
		}
	}
	return s, nil
}

// identifying is how much of b= tells signatures apart in a result (RFC 6008
// §4), in bytes.
const identifying = 8

func isBase64Text(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && c != '+' && c != '/' && c != '=' {
			return false
		}
	}
	return true
}

// setForm reads v=, a=, c=, q= and l=.
func (s *signature) setForm(t tags) error {
	if t["v"] != "1" {
		return fmt.Errorf("v=%s is not 1", reply.Clean(t["v"], 20))
	}
	if c := t["c"]; c != "" {
		var both bool
		if s.header, s.body, both = strings.Cut(c, "/"); !both {
			s.body = simple
		}
	}
	for _, c := range [...]string{s.header, s.body} {
		if c != simple && c != relaxed {
			return fmt.Errorf("c=%s is unknown", reply.Clean(t["c"], 40))
		}
	}
	if q, given := t["q"]; given {
		known := false
		for _, method := range list(q) {
			known = known || method == "dns/txt"
		}
		if !known {
			return fmt.Errorf("q=%s is unknown", reply.Clean(q, 40))
		}
	}
	if l, given := t["l"]; given {
		s.partial = true
		if strings.Trim(l, "0123456789") != "" || l == "" || len(l) > 76 {
			return fmt.Errorf("l=%s is no length", reply.Clean(l, 40))
		}
		// One that is out of range is longer than any body.
		s.length, _ = strconv.ParseInt(l, 10, 64)
	}
	switch s.algorithm = t["a"]; s.algorithm {
	case rsaSHA256, ed25519SHA256:
		return nil
	case "rsa-sha1":
		return errAlgorithm
	}
	s.algorithm = ""
	return fmt.Errorf("a=%s is unknown", reply.Clean(t["a"], 40))
}

// setAgent reads i=, which must lie in d= (RFC 6376 §3.5).
func (s *signature) setAgent(t tags) error {
	raw, given := t["i"]
	if !given {
		s.agentDomain = s.domain
		return nil
	}
	agent, err := unquote(raw)
	if err != nil {
		return fmt.Errorf("i=: %w", err)
	}
	at := strings.LastIndexByte(agent, '@')
	domain, ok := asciiName(agent[at+1:])
	if at < 0 || !ok || !isTagValue(agent) || strings.ContainsAny(agent, "\r\n") {
		return fmt.Errorf("i=%s is no address", reply.Clean(raw, 80))
	}
	if !isBelow(domain, s.domain) {
		return fmt.Errorf("i=%s is not in d=%s", reply.Clean(raw, 80), s.domain)
	}
	s.agent, s.agentDomain = agent[:at+1]+domain, domain
	return nil
}

// setSigned reads h=, which must name From (RFC 6376 §5.4).
func (s *signature) setSigned(t tags) error {
	h, given := t["h"]
	if !given {
		return errors.New("h= is missing")
	}
	if strings.Count(h, ":") >= maxSigned {
		return fmt.Errorf("h= has more than %d names", maxSigned)
	}
	from := false
	for _, name := range list(h) {
		if !isFieldName(name) {
			return fmt.Errorf("h= holds %q, which is no field name", reply.Clean(name, 40))
		}
		from = from || strings.EqualFold(name, "From")
		s.signed = append(s.signed, name)
	}
	if !from {
		return errors.New("h= lacks From, which must be signed")
	}
	return nil
}

// isFieldName reports whether a name is one of a header field (RFC 5322 §3.6.8).
func isFieldName(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == ':' || c == ';' {
			return false
		}
	}
	return s != ""
}

// setTimes reads t= and x=.
func (s *signature) setTimes(t tags) (err error) {
	if s.made, err = parseTime(t, "t"); err != nil {
		return err
	}
	if s.expires, err = parseTime(t, "x"); err != nil {
		return err
	}
	if !s.made.IsZero() && !s.expires.IsZero() && !s.expires.After(s.made) {
		return errors.New("x= is not after t=")
	}
	return nil
}

func parseTime(t tags, name string) (time.Time, error) {
	v, given := t[name]
	if !given {
		return time.Time{}, nil
	}
	if v == "" || len(v) > maxTime || strings.Trim(v, "0123456789") != "" {
		return time.Time{}, fmt.Errorf("%s=%s is no time", name, reply.Clean(v, 40))
	}
	var sec int64
	for _, c := range []byte(v) {
		sec = sec*10 + int64(c-'0')
	}
	return time.Unix(sec, 0), nil
}

// setValues reads bh= and b=.
func (s *signature) setValues(t tags) (err error) {
	if s.bodyHash, err = decode64(t["bh"], hashLength); err != nil || len(s.bodyHash) != hashLength {
		return errors.New("bh= is no hash")
	}
	if s.value, err = decode64(t["b"], maxValue); err != nil || len(s.value) == 0 {
		return errors.New("b= is no signature")
	}
	return nil
}

// decode64 decodes base64 that may be folded.
func decode64(s string, most int) ([]byte, error) {
	s = unspace(s)
	if base64.StdEncoding.DecodedLen(len(s)) > most+2 {
		return nil, errors.New("too long")
	}
	return base64.StdEncoding.DecodeString(s)
}

// middle stands between selector and domain in the DNS (RFC 6376 §3.6.2.1).
const middle = "._domainkey."

// query is the name of the signature's key in the DNS.
func (s *signature) query() string { return s.selector + middle + s.domain }
