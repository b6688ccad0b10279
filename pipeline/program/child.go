package program

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// child is a process that starts programs, as the daemon sees it.
type child struct {
	control *net.UnixConn
	process *os.Process
	died    func(error)
	kept    bool // by a keeper, which could not be run again
	closing atomic.Bool
	doomed  atomic.Bool // it has been killed: nothing more is asked of it
	timeout time.Duration
	lost    chan struct{} // closed when it is gone, and its programs with it

	mu       sync.Mutex
	last     uint64
	life     uint64              // how often a keeper has started it again
	programs map[uint64]*Process // those that have not ended; nil once it is buried
}

// add enters a program. There is none for a process that has been buried.
func (c *child) add() *Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.programs == nil {
		return nil
	}
	c.last++
	p := &Process{child: c, id: c.life<<lifeShift | c.last, begun: make(chan struct{}), done: make(chan struct{})}
	c.programs[p.id] = p
	return p
}

// forget takes out a program that was not asked for after all.
func (c *child) forget(p *Process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.programs, p.id)
}

// hung ends a process that does not answer, if another can take its place.
func (c *child) hung() {
	if !c.kept {
		c.doomed.Store(true)
		_ = c.process.Kill()
	}
}

// wait waits for the end of a process that has hung up.
func (c *child) wait() bool {
	t := time.NewTimer(c.timeout)
	defer t.Stop()
	select {
	case <-c.lost:
		return true
	case <-t.C:
		return false
	}
}

// send sends a packet.
func (c *child) send(packet, rights []byte) error {
	_ = c.control.SetWriteDeadline(time.Now().Add(c.timeout))
	_, _, err := c.control.WriteMsgUnix(packet, rights, nil)
	return err
}

// read reads an answer.
func (c *child) read() (answer, error) {
	var b [answerSize + 1]byte
	n, err := c.control.Read(b[:])
	if err != nil {
		return answer{}, err
	}
	a, ok := parseAnswer(b[:n])
	if !ok {
		return answer{}, fmt.Errorf("an answer of %d bytes", n)
	}
	return a, nil
}

// hangUp has the process kill its programs and end.
func (c *child) hangUp() { _ = c.control.CloseWrite() }

// listen hears the process until it ends.
func (c *child) listen() {
	var err error
	for {
		var a answer
		if a, err = c.read(); err != nil {
			break
		}
		if a.kind == kindLost {
			c.lose(uint64(a.numbers[0]))
			continue
		}
		c.mu.Lock()
		p := c.programs[a.id]
		if p != nil && a.kind != kindStarted {
			delete(c.programs, a.id)
		}
		c.mu.Unlock()
		if p != nil {
			p.hear(a)
		}
	}
	c.bury(err)
}

// lose takes it that the process has died and was started again by its keeper,
// which has killed what was left.
func (c *child) lose(life uint64) {
	c.mu.Lock()
	rest := c.programs
	c.programs, c.life = map[uint64]*Process{}, life
	c.mu.Unlock()
	if c.died != nil {
		c.died(ErrGone)
	}
	for _, p := range rest {
		p.lose(ErrGone)
	}
}

// bury sees to it that nothing of the process is left.
func (c *child) bury(err error) {
	c.control.Close()
	if !c.closing.Load() {
		_ = c.process.Kill() // it may be about to end
	}
	state, _ := c.process.Wait()
	c.mu.Lock()
	rest := c.programs
	c.programs = nil
	c.mu.Unlock()
	killGroups(rest)
	how := fmt.Errorf("%w: %v", ErrGone, state)
	if c.died != nil && !c.closing.Load() {
		c.died(errors.Join(how, err))
	}
	for _, p := range rest {
		p.lose(how)
	}
	close(c.lost)
}

// killGroups kills what is left of programs whose starter has died. The kernel has
// killed the programs themselves, and nobody else has got their numbers while a
// process stands in their groups or sessions.
func killGroups(all map[uint64]*Process) {
	groups := map[int]bool{}
	for _, p := range all {
		if pid := p.Pid(); pid > 1 {
			groups[pid] = true
		}
	}
	if len(groups) == 0 {
		return
	}
	eachProcess(func(p processStat) {
		if groups[p.group] || groups[p.session] {
			_ = unix.Kill(p.pid, unix.SIGKILL)
		}
	})
}
