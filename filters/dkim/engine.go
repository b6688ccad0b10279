package dkim

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	msgauth "github.com/emersion/go-msgauth/dkim"

	"github.com/postern-mta/postern/pipeline/message"
)

// errMismatch is a signature that proves nothing: the message was changed, or
// the signature is another key's.
type errMismatch struct{ error }

var (
	errBody = errMismatch{errors.New("body hash did not verify")}
	errOver = errMismatch{errors.New("the body is shorter than l= says")}
	errHead = errMismatch{errors.New("signature did not verify")}
)

// material is a message as signatures see it. It remembers hashes of its body,
// so that a message with many signatures is read as often as it has different
// ones, and is for one goroutine.
type material struct {
	fields []message.Field
	body   *message.Body
	// good are the body's hashes that a signature proved, by signature.form,
	// and bad others that did not fit.
	good map[string][]byte
	bad  map[string][][]byte
	// size is that of the canonical body where a signature has l=.
	size map[string]int64
}

func newMaterial(m message.Message) *material {
	h := m.Head()
	t := &material{body: m.Body(), good: map[string][]byte{}, fields: make([]message.Field, 0, h.Len())}
	for i := range h.Len() {
		t.fields = append(t.fields, h.Field(i))
	}
	return t
}

// chosen are the fields that the names of h= are about, in the message's order:
// of each name as many as it is named, from the bottom (RFC 6376 §5.4.2). The
// field at index except is none of them. short is set if there are too few of
// the name of a signature's own field.
func (t *material) chosen(names []string, except int) (fields []message.Field, short bool) {
	wanted := make(map[string]*int, len(names))
	counts := make([]int, len(names))
	var room [64]byte // a look at the map with bytes needs no memory
	for i, n := range names {
		name := appendLower(room[:0], n)
		if count := wanted[string(name)]; count != nil {
			*count++
			continue
		}
		counts[i] = 1
		wanted[string(name)] = &counts[i]
	}
	for i, f := range slices.Backward(t.fields) {
		if left := wanted[string(appendLower(room[:0], f.Name()))]; left != nil && *left > 0 && i != except {
			*left--
			fields = append(fields, f)
		}
	}
	slices.Reverse(fields)
	left := wanted[signatureName]
	return fields, left != nil && *left > 0
}

// appendLower appends a field's name, of which only ASCII has case.
func appendLower(b []byte, name string) []byte {
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		b = append(b, c)
	}
	return b
}

// signatureName is FieldName in lower case.
const signatureName = "dkim-signature"

// verify checks a signature, which is the field at index, against its key. The
// error is an errMismatch, errBlank, or one of reading the body.
func (t *material) verify(ctx context.Context, s *signature, index int, key *record) error {
	form := s.form()
	if known := t.good[form]; known != nil && !bytes.Equal(known, s.bodyHash) {
		return errBody
	}
	for _, wrong := range t.bad[form] {
		if bytes.Equal(wrong, s.bodyHash) {
			return errBody
		}
	}
	fields, short := t.chosen(s.signed, index)
	var err error
	if short || s.partial || misread(s.text) {
		err = t.verifyAlone(ctx, s, fields, key)
	} else {
		err = t.verifyByLibrary(ctx, s, fields, key)
	}
	switch {
	case err == nil || errors.Is(err, errHead):
		t.good[form] = s.bodyHash
	case errors.Is(err, errBody):
		if t.bad == nil {
			t.bad = map[string][][]byte{}
		}
		t.bad[form] = append(t.bad[form], s.bodyHash)
	}
	return err
}

// verifyByLibrary has go-msgauth check one signature, in a message that has the
// fields which the signature covers and no other. As of v0.7.0 it needs that:
// among several signatures a malformed one can spoil the rest, a message
// without a body is an error, and the time to find the fields grows with the
// product of their number and of the names in h=. The key is the one that was
// looked up already, since it has no context for that.
func (t *material) verifyByLibrary(ctx context.Context, s *signature, fields []message.Field, key *record) error {
	in := newFeed(ctx, headOf(s.text, fields), t.body, s.body)
	all, err := msgauth.VerifyWithOptions(in, &msgauth.VerifyOptions{
		LookupTXT:        func(string) ([]string, error) { return []string{key.text}, nil },
		MaxVerifications: 1, // others are here because this one covers them
	})
	switch {
	case in.err != nil:
		return in.err
	case err != nil && !errors.Is(err, msgauth.ErrTooManySignatures):
		return fmt.Errorf("go-msgauth: %w", err)
	case len(all) != 1:
		return fmt.Errorf("go-msgauth: %d verifications of one signature", len(all))
	}
	// It tells its errors apart by their words only.
	switch err := all[0].Err; {
	case err == nil:
		return nil
	case err.Error() == "dkim: body hash did not verify":
		return errBody
	case strings.HasPrefix(err.Error(), "dkim: signature did not verify"):
		return errHead
	}
	return t.verifyAlone(ctx, s, fields, key)
}

func headOf(first string, fields []message.Field) string {
	var b strings.Builder
	b.WriteString(first)
	for _, f := range fields {
		endLine(&b)
		b.WriteString(f.Text())
	}
	endLine(&b)
	b.WriteString("\n")
	return b.String()
}

// endLine ends a head's last line where the message was cut short.
func endLine(b *strings.Builder) {
	if s := b.String(); s != "" && s[len(s)-1] != '\n' {
		b.WriteByte('\n')
	}
}

// misread reports whether go-msgauth v0.7.0 empties more of a field than its b=
// before it hashes it: whatever stands behind a "b=" somewhere else, as z= often
// has it ("z=Subject:club=20meeting").
func misread(text string) bool {
	found := 0
	for {
		i := strings.IndexByte(text, 'b')
		if i < 0 {
			return found != 1
		}
		text = strings.TrimLeft(text[i+1:], "\t\n\f\r ")
		if value, ok := strings.CutPrefix(text, "="); ok && value != "" && value[0] != ';' {
			found++
			// What it empties is not looked at again.
			text = value[max(strings.IndexByte(value, ';'), 0):]
			if text == value {
				return found != 1
			}
		}
	}
}

// verifyAlone checks a signature that go-msgauth v0.7.0 cannot: one that it
// misreads, one with l=, one that covers more signatures than there are besides
// it, and what it finds fault with though it has been found right: it compares
// the domains of d= and i= with regard to case and takes i= as it is written,
// and it knows the machine's clock only.
func (t *material) verifyAlone(ctx context.Context, s *signature, fields []message.Field, key *record) error {
	sum, size, err := bodyHash(ctx, t.body, s.body, s.length)
	switch {
	case err != nil:
		return err
	case s.length > size:
		return errOver
	case s.partial:
		if t.size == nil {
			t.size = map[string]int64{}
		}
		t.size[s.form()] = size
	}
	if !bytes.Equal(sum, s.bodyHash) {
		return errBody
	}
	h := sha256.New()
	for _, f := range inOrder(fields, s.signed) {
		io.WriteString(h, canonicalField(f.Text(), s.header)) //nolint:errcheck // a hash never fails
	}
	own := canonicalField(withoutValue(s.text), s.header)
	io.WriteString(h, strings.TrimRight(own, "\r\n")) //nolint:errcheck // a hash never fails
	digest := h.Sum(nil)
	switch k := key.key.(type) {
	case *rsa.PublicKey:
		if rsa.VerifyPKCS1v15(k, crypto.SHA256, digest, s.value) == nil {
			return nil
		}
	case ed25519.PublicKey:
		if ed25519.Verify(k, digest, s.value) {
			return nil
		}
	}
	return errHead
}

// inOrder are the fields in the order of their names in h=.
func inOrder(fields []message.Field, names []string) []message.Field {
	byName := map[string][]message.Field{}
	for _, f := range fields {
		n := strings.ToLower(f.Name())
		byName[n] = append(byName[n], f)
	}
	var all []message.Field
	for _, n := range names {
		n = strings.ToLower(n)
		if left := byName[n]; len(left) > 0 {
			all = append(all, left[len(left)-1])
			byName[n] = left[:len(left)-1]
		}
	}
	return all
}

// canonicalField is a field as it is hashed (RFC 6376 §3.4.1, §3.4.2).
func canonicalField(text, form string) string {
	if form == simple {
		var b strings.Builder
		for line := range strings.Lines(text) {
			b.WriteString(strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"))
			b.WriteString("\r\n")
		}
		return b.String()
	}
	name, value, _ := strings.Cut(text, ":")
	words := strings.FieldsFunc(value, func(r rune) bool { return r < 0x80 && strings.ContainsRune(blanks, r) })
	return strings.ToLower(strings.Trim(name, blanks)) + ":" + strings.Join(words, " ") + "\r\n"
}

// withoutValue is a signature's field with the value of its b= deleted (RFC
// 6376 §3.7), which has been parsed: it has one.
func withoutValue(text string) string {
	colon := strings.IndexByte(text, ':') + 1
	var b strings.Builder
	b.WriteString(text[:colon])
	for i, spec := range strings.Split(text[colon:], ";") {
		if i > 0 {
			b.WriteByte(';')
		}
		if name, _, _ := strings.Cut(spec, "="); strings.Trim(name, blanks) == "b" {
			spec = spec[:len(name)+1]
		}
		b.WriteString(spec)
	}
	return b.String()
}
