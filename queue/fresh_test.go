package queue

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/queuetest"
	"github.com/postern-mta/postern/queue/store"
)

// to is an envelope for somebody at a domain of his own.
func to(n int) envelope.Envelope {
	return envelope.To("a@here.example", fmt.Sprintf("b@d%d.example", n))
}

// countedStore counts how often something is read.
type countedStore struct {
	*queuetest.Memory
	reads atomic.Int64
}

func (s *countedStore) Reader() (store.Reader, error) {
	s.reads.Add(1)
	return s.Memory.Reader()
}

// kept is what is kept of fresh messages.
func (r *rig) kept() (tracks int, size int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.tracks {
		if t.fresh > 0 {
			tracks++
			size += t.fresh
		}
	}
	if size != r.fresh.bytes {
		r.t.Errorf("%d bytes are counted, and %d kept", r.fresh.bytes, size)
	}
	return tracks, size
}

// TestFreshMessages: what leaves at once is not read from the disk, and what waits is
// kept in no more than so many bytes, for a while.
func TestFreshMessages(t *testing.T) {
	one := func(o *Options) { o.Channels[0].Limit = 1 }
	bubble(t, one, func(t *testing.T, r *rig) {
		s := &countedStore{Memory: r.store}
		r.Queue.o.Store = s
		open := make(chan struct{})
		r.exit.before = func(context.Context, *Job) { <-open }
		text := func(n int) message.Message {
			return message.FromString(fmt.Sprintf("Subject: %d\n\n%s\n", n, strings.Repeat("x", 50<<10)))
		}
		const count = 100
		for n := range count {
			r.submitAll(Submission{Envelope: to(n), Message: text(n)})
		}
		pass(time.Second)
		n, size := r.kept()
		if want := freshBytes / (51 << 10); size > freshBytes || n < want-2 || n > want+2 {
			t.Fatalf("%d messages are kept, in %d bytes", n, size)
		}
		if got := s.reads.Load(); got > 0 {
			t.Errorf("what has just come was read %d times", got)
		}
		close(open)
		pass(time.Second)
		if got := s.reads.Load(); got < int64(count-n-5) || got > int64(count-n+5) {
			t.Errorf("%d messages were read, where %d of %d were kept", got, n, count)
		}
		for n := range count {
			if got := r.exit.to(to(n).Recipients[0].Address); len(got) != 1 || got[0].text != string(text(n).Bytes()) {
				t.Fatalf("message %d: %d deliveries", n, len(got))
			}
		}
		if n, size := r.kept(); n > 0 || size > 0 {
			t.Errorf("%d messages of %d bytes are kept when all is delivered", n, size)
		}
		r.empty()
	})
}

// TestFreshForAWhile: a message that is not tried soon makes room for others, and is
// read when its turn comes.
func TestFreshForAWhile(t *testing.T) {
	shut := true
	never := func(o *Options) {
		o.Channels[0].Admit = func(now time.Time, _, _ string) (Leave, *Wait) {
			if shut {
				return nil, &Wait{Until: now.Add(time.Minute)}
			}
			return nil, nil
		}
	}
	bubble(t, never, func(t *testing.T, r *rig) {
		s := &countedStore{Memory: r.store}
		r.Queue.o.Store = s
		for n := range 3 {
			r.submitAll(Submission{Envelope: to(n)})
		}
		if n, _ := r.kept(); n != 3 {
			t.Fatalf("%d are kept", n)
		}
		pass(freshFor)
		r.submitAll(Submission{Envelope: to(3)})
		if n, _ := r.kept(); n != 1 {
			t.Errorf("%d are kept after a while", n)
		}
		r.mu.Lock()
		shut = false
		r.mu.Unlock()
		pass(2 * time.Minute)
		if got := s.reads.Load(); got != 3 {
			t.Errorf("%d were read", got)
		}
		r.empty()
	})
}
