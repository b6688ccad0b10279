package internet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

// Letter is a message that a test sends.
type Letter struct {
	ID, From string
	To       []string
	// Text is the message, with LF.
	Text string

	n *ledger
}

// Without says that a recipient will not get the letter.
func (l *Letter) Without(recipient string) *Letter {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	delete(l.n.sent[l.ID].got, recipient)
	l.n.expected--
	l.n.changed.Broadcast()
	return l
}

// Tally is what came of the letters.
type Tally struct {
	// Taken are the recipients who got their letter, Again are those times that one
	// came once more, and Strange the letters that nobody sent, or not like this, or
	// not to them.
	Taken, Again, Strange int
	// Oddities describes the first strange ones.
	Oddities []string
}

// ledger is the letters and what came of them.
type ledger struct {
	mu       sync.Mutex
	changed  *sync.Cond
	sent     map[string]*dispatch
	expected int
	tally    Tally
}

type dispatch struct {
	sum [sha256.Size]byte
	got map[string]int
}

func (n *ledger) init() {
	n.changed, n.sent = sync.NewCond(&n.mu), map[string]*dispatch{}
}

func (n *ledger) letter(from string, to []string) *Letter {
	n.mu.Lock()
	defer n.mu.Unlock()
	number := strconv.Itoa(len(n.sent) + 1)
	l := &Letter{ID: "<" + number + "@letters.example>", From: from, To: slices.Clone(to), n: n}
	body := "This is letter " + number + ".\n.It has a line with a dot.\n" + strings.Repeat("And one that says nothing.\n", 4)
	l.Text = "From: <" + from + ">\nSubject: letter " + number + "\nMessage-ID: " + l.ID + "\nDate: Thu, 1 Jan 2026 00:00:00 +0000\n\n" + body
	d := &dispatch{sum: sha256.Sum256([]byte(body)), got: map[string]int{}}
	for _, r := range to {
		d.got[r] = 0
	}
	n.sent[l.ID] = d
	n.expected += len(d.got)
	return l
}

// take counts a message.
func (n *ledger) take(host string, m *smtptest.Message) {
	_, body, _ := bytes.Cut(m.Content, []byte("\n\n"))
	sum, id := sha256.Sum256(body), m.ID()
	n.mu.Lock()
	defer n.mu.Unlock()
	defer n.changed.Broadcast()
	d := n.sent[id]
	for _, r := range m.Recipients {
		count, ok := 0, false
		if d != nil && d.sum == sum {
			count, ok = d.got[r.Address]
		}
		switch {
		case !ok:
			n.tally.Strange++
			if len(n.tally.Oddities) < 10 {
				n.tally.Oddities = append(n.tally.Oddities, fmt.Sprintf("%s for %s at %s", id, r.Address, host))
			}
			continue
		case count > 0:
			n.tally.Again++
		default:
			n.tally.Taken++
		}
		d.got[r.Address]++
	}
}

func (n *ledger) wait(ctx context.Context) error { return n.waitFor(ctx, -1) }

// waitFor waits for so many, or for all if count is negative.
func (n *ledger) waitFor(ctx context.Context, count int) error {
	defer context.AfterFunc(ctx, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.changed.Broadcast()
	})()
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		most := n.expected
		if count >= 0 {
			most = count
		}
		if n.tally.Taken >= most {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%d of %d letters came: %w", n.tally.Taken, most, ctx.Err())
		}
		n.changed.Wait()
	}
}
