package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/queue"
)

// How often it is looked whether a summary is due, and after how many of these
// looks what is too old is deleted.
const (
	keeperPause = time.Minute
	sweepEvery  = 60
)

// slowest is how long storing a message may take after the time of its hold was
// noted. What came so shortly before a summary is told in the next one, too: it
// may not have been there yet.
const slowest = time.Minute

// start looks after the quarantine until stop.
func (q *quarantine) start() {
	ctx, cancel := context.WithCancel(context.Background())
	q.cancel, q.done = cancel, make(chan struct{})
	go func() {
		defer close(q.done)
		t := time.NewTicker(keeperPause)
		defer t.Stop()
		for n := 0; ; n++ {
			if n%sweepEvery == 0 {
				q.sweep(ctx)
			}
			q.summarize(ctx)
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
		}
	}()
}

// stop ends that, and has no more messages released. What has begun may end until
// ctx does: what the next program takes must be removed while there is a queue to
// remove it from. It may be called again, and of nil.
func (q *quarantine) stop(ctx context.Context) {
	if q == nil {
		return
	}
	q.mu.Lock()
	q.stopping = true
	q.mu.Unlock()
	if q.cancel != nil {
		q.cancel()
		<-q.done
	}
	defer context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		for _, cancel := range q.busy {
			cancel()
		}
	})()
	q.running.Wait()
}

// sweep deletes what is in quarantine for longer than it is kept. Each message is
// in the log.
func (q *quarantine) sweep(ctx context.Context) {
	keep := q.config().Quarantine.Retention
	if keep <= 0 {
		return
	}
	now := q.now()
	c, err := q.queue.Delete(ctx, queue.Selection{Match: func(v *queue.View) bool {
		return admin.InQuarantine(v) && now.Sub(v.Hold.Since) >= keep
	}}, "quarantine.retention")
	if err != nil && ctx.Err() == nil {
		q.log.Error("the quarantine cannot be swept, trying again later", "error", err)
	}
	if c.Messages > 0 {
		q.log.Info("quarantine swept", "deleted", c.Messages, "older_than", keep.String())
	}
}

// remembered is what the quarantine must know after a restart.
type remembered struct {
	// Turn is the last hour of a summary that has passed, whether or not there was
	// anything to tell; Told is until when things were told.
	Turn time.Time `json:"turn"`
	Told time.Time `json:"told"`
}

// turnOf is the last time before now at which a summary was due.
func turnOf(now time.Time, hour int) time.Time {
	turn := time.Date(now.Year(), now.Month(), now.Day(), hour, 0, 0, 0, now.Location())
	if turn.After(now) {
		turn = time.Date(now.Year(), now.Month(), now.Day()-1, hour, 0, 0, 0, now.Location())
	}
	return turn
}

// summarize writes the summary if it is due and there is something new. What
// fails is tried again at the next look.
func (q *quarantine) summarize(ctx context.Context) {
	c := q.config()
	if c.Quarantine.Summary == "" {
		return
	}
	now := q.now()
	turn := turnOf(now, c.Quarantine.SummaryHour)
	last, err := q.recall()
	switch {
	case errors.Is(err, fs.ErrNotExist): // the first one is due at the next hour of summaries
		err = q.remember(remembered{Turn: turn})
	case err == nil && (last.Turn.After(now) || last.Told.After(now)): // the clock was set back
		// What comes from now on was not told, whatever the clock had said. What was
		// told since this hour is told again: too much is better than too little.
		if last.Turn.After(now) {
			last.Turn = turn
		}
		if last.Told.After(now) {
			last.Told = now
		}
		err = q.remember(last)
	case err == nil && last.Turn.Before(turn):
		if err = q.summary(ctx, c, last.Told, now); err == nil {
			err = q.remember(remembered{Turn: turn, Told: now.Add(-slowest)})
		}
	}
	if err != nil && ctx.Err() == nil {
		q.log.Error("no summary of the quarantine, trying again in a minute", "error", err)
	}
}

// recall reads what was remembered. What cannot be read is forgotten: a summary
// too many tells nobody a lie.
func (q *quarantine) recall() (r remembered, err error) {
	b, err := os.ReadFile(q.memory)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		q.log.Warn("the note about the last summary of the quarantine cannot be read; the next one tells everything", "file", q.memory, "error", err)
		return remembered{}, nil
	}
	return r, nil
}

// remember writes it, whole or not at all.
func (q *quarantine) remember(r remembered) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(q.memory), filepath.Base(q.memory)+".")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), q.memory)
	}
	if err != nil {
		os.Remove(f.Name()) //nolint:errcheck // the first error is what counts
	}
	return err
}

// summary writes one about what came after since, if anything did.
func (q *quarantine) summary(ctx context.Context, c *config.Config, since, now time.Time) error {
	d := digest{host: c.Hostname, from: c.Bounce.From, to: c.Quarantine.Summary, now: now, since: since, keep: c.Quarantine.Retention}
	err := q.queue.Each(ctx, 0, func(v *queue.View) error {
		if admin.InQuarantine(v) {
			d.add(v)
		}
		return nil
	})
	if err != nil || d.fresh == 0 {
		return err
	}
	if err := q.send(ctx, c, &d); err != nil {
		return fmt.Errorf("summary: %w", err)
	}
	q.log.Info("summary of the quarantine", "to", c.Quarantine.Summary, "new", d.fresh, "all", d.all)
	return nil
}

// send gives a summary to our own queue, or where no entrance uses that, to the
// program that takes the entrances' mail.
func (q *quarantine) send(ctx context.Context, c *config.Config, d *digest) error {
	origin := ownOrigin()
	if to := destinationOf(c, origin); to.next != "" {
		m, err := q.marked(c, to, d.message(), origin)
		if err != nil {
			return err
		}
		return q.hand(ctx, to.next, envelope.To("", d.to), m)
	}
	subs, err := submissions([]pipeline.Outgoing{{Envelope: d.envelope(), Message: d.message(), Origin: origin}}, d.now)
	if err != nil {
		return err
	}
	_, err = q.queue.Submit(ctx, subs)
	return err
}
