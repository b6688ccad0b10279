package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// manner is how a client sends its messages.
type manner struct {
	name string
	// pipelined clients send the envelope as one (RFC 2920), others wait for each
	// answer, as smtp-source does.
	pipelined bool
	// fresh clients make a connection for each message, others keep one.
	fresh bool
}

// dialer makes connections of clients to one server.
type dialer struct {
	address string
	tls     *tls.Config // STARTTLS is said if it is set
}

// mailer is a client with a connection.
type mailer struct {
	conn     net.Conn
	in       *bufio.Reader
	envelope []string // what is said before the message, one turn after another
	answers  []int    // how many lines each turn is answered with
}

// clientPatience is the longest that a client waits.
const clientPatience = 30 * time.Second

// dial connects and says EHLO.
func (d dialer) dial(m manner) (*mailer, error) {
	conn, err := net.Dial("tcp", d.address)
	if err != nil {
		return nil, err
	}
	c := &mailer{conn: conn, in: bufio.NewReaderSize(conn, 1<<10)}
	const from, to, data = "MAIL FROM:<a@client.example>\r\n", "RCPT TO:<b@example.org>\r\n", "DATA\r\n"
	c.envelope, c.answers = []string{from, to, data}, []int{1, 1, 1}
	if m.pipelined {
		c.envelope, c.answers = []string{from + to + data}, []int{3}
	}
	err = errors.Join(conn.SetDeadline(time.Now().Add(clientPatience)), c.answer())
	if err == nil {
		err = c.say("EHLO client.example\r\n", 1)
	}
	if err == nil && d.tls != nil {
		if err = c.say("STARTTLS\r\n", 1); err == nil {
			c.conn = tls.Client(conn, d.tls)
			c.in.Reset(c.conn)
			err = c.say("EHLO client.example\r\n", 1)
		}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// send sends a message, with its dot.
func (c *mailer) send(content string) error {
	if err := c.conn.SetDeadline(time.Now().Add(clientPatience)); err != nil {
		return err
	}
	for i, turn := range c.envelope {
		if err := c.say(turn, c.answers[i]); err != nil {
			return err
		}
	}
	return c.say(content, 1)
}

func (c *mailer) say(text string, answers int) error {
	if _, err := c.conn.Write([]byte(text)); err != nil {
		return err
	}
	for range answers {
		if err := c.answer(); err != nil {
			return err
		}
	}
	return nil
}

// answer reads one answer, of any number of lines, that is no refusal.
func (c *mailer) answer() error {
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) < 4 || line[0] != '2' && line[0] != '3' {
			return fmt.Errorf("the answer is %q", line)
		}
		if line[3] != '-' {
			return nil
		}
	}
}

// quit ends the connection in good order.
func (c *mailer) quit() error { return errors.Join(c.say("QUIT\r\n", 1), c.conn.Close()) }

// sent is what some clients sent together.
type sent struct {
	took time.Duration // of them all
	each []time.Duration
}

// sendFor has clients send as fast as they can until the time is over; messages
// that were begun are sent to their ends. Connections that are kept are made
// before the time begins.
func (d dialer) sendFor(m manner, sessions int, content string, span time.Duration) (all sent, err error) {
	each, errs := make([][]time.Duration, sessions), make([]error, sessions)
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	for i := range sessions {
		ready.Add(1)
		done.Add(1)
		go func() {
			defer done.Done()
			var c *mailer
			if !m.fresh {
				c, errs[i] = d.dial(m)
			}
			ready.Done()
			<-start
			if errs[i] == nil {
				each[i], errs[i] = d.sendUntil(c, m, content, time.Now().Add(span))
			}
		}()
	}
	ready.Wait()
	begun := time.Now()
	close(start)
	done.Wait()
	all.took = time.Since(begun)
	all.each = slices.Concat(each...)
	return all, errors.Join(errs...)
}

// sendUntil is one client; c is nil if it connects for each message.
func (d dialer) sendUntil(c *mailer, m manner, content string, end time.Time) (each []time.Duration, err error) {
	for begun := time.Now(); begun.Before(end); begun = time.Now() {
		if m.fresh {
			if c, err = d.dial(m); err != nil {
				return each, err
			}
		}
		if err = c.send(content); err == nil && m.fresh {
			err = c.quit()
		}
		if err != nil {
			c.conn.Close()
			return each, err
		}
		each = append(each, time.Since(begun))
	}
	if !m.fresh {
		err = c.quit()
	}
	return each, err
}

// percentile is one of many times, in milliseconds; it sorts them.
func percentile(all []time.Duration, percent int) float64 {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return float64(all[min(len(all)*percent/100, len(all)-1)]) / float64(time.Millisecond)
}

// contentOf is a message of so many bytes, as it is sent.
func contentOf(size int) string {
	const head = "From: <a@client.example>\r\nTo: <b@example.org>\r\nSubject: of a certain size\r\nMessage-ID: <1@client.example>\r\n" +
		"Date: Thu, 1 Jan 2026 00:00:00 +0000\r\n\r\n"
	line := strings.Repeat("x", 70) + "\r\n"
	b := strings.Builder{}
	b.WriteString(head)
	for b.Len()+len(line) <= size {
		b.WriteString(line)
	}
	b.WriteString(strings.Repeat("x", max(0, size-b.Len()-2)) + "\r\n")
	return b.String() + ".\r\n"
}
