package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
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
		top     string
		adds    string
		want    string // the reply's code, "" for a message that leaves
		held    bool
	}{
		"ours is signed":         {pipeline.Verdict{}, `{"standing":"local"}`, "", "X-Signed: example.org\n", "", false},
		"a stranger's is not":    {pipeline.Verdict{}, `{"standing":"external"}`, "", "", "", false},
		"unreadable, a stranger": {pipeline.Verdict{}, `{`, "", "", "", false},
		"ours, with a mark":      {pipeline.Verdict{}, `{"standing":"auth","user":"ann@example.net"}`, "Received: x\nX-Postern-Origin: AAAA\n BBBB\n", "Received: x\n", "", false},
		"local, with a mark":     {pipeline.Verdict{}, `{"standing":"local"}`, "X-Postern-Origin: AAAA\n", "", "", false},
		"put off":                {pipeline.Verdict{Action: pipeline.Defer, Reason: "no key"}, `{}`, "", "", "451", false},
		"given up":               {pipeline.Verdict{Action: pipeline.Reject}, `{}`, "", "", "554", false},
		"held":                   {pipeline.Verdict{Action: pipeline.Quarantine, Reason: "odd"}, `{}`, "", "", "451", true},
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
			m, err := message.Read(strings.NewReader(c.top+"Subject: x\n\nbody\n"), message.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Body().Release()
			var held []store.Hold
			d := departure{chains: &chains, log: slog.New(slog.DiscardHandler), hold: func(_ store.ID, h store.Hold) { held = append(held, h) }}
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
}

// kept is a sink that remembers.
type kept []pipeline.Outgoing

func (k *kept) Submit(_ context.Context, all []pipeline.Outgoing) (reply.Reply, error) {
	*k = append(*k, all...)
	return reply.OK, nil
}

// The chain called delivery runs on what goes straight through as well, and its
// answer is the client's.
func TestDepartureStraightThrough(t *testing.T) {
	for name, c := range map[string]struct {
		verdict pipeline.Verdict
		want    string
		sent    bool
		hold    string
	}{
		"signed":   {pipeline.Verdict{}, "250 2.0.0", true, ""},
		"given up": {pipeline.Verdict{Action: pipeline.Reject}, "554 5.7.1", false, ""},
		"put off":  {pipeline.Verdict{Action: pipeline.Defer}, "451 ", false, ""},
		"held":     {pipeline.Verdict{Action: pipeline.Quarantine, Reason: "odd"}, "250 ", false, "leaver: odd"},
	} {
		t.Run(name, func(t *testing.T) {
			inner := smtptest.New(t)
			out := testOutward(t, fmt.Sprintf("[route]\n\"example.org\" = {to = %q, cut_through = true}\n", inner.Addr().String()))
			chain, err := pipeline.NewChain("delivery", []pipeline.Step{{Name: "leaver", Filter: leaver{c.verdict}}}, pipeline.ChainOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var chains pipeline.Generations
			if err := chains.Swap(pipeline.NewGeneration(1, chain)); err != nil {
				t.Fatal(err)
			}
			m := message.FromString("Subject: x\n\nbody\n")
			defer m.Body().Release()
			var queued kept
			log := slog.New(slog.DiscardHandler)
			s := cutThrough{out, departure{chains: &chains, log: log}, out.routeOf, &queued, log}
			answer, err := s.Submit(t.Context(), []pipeline.Outgoing{{
				Envelope: envelope.To("a@example.net", "b@example.org"), Message: m, Origin: pipeline.Origin{Standing: "local"},
			}})
			if !strings.HasPrefix(answer.SMTP(), c.want) || (err == nil) != strings.HasPrefix(c.want, "250") {
				t.Errorf("answer %q, %v", answer.SMTP(), err)
			}
			taken := inner.Messages()
			if (len(taken) == 1) != c.sent || c.sent && !strings.HasPrefix(string(taken[0].Content), "X-Signed: example.org\n") {
				t.Errorf("the inner server took %d", len(taken))
			}
			if (c.hold != "") != (len(queued) == 1) || c.hold != "" && queued[0].Hold != c.hold {
				t.Errorf("queued %+v", queued)
			}
		})
	}
}

// noDNS answers nothing.
type noDNS struct{}

func (noDNS) LookupMX(context.Context, string) (resolve.MX, error) {
	return resolve.MX{}, errors.New("no DNS")
}

func (noDNS) LookupAddrs(context.Context, string) ([]netip.Addr, error) {
	return nil, errors.New("no DNS")
}
