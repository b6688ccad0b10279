package pebble

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/store"
)

// Apply is store.Store. It fills in Message.Body of the batch's Puts.
func (s *Store) Apply(ctx context.Context, b *store.Batch, later bool) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if len(b.Puts) > 0 {
		if err := s.room(); err != nil {
			return err
		}
	}
	a := change{s: s, b: b, puts: make(map[store.ID]*put, len(b.Puts))}
	committed := false
	// Deferred, so that no panic leaves a file behind; but after a fatal error
	// the batch may be on disk.
	defer func() {
		if !committed && !s.dead.Load() {
			a.undo()
		}
		for id := range a.puts {
			s.moving.Delete(id)
		}
	}()
	if err := a.check(); err != nil {
		return err
	}
	if err := a.bodies(ctx); err != nil {
		return err
	}
	wait, err := a.commit(ctx)
	if err != nil {
		return err
	}
	committed = true
	// A file may go only after the record that names it is gone for good.
	if !later || len(a.unlinks) > 0 {
		wait()
	}
	for _, of := range a.unlinks {
		s.unlink(of)
		s.moving.Delete(of)
	}
	s.counts.add(&a.counts)
	s.pokeKeeper(a.counts.bytes)
	return nil
}

// change is one Apply under way.
type change struct {
	s       *Store
	b       *store.Batch
	puts    map[store.ID]*put
	batch   *pebble.Batch
	iter    *pebble.Iterator
	sharing bool                 // s.sharing is held
	leaving map[store.ID]bool    // messages that this change removes, true when done
	gone    map[[2]store.ID]bool // sharers (body, message) that this change removes
	unlinks []store.ID
	counts  tally
}

type put struct {
	*store.Put
	body    newBody
	sharers []store.ID // with this message first, if it has others
}

func (p *put) own() bool { return p.Message.Body.Of == p.Message.ID }

// check refuses what could not be read back, and ties sharers to their bodies.
func (a *change) check() error {
	for i := range a.b.Puts {
		p := &a.b.Puts[i]
		if err := a.checkPut(p); err != nil {
			return fmt.Errorf("message %s: %w", p.Message.ID, err)
		}
		a.puts[p.Message.ID] = &put{Put: p}
	}
	for i := range a.b.Puts {
		p := a.puts[a.b.Puts[i].Message.ID]
		if p.own() {
			continue
		}
		of := a.puts[p.Message.Body.Of]
		if of == nil || !of.own() {
			return fmt.Errorf("message %s: no message of the batch brings the body %s", p.Message.ID, p.Message.Body.Of)
		}
		if of.sharers == nil {
			of.sharers = []store.ID{of.Message.ID}
		}
		of.sharers = append(of.sharers, p.Message.ID)
	}
	a.leaving = make(map[store.ID]bool, len(a.b.Removes))
	for _, id := range a.b.Removes {
		if a.puts[id] != nil {
			return fmt.Errorf("message %s is put and removed by one batch", id)
		}
		a.leaving[id] = false
	}
	return a.checkRest()
}

func (a *change) checkPut(p *store.Put) error {
	m := &p.Message
	if m.Body.Of == 0 {
		m.Body.Of = m.ID
	}
	switch {
	case !a.s.ids.given(m.ID):
		return errors.New("its id does not come from NewID")
	case a.puts[m.ID] != nil:
		return errors.New("it is put twice")
	case len(m.Envelope.Recipients) == 0:
		return errors.New("it has no recipients")
	case m.Form > message.UTF8:
		return fmt.Errorf("form %d is unknown", m.Form)
	case len(m.Envelope.Sender) > envelope.MaxAddress:
		return reply.With(reply.AddressTooLong, fmt.Errorf("sender of %d bytes", len(m.Envelope.Sender)))
	}
	for i := range m.Envelope.Recipients {
		if n := len(m.Envelope.Recipients[i].Address); n > envelope.MaxAddress {
			return reply.With(reply.AddressTooLong, fmt.Errorf("recipient %d of %d bytes", i, n))
		}
	}
	return nil
}

func (a *change) checkRest() error {
	for _, c := range a.b.States {
		if c.State.Status > store.Failed {
			return fmt.Errorf("message %s: recipient %d: status %d is unknown", c.ID, c.Recipient, c.State.Status)
		}
	}
	for _, p := range a.b.Policies {
		if len(p.Name) == 0 || len(p.Name) > maxPolicyName || len(p.Value) > maxPolicyValue {
			return fmt.Errorf("policy %.50q: a name of 1 to %d bytes and a value of at most %d are wanted", p.Name, maxPolicyName, maxPolicyValue)
		}
	}
	return nil
}

// bodies reads or moves all bodies, and flushes the directories of files.
func (a *change) bodies(ctx context.Context) error {
	files := false
	for i := range a.b.Puts {
		p := a.puts[a.b.Puts[i].Message.ID]
		if !p.own() {
			continue
		}
		body, err := a.s.bring(ctx, p.Message.ID, p.Body)
		if err != nil {
			return err
		}
		p.body = body
		files = files || body.file
		info := store.BodyInfo{Of: p.Message.ID, File: body.file, Size: p.Body.Size(), LFs: p.Body.LFs(), EightBit: p.Body.EightBit()}
		p.Message.Body = info
		for _, id := range p.sharers {
			a.puts[id].Message.Body = info
		}
	}
	if !files {
		return nil
	}
	// Of the directory that a body leaves nothing is promised: a crash may bring
	// its name back, and the next Open removes that.
	if err := a.s.bodies.sync(); err != nil {
		a.s.die(fmt.Errorf("flushing the directory %s: %w", a.s.path(bodiesDir), err))
	}
	return nil
}

// undo gives the files back that were taken.
func (a *change) undo() {
	for id, p := range a.puts {
		switch {
		case !p.body.file:
		case p.body.from != nil:
			p.body.from.giveBack(id)
		default:
			a.s.unlink(id)
		}
	}
}

// commit makes the batch and applies it. No other change of the same messages
// comes between what it reads and what it writes.
func (a *change) commit(ctx context.Context) (wait func(), err error) {
	held := a.lock()
	defer a.unlock(held)
	a.batch = a.s.db.NewBatch()
	for _, step := range []func() error{a.put, a.states, a.remove, a.holds, a.policies} {
		if err := step(); err != nil {
			a.batch.Close()
			return nil, err
		}
	}
	if ctx.Err() != nil {
		a.batch.Close()
		return nil, context.Cause(ctx)
	}
	for _, of := range a.unlinks {
		a.s.moving.Store(of, struct{}{})
	}
	if a.batch.Empty() {
		// What this batch finds done may have been done by one that is not flushed
		// yet, and Pebble passes over empty batches.
		if err := a.batch.LogData(nil, nil); err != nil {
			return nil, err
		}
	}
	wait = a.s.commit(a.batch)
	for id := range a.puts {
		a.s.used.add(id)
	}
	return wait, nil
}

// lock takes the stripes of all messages concerned, in order.
func (a *change) lock() (held uint64) {
	for i := range a.b.Puts {
		held |= stripe(a.b.Puts[i].Message.ID)
	}
	for i := range a.b.States {
		held |= stripe(a.b.States[i].ID)
	}
	for _, id := range a.b.Removes {
		held |= stripe(id)
	}
	for i := range a.b.Holds {
		held |= stripe(a.b.Holds[i].ID)
	}
	for i := range a.s.stripes {
		if held&(1<<i) != 0 {
			a.s.stripes[i].Lock()
		}
	}
	return held
}

func stripe(id store.ID) uint64 { return 1 << ((id ^ id>>22) % 64) }

func (a *change) unlock(held uint64) {
	if a.iter != nil {
		a.iter.Close()
	}
	if a.sharing {
		a.s.sharing.Unlock()
	}
	for i := range a.s.stripes {
		if held&(1<<i) != 0 {
			a.s.stripes[i].Unlock()
		}
	}
}

func (a *change) put() error {
	for i := range a.b.Puts {
		p := a.puts[a.b.Puts[i].Message.ID]
		id := p.Message.ID
		// A key of e or b that is set twice would come back when it is deleted.
		there, unknown := a.s.used.has(id)
		if unknown {
			var err error
			if there, err = a.has(envelopeKey(id, 0)); err != nil {
				return err
			}
		}
		if there {
			return fmt.Errorf("message %s was put before", id)
		}
		if err := a.putMessage(p); err != nil {
			return err
		}
		if p.own() {
			if err := a.putBody(p); err != nil {
				return err
			}
		}
		if p.Hold != nil {
			if err := a.batch.Set(holdKey(id), appendHold(nil, p.Hold), nil); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *change) putMessage(p *put) error {
	id, to := p.Message.ID, p.Message.Envelope.Recipients
	shared := !p.own() || p.sharers != nil
	record := appendHeader(nil, &header{message: p.Message, recipients: uint32(len(to)), shared: shared})
	if err := a.batch.Set(envelopeKey(id, 0), record, nil); err != nil {
		return err
	}
	a.counts.messages++
	a.counts.bytes += int64(len(record))
	chunk := uint32(1)
	for part := range slices.Chunk(to, chunkRecipients) {
		record = appendRecipients(record[:0], part)
		if err := a.batch.Set(envelopeKey(id, chunk), record, nil); err != nil {
			return err
		}
		a.counts.bytes += int64(len(record))
		chunk++
	}
	return nil
}

func (a *change) putBody(p *put) error {
	id := p.Message.ID
	for _, sharer := range p.sharers {
		if err := a.batch.Set(sharerKey(id, sharer), nil, nil); err != nil {
			return err
		}
	}
	if p.body.file {
		a.counts.files++
		a.counts.fileBytes += p.Message.Body.Size
		return a.batch.Set(bodyKey(id), appendBodyFile(nil, p.Message.Body.Size), nil)
	}
	op := a.batch.SetDeferred(1+idLen, 1+len(p.body.content))
	copy(op.Key, bodyKey(id))
	op.Value[0] = bodyInline
	copy(op.Value[1:], p.body.content)
	a.counts.bytes += int64(len(p.body.content))
	return op.Finish()
}

// has looks for a key. Damage to a table counts as its absence: new mail must
// not be stopped by it, and its ids are new in all likelihood.
func (a *change) has(key []byte) (bool, error) {
	_, closer, err := a.s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) || pebble.IsCorruptionError(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, closer.Close()
}

// recipients is how many a message has, 0 if it is not there.
func (a *change) recipients(id store.ID) (uint32, error) {
	if p := a.puts[id]; p != nil {
		return uint32(len(p.Message.Envelope.Recipients)), nil
	}
	v, closer, err := a.s.db.Get(envelopeKey(id, 0))
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer closer.Close()
	d := decoder{rest: v, all: v}
	h := decodeNumbers(&d)
	if d.err != nil {
		return 0, damaged(envelopeKey(id, 0), d.offset, d.err)
	}
	return h.recipients, nil
}

func (a *change) states() error {
	var last store.ID
	var n uint32
	for i := range a.b.States {
		c := &a.b.States[i]
		if i == 0 || c.ID != last {
			var err error
			if n, err = a.recipients(c.ID); err != nil {
				return err
			}
			last = c.ID
		}
		if _, leaves := a.leaving[c.ID]; n == 0 || leaves {
			continue
		}
		if c.Recipient >= n {
			return fmt.Errorf("message %s: a state for recipient %d of %d", c.ID, c.Recipient, n)
		}
		if err := a.batch.Set(stateKey(c.ID, c.Recipient), appendState(nil, &c.State), nil); err != nil {
			return err
		}
	}
	return nil
}

func (a *change) holds() error {
	for _, c := range a.b.Holds {
		n, err := a.recipients(c.ID)
		if err != nil {
			return err
		}
		_, leaves := a.leaving[c.ID]
		switch {
		case n == 0 || leaves:
		case c.Hold == nil:
			err = a.batch.Delete(holdKey(c.ID), nil)
		default:
			err = a.batch.Set(holdKey(c.ID), appendHold(nil, c.Hold), nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *change) policies() error {
	for _, p := range a.b.Policies {
		var err error
		if len(p.Value) == 0 {
			err = a.batch.Delete(policyKey(p.Name), nil)
		} else {
			err = a.batch.Set(policyKey(p.Name), p.Value, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
