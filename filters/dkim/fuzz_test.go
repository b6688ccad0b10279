package dkim

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	msgauth "github.com/emersion/go-msgauth/dkim"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

// FuzzVerify: no message makes the verifier fail or panic, each result has its
// word, and nothing passes but what the key made: whatever is done to a signed
// message, if it passes, then go-msgauth passes it too, or is known not to
// understand it.
func FuzzVerify(f *testing.F) {
	for _, c := range dataCases(f) {
		if len(c.text) < 8<<10 {
			f.Add(c.text)
		}
	}
	z := zone{}
	for _, c := range dataCases(f) {
		for name, texts := range c.zone {
			if _, ok := z[name]; !ok && texts[0] != "TEMPFAIL" {
				z[name] = texts
			}
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		m := message.FromString(text)
		v := &Verifier{Look: z.look, Now: func() time.Time { return time.Unix(1_700_000_000, 0) }}
		results, seen, err := v.Verify(context.Background(), m)
		if err != nil {
			t.Fatal(err)
		}
		if len(results) > DefaultSignatures || seen < len(results) {
			t.Fatalf("%d results of %d", len(results), seen)
		}
		for i, r := range results {
			switch r.Result {
			case Pass, Fail, Policy, Neutral, TempError, PermError:
			default:
				t.Errorf("%+v", r)
			}
			if strings.ContainsAny(r.String(), "\r\n") || r.Result != Pass && r.Reason == "" {
				t.Errorf("%+v", r)
			}
			if r.Result == Pass {
				checkPass(t, v, m, seen, i)
			}
		}
		field := FormatResults("mx.example.org", func() (all []pipeline.AuthResult) {
			for _, r := range results {
				all = append(all, r.AuthResult())
			}
			return all
		}())
		if err := (message.FieldEdit{Op: message.Add, Name: ResultsField, Value: field}).Check(); err != nil {
			t.Error(err)
		}
	})
}

// checkPass has both ways of verifying look at what passed.
func checkPass(t *testing.T, v *Verifier, m message.Message, seen, i int) {
	t.Helper()
	c := v.candidates(m.Head(), seen)[i]
	key, err := v.records.fetch(context.Background(), v.Look, c.parsed.query())
	if err != nil {
		t.Fatal(err)
	}
	all := newMaterial(m)
	fields, short := all.chosen(c.parsed.signed, c.index)
	if err := all.verifyAlone(context.Background(), c.parsed, fields, key); err != nil {
		t.Errorf("it passes, but not by itself: %v", err)
	}
	if short || misread(c.parsed.text) {
		return
	}
	if err := all.verifyByLibrary(context.Background(), c.parsed, fields, key); err != nil {
		t.Errorf("it passes, but not by the library: %v", err)
	}
}

// FuzzBody: the body that go-msgauth is fed has the hash of the body as it is.
func FuzzBody(f *testing.F) {
	for _, s := range []string{"", "\n", "a", "a\n\n\n", " \t\n \n", "a \t b \n\n c\n \n", "a\r\n\r\n", "a\r\r\n\r", "\n\n\na", strings.Repeat("\n", 300) + "a" + strings.Repeat(" \n", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for _, form := range []string{simple, relaxed} {
			got, size, err := bodyHash(context.Background(), message.BytesBody([]byte(body)), form, -1)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			_, key, _ := ed25519.GenerateKey(nil)
			err = msgauth.Sign(&b, strings.NewReader("From: a\r\n\r\n"+body), &msgauth.SignOptions{
				Domain: "x", Selector: "x", Signer: key, HeaderKeys: []string{"From"}, BodyCanonicalization: msgauth.Canonicalization(form),
			})
			if err != nil {
				t.Fatal(err)
			}
			h, _ := message.ParseHead(b.String())
			s, err := parseSignature(h.Field(0).Text(), h.Field(0).Value())
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(s.bodyHash) {
				t.Errorf("%s: %q has another hash", form, body)
			}
			// In what pieces it comes makes no difference, nor does what l= leaves out.
			var whole bytes.Buffer
			c := &canonicalBody{to: &whole, relaxed: form == relaxed, left: -1}
			for i := range len(body) {
				c.Write([]byte{body[i]}) //nolint:errcheck // close tells
			}
			if err := c.close(); err != nil || int64(whole.Len()) != size {
				t.Fatalf("%s: %q has %d bytes, %v, not %d", form, body, whole.Len(), err, size)
			}
			part, _, err := bodyHash(context.Background(), message.BytesBody([]byte(body)), form, size/2)
			if want := sha256.Sum256(whole.Bytes()[:size/2]); err != nil || string(part) != string(want[:]) {
				t.Errorf("%s: half of %q has another hash, %v", form, body, err)
			}
		}
	})
}

// FuzzClaims: whatever a forged field looks like, it is found within bounds,
// and a name with anything invisible around it is ours.
func FuzzClaims(f *testing.F) {
	for _, s := range []string{"mx.example.org; dkim=pass", "(a(b)c) \"mx.example.org\" 1;", "=?utf-8?q?mx?=", "\x00\xff", "((((", "\\", "ｍｘ.example.org 1"} {
		f.Add(s)
	}
	ids := []string{"mx.example.org"}
	f.Fuzz(func(t *testing.T, s string) {
		claims(s, ids)
		// A comment before it does not hide what claims our name.
		if len(s) < 100 && !strings.ContainsAny(s, "()\\\"\x00\r\n") && !claims("("+s+") mx.example.org; dkim=pass", ids) {
			t.Errorf("the comment %q hides our name", s)
		}
		h, _ := message.ParseHead("Authentication-Results: " + s + "\nFrom: a\n\n")
		edits, n := forged(h, ids)
		if len(edits) > n || n > h.Len() {
			t.Errorf("%d edits for %d", len(edits), n)
		}
		for _, e := range edits {
			if err := e.Field.Check(); err != nil {
				t.Error(err)
			}
		}
	})
}

// FuzzRecord: no key record makes the parser panic, and one that is taken makes
// a record that is the same key.
func FuzzRecord(f *testing.F) {
	for _, c := range dataCases(f) {
		for _, texts := range c.zone {
			for _, s := range texts {
				if len(s) < 1000 {
					f.Add(s)
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseRecord(s)
		if err != nil {
			return
		}
		again, err := Record(r.key)
		if err != nil {
			t.Fatal(err)
		}
		b, err := parseRecord(again)
		if err != nil || b.algorithm != r.algorithm {
			t.Errorf("%q: %v", again, err)
		}
	})
}

// FuzzSign: a message with one From field is signed so that we verify it, or
// not at all for a reason that is known.
func FuzzSign(f *testing.F) {
	for _, text := range shapes() {
		if len(text) < 10_000 {
			f.Add(text)
		}
	}
	key := Key{Domain: "example.org", Selector: "sel", Signer: testKey(f, 0)}
	z := zone{}
	z.publish(f, key)
	f.Fuzz(func(t *testing.T, text string) {
		m := message.FromString(text)
		if _, n := authors(m.Head()); n != 1 {
			return
		}
		value, err := new(Signer).Sign(context.Background(), m, key)
		if errors.Is(err, errBlank) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		h, err := m.Head().Edit(message.FieldEdit{Op: message.Add, Name: FieldName, Value: value})
		if err != nil {
			t.Fatal(err)
		}
		// As it goes over the wire.
		sent := message.FromString(string(m.WithHead(h).Bytes()))
		v := &Verifier{Look: z.look}
		results, _, err := v.Verify(context.Background(), sent)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			if r.Result == Pass && r.Selector == "sel" {
				return
			}
		}
		if len(results) >= DefaultSignatures {
			return
		}
		t.Errorf("%v\n%q", results, sent.Bytes())
	})
}
