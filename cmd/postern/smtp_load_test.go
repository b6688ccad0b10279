package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// crowd is how many clients there are that keep a server busy without sending
// mail, while others send some.
type crowd struct {
	idle, slow int
	span       time.Duration // for which latencies are measured
	secret     bool          // the idle ones are under TLS
}

// most is how much memory an idle session may take, in bytes, before something
// must be wrong. The target is 24 KiB without TLS, by the full crowd; what a
// small one takes is lost in what the collector leaves for later.
const most = 128 << 10

// TestSMTPLoad is BenchmarkSMTPLoad with a small crowd. Nothing in it depends on
// the time: mail is taken meanwhile, and clients that vanish leave nothing.
func TestSMTPLoad(t *testing.T) {
	c := crowd{idle: 400, slow: 100, span: time.Second}
	got := c.gather(t)
	t.Log(got)
	if got.idle > most {
		t.Errorf("an idle session takes %d bytes of memory", got.idle)
	}
}

// BenchmarkSMTPLoad holds 2,000 sessions that have said EHLO and wait, and 500
// that send a byte a second, while mail is sent from 4 clients at 100 messages a
// second, each over a connection of its own. It tells the memory of a session, as
// what the process grew by, and how long a message takes beside what it takes
// when the server has nothing else to do. The target is 24 KiB for an idle
// session without TLS.
func BenchmarkSMTPLoad(b *testing.B) {
	for _, secret := range []bool{false, true} {
		name := map[bool]string{false: "plain", true: "tls"}[secret]
		b.Run(name, func(b *testing.B) {
			var got burden
			for b.Loop() {
				got = crowd{idle: 2000, slow: 500, span: 4 * time.Second, secret: secret}.gather(b)
			}
			b.ReportMetric(float64(got.idle)/1024, "KiB/idle")
			b.ReportMetric(float64(got.slow)/1024, "KiB/slow")
			b.ReportMetric(percentile(got.loaded, 50)/percentile(got.empty, 50), "p50-ratio")
			b.ReportMetric(percentile(got.loaded, 99)/percentile(got.empty, 99), "p99-ratio")
			b.ReportMetric(0, "ns/op") // it takes as long as it takes
			b.Log(got)
		})
	}
}

// burden is what a crowd costs.
type burden struct {
	before, idle, slow, after int64           // bytes: of the process, of a session, of a session, of the process
	empty, loaded             []time.Duration // of messages
}

// String is what there is to be told.
func (g burden) String() string {
	return fmt.Sprintf("the process has %.1f MiB; %.1f KiB for an idle session, %.1f KiB for a slow one; %.1f MiB when they are gone\n"+
		"mail meanwhile: p50 %.2f ms p99 %.2f ms (%d), and with nobody else: p50 %.2f ms p99 %.2f ms (%d)",
		float64(g.before)/(1<<20), float64(g.idle)/1024, float64(g.slow)/1024, float64(g.after)/(1<<20),
		percentile(g.loaded, 50), percentile(g.loaded, 99), len(g.loaded), percentile(g.empty, 50), percentile(g.empty, 99), len(g.empty))
}

// gather has the crowd come to a daemon and go.
func (c crowd) gather(b testing.TB) (got burden) {
	h := startHeavy(b, b.TempDir())
	defer h.stop()
	c.mail(b, h) // what is made once is made now
	sockets, spooled := h.sockets(b), h.spooled(b)
	got.before = h.resident(b)
	got.empty = c.mail(b, h)

	waiting := c.come(b, h, c.idle)
	got.idle = (h.resident(b) - got.before) / int64(c.idle)
	is := h.resident(b)
	slow := comeSlowly(b, h.queue.address, c.slow)
	got.slow = (h.resident(b) - is) / int64(c.slow)
	got.loaded = c.mail(b, h)
	slow.stop()
	if n := h.sockets(b) - sockets; n != c.idle+c.slow {
		b.Errorf("%d sessions are open, not %d", n, c.idle+c.slow)
	}

	vanish(append(waiting, slow.all...))
	for tries := 0; h.sockets(b) != sockets || h.spooled(b) != spooled; tries++ {
		if tries == 1200 {
			b.Fatalf("clients that vanished leave %d sockets where there were %d, and %d files in the spool where there were %d", h.sockets(b), sockets, h.spooled(b), spooled)
		}
		time.Sleep(25 * time.Millisecond)
	}
	got.after = h.resident(b)
	if n, stored := c.messages()+len(got.empty)+len(got.loaded), int(h.metric(b, "postern_queue_messages")); n != stored {
		b.Errorf("%d messages were taken, and the queue has %d", n, stored)
	}
	return got
}

// Mail that comes while there is a crowd.
const (
	correspondents = 4
	pace           = 40 * time.Millisecond // from one message of a correspondent to the next
)

// messages is how many are sent in a span.
func (c crowd) messages() int { return correspondents * int(c.span/pace) }

// mail sends mail at an even pace, and returns how long each took.
func (c crowd) mail(b testing.TB, h *heavy) []time.Duration {
	b.Helper()
	var mu sync.Mutex
	var all []time.Duration
	var errs []error
	var done sync.WaitGroup
	content := contentOf(4 << 10)
	for i := range correspondents {
		done.Add(1)
		go func() {
			defer done.Done()
			time.Sleep(pace * time.Duration(i) / correspondents)
			tick := time.NewTicker(pace)
			defer tick.Stop()
			for range c.messages() / correspondents {
				begun := time.Now()
				m, err := h.queue.dial(manner{})
				if err == nil {
					err = errors.Join(m.send(content), m.quit())
				}
				mu.Lock()
				all, errs = append(all, time.Since(begun)), append(errs, err)
				mu.Unlock()
				<-tick.C
			}
		}()
	}
	done.Wait()
	if err := errors.Join(errs...); err != nil {
		b.Fatal(err)
	}
	return all
}

// come opens idle sessions, that have said EHLO.
func (c crowd) come(b testing.TB, h *heavy, count int) (all []net.Conn) {
	b.Helper()
	d := dialer{address: h.chain.address}
	if c.secret {
		d.tls = h.chain.tls
	}
	for range count {
		m, err := d.dial(manner{})
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, m.conn)
	}
	return all
}

// slow are clients that send a byte a second.
type slow struct {
	all  []net.Conn
	stop func()
}

// slowly is how a client begins, before it sends one byte at a time of what is
// next; each line of the beginning is answered.
var slowly = []struct{ begin, next string }{
	{"", "EHLO client.example"},
	{"EHLO client.example\n", "MAIL FROM:<a@client.example> SIZE=100000"},
	{"EHLO client.example\nMAIL FROM:<a@client.example>\nRCPT TO:<b@example.org>\nDATA\n", "Subject: this will take a while"},
	{"EHLO client.example\nMAIL FROM:<a@client.example>\nRCPT TO:<b@example.org>\n", "BDAT 1000000 LAST\r\nSubject: this too"},
	// The large part of a large message has come, and lies in the spool.
	{"EHLO client.example\nMAIL FROM:<a@client.example>\nRCPT TO:<b@example.org>\nDATA\n", "Subject: large\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 2000)},
}

// comeSlowly opens sessions of slow clients, and goes on with them until they are
// stopped.
func comeSlowly(b testing.TB, address string, count int) *slow {
	b.Helper()
	s := &slow{}
	left := make([]string, count)
	for i := range count {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		c := &mailer{conn: conn, in: bufio.NewReaderSize(conn, 512)}
		how := slowly[i%len(slowly)]
		err = errors.Join(conn.SetDeadline(time.Now().Add(10*clientPatience)), c.answer())
		for line := range strings.Lines(how.begin) {
			err = errors.Join(err, c.say(strings.TrimSuffix(line, "\n")+"\r\n", 1))
		}
		left[i] = how.next
		if len(left[i]) > 100<<10 {
			_, err2 := conn.Write([]byte(left[i][:100<<10]))
			err, left[i] = errors.Join(err, err2), left[i][100<<10:]
		}
		if err != nil {
			b.Fatal(err)
		}
		s.all = append(s.all, conn)
	}
	quit, over := make(chan struct{}), make(chan struct{})
	s.stop = sync.OnceFunc(func() { close(quit); <-over })
	go func() {
		defer close(over)
		tick := time.NewTicker(time.Second / 20)
		defer tick.Stop()
		for turn := 0; ; turn = (turn + 1) % 20 {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			for i := turn; i < count; i += 20 {
				if len(left[i]) > 0 {
					s.all[i].Write([]byte(left[i][:1])) //nolint:errcheck // the server's count of sessions tells
					left[i] = left[i][1:]
				}
			}
		}
	}()
	b.Cleanup(s.stop)
	return s
}

// vanish closes connections in the middle of things, every second one rudely.
func vanish(all []net.Conn) {
	for i, c := range all {
		if t, ok := c.(*tls.Conn); ok {
			c = t.NetConn() // without a word
		}
		if t, ok := c.(*net.TCPConn); ok && i%2 == 0 {
			t.SetLinger(0) //nolint:errcheck // then it is closed politely
		}
		c.Close()
	}
}

// sockets is how many the daemon has open.
func (h *heavy) sockets(b testing.TB) (n int) {
	b.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(h.process.Pid), "fd")
	all, err := os.ReadDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range all {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// spooled is how many bodies are being received.
func (h *heavy) spooled(b testing.TB) int {
	b.Helper()
	all, err := os.ReadDir(h.at("state/queue/spool"))
	if err != nil {
		b.Fatal(err)
	}
	return len(all)
}
