package milter

import (
	"sync"
	"time"

	gomilter "github.com/emersion/go-milter"
)

const (
	// idleTime is how long a connection is kept that nobody uses.
	idleTime = 30 * time.Second
	// maxIdle is how many are kept to each milter.
	maxIdle = 32
	// noReuse is how long connections to a milter are not kept after one that was
	// kept turned out to be dead.
	noReuse = 5 * time.Minute
)

// pool keeps connections that were ended with SMFIC_QUIT_NC, on which another
// session may begin. Safe for concurrent use.
type pool struct {
	mu     sync.Mutex
	off    bool
	now    func() time.Time
	idle   map[string][]*resting
	until  map[string]time.Time // until when none is kept
	closed bool
}

// resting is a connection in a pool.
type resting struct {
	talk  *talk
	timer *time.Timer
}

// take is a connection to the milter of that key, nil if there is none.
func (p *pool) take(key string) *talk {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[key]
	if len(list) == 0 {
		return nil
	}
	one := list[len(list)-1]
	p.idle[key] = list[:len(list)-1]
	one.timer.Stop()
	return one.talk
}

// dead says that a connection which had been kept was no good.
func (p *pool) dead(key string) {
	p.mu.Lock()
	list := p.idle[key]
	delete(p.idle, key)
	if p.until == nil {
		p.until = map[string]time.Time{}
	}
	p.until[key] = p.now().Add(noReuse)
	p.mu.Unlock()
	for _, one := range list {
		one.timer.Stop()
		one.talk.conn.Close()
	}
}

// put ends a session on a connection, and keeps it where that can be.
func (p *pool) put(key string, t *talk) {
	if !p.wants(key) || t.version < newest || t.reused {
		t.quit()
		return
	}
	err := t.parting(func() error {
		if err := t.abort(); err != nil {
			return err
		}
		return t.send(gomilter.CodeQuitNewConn)
	})
	t.connected, t.greeted, t.reused = false, false, true
	one := &resting{talk: t}
	p.mu.Lock()
	kept := err == nil && t.r.Buffered() == 0 && !p.closed && len(p.idle[key]) < maxIdle
	if kept {
		if p.idle == nil {
			p.idle = map[string][]*resting{}
		}
		p.idle[key] = append(p.idle[key], one)
		one.timer = time.AfterFunc(idleTime, func() { p.expire(key, one) })
	}
	p.mu.Unlock()
	if !kept {
		t.conn.Close()
	}
}

func (p *pool) wants(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.off && !p.closed && len(p.idle[key]) < maxIdle && !p.now().Before(p.until[key])
}

// expire closes one that was not used for a while.
func (p *pool) expire(key string, one *resting) {
	p.mu.Lock()
	found := false
	for i, other := range p.idle[key] {
		if other == one {
			p.idle[key] = append(p.idle[key][:i], p.idle[key][i+1:]...)
			found = true
			break
		}
	}
	p.mu.Unlock()
	if found {
		one.talk.conn.Close()
	}
}

// close closes all. What is put back from now on is not kept.
func (p *pool) close() {
	p.mu.Lock()
	all := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	for _, list := range all {
		for _, one := range list {
			one.timer.Stop()
			one.talk.conn.Close()
		}
	}
}
