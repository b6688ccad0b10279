package main

import (
	"context"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/dsn"
)

// reporter writes the reports about recipients who were refused while the
// message was stored for others (mixed = "bounce").
type reporter struct {
	config func() *config.Config // the one in force
	spool  message.Spooler
}

// refused is handoff.Options.Report. A message without a sender gets no report:
// there is nobody to tell.
func (r reporter) refused(_ context.Context, tx *pipeline.Transaction, refused []pipeline.Refusal, m message.Message) ([]pipeline.Outgoing, error) {
	to := envelope.BounceAddress(tx.Envelope.Sender)
	if to == "" || to == envelope.DoubleBounce {
		return nil, nil
	}
	now, c := time.Now(), r.config()
	report := dsn.Report{
		Kind: dsn.Failure, Host: c.Hostname, From: c.Bounce.From, To: to, Sender: tx.Envelope.Sender, EnvID: tx.Envelope.EnvID,
		Arrival: now, Now: now, Original: m, HeadersOnly: tx.Envelope.Ret == "HDRS", MaxOriginal: maxOriginal(c),
		Format: formatOf(c), ID: "refused." + tx.ID, Spool: r.spool,
	}
	for _, f := range refused {
		d := dsn.Recipient{Address: f.Recipient.Address, Reply: f.Reply, Last: now}
		if f.Recipient.DSN != nil {
			d.ORcpt = f.Recipient.DSN.ORcpt
		}
		report.Recipients = append(report.Recipients, d)
	}
	content, err := report.Build()
	if err != nil {
		return nil, err
	}
	return []pipeline.Outgoing{{Envelope: report.Envelope(), Message: content, Origin: ownOrigin(), Copy: true}}, nil
}

// ownOrigin is the origin of what Postern writes itself.
func ownOrigin() pipeline.Origin {
	return pipeline.Origin{Entrance: "postern", Standing: pipeline.Local.String(), UID: -1, Received: time.Now()}
}

func formatOf(c *config.Config) dsn.Format {
	f, _ := dsn.ParseFormat(c.Bounce.Format)
	return f
}

// maxOriginal is bounce.max_original as dsn takes it, where 0 is the default.
func maxOriginal(c *config.Config) int64 {
	if c.Bounce.MaxOriginal == 0 {
		return -1
	}
	return c.Bounce.MaxOriginal
}
