package dkim

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

// CheckPublished reports whether a key is in the DNS, so that others can verify
// what it signs; look is as in a Verifier. IsTemporary tells whether nobody
// could say.
func CheckPublished(ctx context.Context, look func(ctx context.Context, name string) ([]string, error), k Key) error {
	r, err := new(records).fetch(ctx, look, k.Query())
	if err != nil {
		return err
	}
	own, ok := k.Signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !own.Equal(r.key):
		return errors.New("another key than the one in the file")
	case r.testing:
		return errors.New("the record says t=y, testing: others take your mail as unsigned; take it out")
	}
	return nil
}

// IsTemporary reports whether an error of CheckPublished says that the DNS
// could not tell.
func IsTemporary(err error) bool {
	var t temporary
	return errors.As(err, &t)
}

// Lookup answers for a name as the DNS would if the keys were published, for
// trying out what was signed before they are.
func (k *Keys) Lookup(_ context.Context, name string) ([]string, error) {
	selector, domain, _ := strings.Cut(name, middle)
	keys, err := k.of(domain)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		if key.Selector == selector {
			r, err := Record(key.Signer.Public())
			return []string{r}, err
		}
	}
	return nil, &net.DNSError{Err: "no such key", Name: name, IsNotFound: true}
}

// AuthorDomain is the domain of a message's one author.
func AuthorDomain(h message.Head) (string, error) {
	domains, n := authors(h)
	switch {
	case n != 1:
		return "", fmt.Errorf("the message has %d From fields", n)
	case len(domains) != 1:
		return "", fmt.Errorf("its From field names %d domains", len(domains))
	}
	return domains[0], nil
}

// WithResults is a head with a field of results under our name on top, and
// without those that claim to be ours.
func WithResults(h message.Head, id string, results []pipeline.AuthResult) (message.Head, error) {
	edits, _ := forged(h, []string{strings.TrimRight(fold(id), ".")})
	fields := make([]message.FieldEdit, 0, len(edits)+1)
	for _, e := range edits {
		fields = append(fields, e.Field)
	}
	if len(results) == 0 {
		results = []pipeline.AuthResult{{Method: "dkim", Result: None}}
	}
	return h.Edit(append(fields, message.FieldEdit{Op: message.Add, Name: ResultsField, Value: FormatResults(id, results)})...)
}
