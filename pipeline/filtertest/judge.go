package filtertest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

// Transaction is a Stranger's, from a@example.net to these recipients, r@example.org
// if there are none; the filter is asked about all.
func Transaction(to ...string) *pipeline.Transaction {
	if len(to) == 0 {
		to = []string{"r@example.org"}
	}
	tx := &pipeline.Transaction{ID: "T1", Session: Stranger(), Envelope: envelope.To("a@example.net", to...)}
	for i := range to {
		tx.Active = append(tx.Active, i)
	}
	return tx
}

// Judge has a filter judge the message of a Transaction, in a session of its own.
func Judge(f pipeline.Filter, text string, within time.Duration, to ...string) (v pipeline.Verdict, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	tx := Transaction(to...)
	i, err := f.Open(ctx, tx.Session)
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, i.Close()) }()
	return i.(pipeline.Messager).Message(ctx, tx, message.FromString(text))
}

// Must is the verdict of a Judge that does not fail, and has 20 s.
func Must(t testing.TB, f pipeline.Filter, text string, to ...string) pipeline.Verdict {
	t.Helper()
	v, err := Judge(f, text, 20*time.Second, to...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
