package dkim

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"net"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
)

func pemOf(t testing.TB, k crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// zone is a DNS of texts.
type zone map[string][]string

// look answers from the zone; "TEMPFAIL" is a server that does not.
func (z zone) look(ctx context.Context, name string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	all, ok := z[name]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	if len(all) == 1 && all[0] == "TEMPFAIL" {
		return nil, &net.DNSError{Err: "server misbehaving", Name: name, IsTemporary: true}
	}
	return all, nil
}

// publish puts a key into the zone.
func (z zone) publish(t testing.TB, k Key) {
	t.Helper()
	r, err := Record(k.Signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	z[k.Query()] = []string{r}
}

// verify are the results of a text in canonical form.
func (z zone) verify(t testing.TB, text string) []Result {
	t.Helper()
	v := &Verifier{Look: z.look}
	results, _, err := v.Verify(context.Background(), message.FromString(text))
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// signed is a message with a signature by key on top.
func signed(t testing.TB, s *Signer, k Key, text string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	value, err := s.Sign(ctx, message.FromString(text), k)
	if err != nil {
		t.Fatal(err)
	}
	return FieldName + ": " + value + "\n" + text
}
