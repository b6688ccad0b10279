package pebble

import (
	"bytes"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/postern-mta/postern/queue/store"
)

// remove removes messages. Those that are gone already are passed over.
func (a *change) remove() error {
	for _, id := range a.b.Removes {
		if a.leaving[id] {
			continue
		}
		a.leaving[id] = true
		if err := a.removeMessage(id); err != nil {
			return fmt.Errorf("removing message %s: %w", id, err)
		}
	}
	return nil
}

func (a *change) removeMessage(id store.ID) error {
	done, err := a.removeKnown(id)
	if done || err != nil {
		return err
	}
	return a.removeFound(id)
}

// removeKnown removes a message of few recipients by the keys that it can have,
// without looking for them: most of them were written a moment ago, and a search
// goes through the remains of all messages that came and went since. It does
// nothing if the message is not as it should be.
func (a *change) removeKnown(id store.ID) (done bool, err error) {
	first, second := envelopeKey(id, 0), envelopeKey(id, 1)
	var h header
	length := a.lengthOf(first, func(v []byte) (ok bool) {
		h, ok = decodeWhole(v)
		return ok && h.recipients > 0 && h.recipients <= chunkRecipients
	})
	if length < 0 {
		return false, nil
	}
	more := a.lengthOf(second, func([]byte) bool { return true })
	if more < 0 {
		return false, nil
	}
	if err := a.removeBody(id, &h); err != nil {
		return false, err
	}
	a.counts.messages--
	a.counts.bytes -= int64(length + more)
	for _, k := range [...][]byte{first, second} {
		if err := a.batch.SingleDelete(k, nil); err != nil {
			return false, err
		}
	}
	for n := range h.recipients {
		if err := a.batch.Delete(stateKey(id, n), nil); err != nil {
			return false, err
		}
	}
	return true, a.batch.Delete(holdKey(id), nil)
}

// lengthOf is the length of a key's value that is good, else -1.
func (a *change) lengthOf(key []byte, good func(value []byte) bool) int {
	v, closer, err := a.s.db.Get(key)
	if err != nil {
		return -1
	}
	defer closer.Close()
	if !good(v) {
		return -1
	}
	return len(v)
}

// removeFound removes a message with all keys that there are.
func (a *change) removeFound(id store.ID) error {
	if err := a.look(); err != nil {
		return err
	}
	first := envelopeKey(id, 0)
	if !a.seek(first[:1+idLen]) {
		return a.iter.Error()
	}
	// What cannot be read is removed all the same: an operator who deletes a
	// damaged message means it. Its body may then stay, for Verify to name.
	h, err := decodeHeader(first, a.iter.Value())
	if err != nil || !bytes.Equal(a.iter.Key(), first) {
		a.s.o.Log.Warn("removing a damaged message", "id", id.String(), "error", err)
		if h, err = a.guess(id); err != nil {
			return err
		}
	}
	a.counts.messages--
	if err := a.removeBody(id, &h); err != nil {
		return err
	}
	if err := a.removeAll(first[:1+idLen], a.batch.SingleDelete); err != nil {
		return err
	}
	if err := a.removeAll(stateKey(id, 0)[:1+idLen], a.batch.Delete); err != nil {
		return err
	}
	return a.removeAll(holdKey(id), a.batch.Delete)
}

// look opens the view in which seek looks.
func (a *change) look() error {
	if a.iter != nil {
		return nil
	}
	var err error
	a.iter, err = a.s.db.NewIter(nil)
	return err
}

// seek goes to the first key that begins with prefix. The bounds keep it from
// looking for one through the remains of all that was removed after it.
func (a *change) seek(prefix []byte) bool {
	a.iter.SetBounds(prefix, successor(prefix))
	return a.iter.First()
}

// removeAll deletes every key that begins with prefix.
func (a *change) removeAll(prefix []byte, del func([]byte, *pebble.WriteOptions) error) error {
	for ok := a.seek(prefix); ok; ok = a.iter.Next() {
		if prefix[0] == prefixEnvelope {
			a.counts.bytes -= int64(len(a.iter.Value()))
		}
		if err := del(a.iter.Key(), nil); err != nil {
			return err
		}
	}
	return a.iter.Error()
}

// removeBody removes the body of a message unless others share it.
func (a *change) removeBody(id store.ID, h *header) error {
	info := h.message.Body
	if h.shared {
		last, err := a.leave(info.Of, id)
		if err != nil || !last {
			return err
		}
	}
	if info.File {
		a.unlinks = append(a.unlinks, info.Of)
		a.counts.files--
		a.counts.fileBytes -= info.Size
	} else {
		a.counts.bytes -= info.Size
	}
	return a.batch.SingleDelete(bodyKey(info.Of), nil)
}

// guess makes a header for a message that has none that can be read: its body,
// if there is one, is taken for its own.
func (a *change) guess(id store.ID) (header, error) {
	h := header{shared: true}
	h.message.Body.Of = id
	if a.seek(bodyKey(id)) {
		_, file, size, err := decodeBody(a.iter.Key(), a.iter.Value())
		if err == nil { // else the file, if it is one, is an orphan at the next Open
			h.message.Body.File, h.message.Body.Size = file, size
		}
	}
	return h, a.iter.Error()
}

// leave takes a message from the sharers of a body and reports whether it was
// the last of them.
func (a *change) leave(of, id store.ID) (last bool, err error) {
	if !a.sharing {
		// Two messages that leave at a time must not each see the other stay, so
		// the view that was opened before is worth nothing.
		a.s.sharing.Lock()
		a.sharing = true
		fresh, err := a.s.db.NewIter(nil)
		if err != nil {
			return false, err
		}
		if a.iter != nil {
			a.iter.Close()
		}
		a.iter = fresh
	}
	if a.gone == nil {
		a.gone = make(map[[2]store.ID]bool)
	}
	a.gone[[2]store.ID{of, id}] = true
	last = true
	prefix := sharerKey(of, 0)[:2+idLen]
	for ok := a.seek(prefix); ok; ok = a.iter.Next() {
		_, sharer, ok := shared(a.iter.Key())
		switch {
		case !ok:
		case sharer == id:
			if err := a.batch.Delete(a.iter.Key(), nil); err != nil {
				return false, err
			}
		case !a.gone[[2]store.ID{of, sharer}]:
			last = false
		}
	}
	return last, a.iter.Error()
}
