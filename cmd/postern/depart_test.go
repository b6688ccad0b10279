package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/store"
)

// leaver is a filter that answers at the exit.
type leaver struct{ verdict pipeline.Verdict }

func (l leaver) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return l, nil }
func (l leaver) Close() error                                                       { return nil }
func (l leaver) Deliver(_ context.Context, d *pipeline.Delivery, m message.Message) (pipeline.Verdict, error) {
	if d.Origin.Standing == "local" && l.verdict.Action == pipeline.Continue {
		return pipeline.Verdict{Edits: []pipeline.Edit{pipeline.Field(message.FieldEdit{Op: message.Add, Name: "X-Signed", Value: d.Host})}}, nil
	}
	return l.verdict, nil
}

// The chain called delivery runs on what leaves, knows where it came from, and
// may hold it back.
func TestDeparture(t *testing.T) {
	for name, c := range map[string]struct {
		verdict pipeline.Verdict
		origin  string
		adds    string
		want    string // the reply's code, "" for a message that leaves
		held    bool
	}{
		"ours is signed":         {pipeline.Verdict{}, `{"standing":"local"}`, "X-Signed: example.org\n", "", false},
		"a stranger's is not":    {pipeline.Verdict{}, `{"standing":"external"}`, "", "", false},
		"unreadable, a stranger": {pipeline.Verdict{}, `{`, "", "", false},
		"put off":                {pipeline.Verdict{Action: pipeline.Defer, Reason: "no key"}, `{}`, "", "451", false},
		"given up":               {pipeline.Verdict{Action: pipeline.Reject}, `{}`, "", "554", false},
		"held":                   {pipeline.Verdict{Action: pipeline.Quarantine, Reason: "odd"}, `{}`, "", "451", true},
	} {
		t.Run(name, func(t *testing.T) {
			chain, err := pipeline.NewChain("delivery", []pipeline.Step{{Name: "leaver", Filter: leaver{c.verdict}}}, pipeline.ChainOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var chains pipeline.Generations
			if err := chains.Swap(pipeline.NewGeneration(1, chain)); err != nil {
				t.Fatal(err)
			}
			m, err := message.Read(strings.NewReader("Subject: x\n\nbody\n"), message.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Body().Release()
			var held []store.Hold
			d := departure{&chains, slog.New(slog.DiscardHandler), func(_ store.ID, h store.Hold) { held = append(held, h) }}
			j := &queue.Job{ID: 7, Envelope: envelope.To("a@example.net", "b@example.org"), Message: m, Origin: []byte(c.origin)}
			out, err := d.prepare(t.Context(), j, "example.org", message.EightBit)
			if c.want != "" {
				var e *reply.Error
				if !errors.As(err, &e) || !strings.HasPrefix(e.Reply.SMTP(), c.want) || (len(held) == 1) != c.held {
					t.Fatalf("error %v, %d held", err, len(held))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer out.Body().Release()
			text, err := io.ReadAll(out.Reader())
			if err != nil || string(text) != c.adds+"Subject: x\n\nbody\n" {
				t.Errorf("%q, %v", text, err)
			}
		})
	}
	var none pipeline.Generations
	if _, err := (departure{chains: &none}).prepare(t.Context(), &queue.Job{}, "", message.UTF8); reply.Of(err).Class != reply.Temporary {
		t.Error("without a configuration a message must wait, got", err)
	}
	_ = time.Now
}
