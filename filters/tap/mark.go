package tap

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

// markField is the header field that holds a mark.
const markField = "Postern-Tap"

// Bounds of what is looked at in a message, and of how long a mark holds: far
// longer than any queue keeps a message.
const (
	maxMarks     = 10
	maxMarkBytes = 512
	lifetime     = 30 * 24 * time.Hour
)

// mark is the content of a mark field:
//
//	v=1; k=KEY; t=TIME; r=RECIPIENTS; m=MAC
//
// in this order, blanks or folds between the parts. Bytes are in base64 for
// URLs, without padding.
type mark struct {
	key  string // names the key, and so the installation; 8 hexadecimal digits
	time int64  // Unix, in seconds
	// recipients is a keyed hash of the copy's recipients: by it an administrator
	// can tell which copy a leaked message was, and nobody else who got one.
	recipients string
	mac        string
}

// Lengths of a mark's parts, in bytes.
const (
	keyLength        = 8
	recipientsLength = 22 // of 16 bytes
	macLength        = 43 // of 32 bytes
	maxTimeLength    = 12
)

// String is the mark as a field's value, folded.
func (m mark) String() string {
	return "v=1; k=" + m.key + "; t=" + strconv.FormatInt(m.time, 10) + "; r=" + m.recipients + ";\n m=" + m.mac
}

// parseMark reads a field's value. It is strict: what it takes, String gives
// back but for the blanks.
func parseMark(value string) (m mark, ok bool) {
	if len(value) > maxMarkBytes {
		return mark{}, false
	}
	parts := strings.Split(value, ";")
	names := [...]string{"v=", "k=", "t=", "r=", "m="}
	if len(parts) != len(names) {
		return mark{}, false
	}
	for i, name := range names {
		if parts[i], ok = strings.CutPrefix(strings.Trim(parts[i], " \t"), name); !ok {
			return mark{}, false
		}
	}
	m = mark{key: parts[1], recipients: parts[3], mac: parts[4]}
	if m.time, ok = parseTime(parts[2]); !ok || parts[0] != "1" {
		return mark{}, false
	}
	ok = only(m.key, hexDigits, keyLength) && only(m.recipients, urlAlphabet, recipientsLength) && only(m.mac, urlAlphabet, macLength)
	if !ok {
		return mark{}, false
	}
	return m, true
}

const (
	hexDigits   = "0123456789abcdef"
	urlAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
)

func only(s, alphabet string, length int) bool {
	return len(s) == length && strings.Trim(s, alphabet) == ""
}

// parseTime takes the one spelling that FormatInt gives.
func parseTime(s string) (int64, bool) {
	if len(s) > maxTimeLength {
		return 0, false
	}
	t, err := strconv.ParseInt(s, 10, 64)
	return t, err == nil && strconv.FormatInt(t, 10) == s
}

// marker makes marks and knows them again. It is immutable.
type marker struct {
	secret []byte
	key    string
	now    func() time.Time
}

func newMarker(secret []byte, now func() time.Time) marker {
	k := marker{secret: secret, now: now}
	k.key = hex.EncodeToString(k.hmac("key", nil))[:keyLength]
	return k
}

// hmac is keyed by the secret; purpose keeps its uses apart.
func (k marker) hmac(purpose string, content []byte) []byte {
	h := hmac.New(sha256.New, k.secret)
	h.Write([]byte("postern tap 1 " + purpose + "\n"))
	h.Write(content)
	return h.Sum(nil)
}

// make is the mark of a copy of the message with this digest.
func (k marker) make(recipients []string, sum [sha256.Size]byte) mark {
	var all []byte
	for _, r := range slices.Sorted(slices.Values(recipients)) {
		all = appendString(all, r)
	}
	m := mark{key: k.key, time: k.now().Unix(), recipients: encode(k.hmac("recipients", all)[:16])}
	m.mac = k.mac(m, sum)
	return m
}

func (k marker) mac(m mark, sum [sha256.Size]byte) string {
	text := m.key + " " + strconv.FormatInt(m.time, 10) + " " + m.recipients + "\n"
	return encode(k.hmac("mark", append([]byte(text), sum[:]...)))
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// appendString appends s so that no two lists of strings give the same bytes.
func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint64(b, uint64(len(s))), s...)
}

// findings are what the mark fields of a message are.
type findings struct {
	genuine bool   // one of them is ours and fits
	removed int    // how many are to go
	kept    []mark // those that may stay, from the top
}

// inspect looks at a message's mark fields. An error is one of reading the
// body, and says nothing about the marks.
func (k marker) inspect(ctx context.Context, s *marked) (findings, error) {
	var found findings
	seen := 0
	head := s.message.Head()
	for i := range head.Len() {
		f := head.Field(i)
		if !f.Is(markField) {
			continue
		}
		if seen++; seen > maxMarks || len(f.Text()) > maxMarkBytes {
			found.removed++
			continue
		}
		m, ok := parseMark(f.Value())
		if ok && m.key == k.key {
			fits, err := k.fits(ctx, m, s)
			if err != nil {
				return findings{}, err
			}
			ok = fits
			found.genuine = found.genuine || fits
		}
		if ok {
			found.kept = append(found.kept, m)
		} else {
			found.removed++
		}
	}
	return found, nil
}

// fits says whether a mark of ours belongs to the message and still holds. One
// from the future is from before the clock was set, and as good as any.
func (k marker) fits(ctx context.Context, m mark, s *marked) (bool, error) {
	if k.now().Unix()-m.time > int64(lifetime/time.Second) {
		return false, nil
	}
	sum, err := s.digest(ctx)
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare([]byte(k.mac(m, sum)), []byte(m.mac)) == 1, nil
}

// fields remove the fields that are to go. Those that may stay are written
// anew: a message may have ten thousand such fields, and to take out each by
// its number would take ten thousand passes.
func (f findings) fields() []message.FieldEdit {
	if f.removed == 0 {
		return nil
	}
	all := []message.FieldEdit{{Op: message.Remove, Name: markField}}
	for _, m := range slices.Backward(f.kept) {
		all = append(all, message.FieldEdit{Op: message.Add, Name: markField, Value: m.String()})
	}
	return all
}

func (f findings) edits() []pipeline.Edit {
	var edits []pipeline.Edit
	for _, e := range f.fields() {
		edits = append(edits, pipeline.Field(e))
	}
	return edits
}

func (f findings) reason() string {
	switch {
	case f.genuine:
		return "a tapped copy, not copied again"
	case f.removed > 0:
		return strconv.Itoa(f.removed) + " bad tap marks removed"
	}
	return ""
}
