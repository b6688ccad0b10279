package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// parcel is a message that is relayed: which of them it is, and the SHA-256 of
// its body, which no relay may change.
type parcel struct {
	head, body string
	sum        [sha256.Size]byte
}

// parcelOf makes one of 4 KiB: a text and an attachment, so that there is
// something for filters to look at. Each has a body of its own.
func parcelOf(n int) parcel {
	number := strconv.Itoa(n)
	head := "From: <a@client.example>\r\nTo: <b@" + domainOf(n) + ">\r\nSubject: message " + number + "\r\nMessage-ID: <" + number + "@client.example>\r\n" +
		"Date: Thu, 1 Jan 2026 00:00:00 +0000\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"part\"\r\n\r\n"
	var b strings.Builder
	fmt.Fprintf(&b, "--part\r\nContent-Type: text/plain\r\n\r\nThis is message %d.\r\n", n)
	for range 12 {
		b.WriteString("All work and no play makes Jack a dull boy, they say.\r\n")
	}
	b.WriteString("\r\n--part\r\nContent-Type: application/pdf; name=\"report.pdf\"\r\nContent-Disposition: attachment; filename=\"report.pdf\"\r\nContent-Transfer-Encoding: base64\r\n\r\n")
	const end = "\r\n--part--\r\n"
	line := strings.Repeat("JVBERi0xLjQK", 6) + "\r\n"
	for len(head)+b.Len()+len(line)+len(end) <= 4<<10 {
		b.WriteString(line)
	}
	b.WriteString(end)
	return parcel{head: head, body: b.String(), sum: sha256.Sum256([]byte(b.String()))}
}

func domainOf(n int) string { return "d" + strconv.Itoa(n) + ".example" }

// addressOf is the address of a domain's server, on the loopback network.
func addressOf(n int) string { return fmt.Sprintf("127.1.%d.%d", n/250, n%250+1) }

// reception is what a sink has seen since it was last asked to begin anew.
type reception struct {
	taken    int // messages, each counted once
	again    int // that came once more
	strange  int // whose bodies are not what was sent
	signed   int // with a DKIM signature
	secret   int // under TLS
	each     []time.Duration
	last     time.Time
	most     int // connections at a time, to all addresses
	mostEach int // to one
	mostSent int // messages over one connection
}

// relaySink takes mail for all domains, and tells them apart by the address that
// was connected to. It knows what was sent.
type relaySink struct {
	port string
	tls  *tls.Config
	// pause is how long to wait before an answer; hold keeps the answers to the final
	// dots back until it is closed. Both are set between turns; nil for not at all.
	pause func() time.Duration
	hold  chan struct{}
	held  atomic.Int64 // how many were kept back so far

	mu    sync.Mutex
	got   reception
	sent  []dispatch
	open  map[netip.Addr]int
	total int
	all   chan struct{} // closed when everything is there
}

// dispatch is what is known of a message that was sent.
type dispatch struct {
	sum   [sha256.Size]byte
	begun time.Time
	taken bool
}

func startRelaySink(b testing.TB, secret *tls.Config) *relaySink {
	b.Helper()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		b.Fatal(err)
	}
	s := &relaySink{tls: secret, open: map[netip.Addr]int{}}
	_, s.port, _ = net.SplitHostPort(l.Addr().String())
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	})
	b.Cleanup(func() {
		l.Close()
		done.Wait()
	})
	return s
}

// expect begins anew, with so many messages to come.
func (s *relaySink) expect(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = make([]dispatch, n)
	s.got = reception{each: make([]time.Duration, 0, n)}
	s.all = make(chan struct{})
}

// announce tells that a message is about to be sent.
func (s *relaySink) announce(n int, p *parcel) {
	s.mu.Lock()
	s.sent[n] = dispatch{sum: p.sum, begun: time.Now()}
	s.mu.Unlock()
}

// wait waits until everything is there, as long as something comes.
func (s *relaySink) wait(patience time.Duration) (reception, error) {
	for had := -1; ; {
		select {
		case <-s.all:
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.got, nil
		case <-time.After(patience):
		}
		s.mu.Lock()
		now := s.got.taken
		s.mu.Unlock()
		if now == had {
			return reception{}, fmt.Errorf("%d of %d messages came, and then none for %s", now, len(s.sent), patience)
		}
		had = now
	}
}

func (s *relaySink) opened(a netip.Addr, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[a] += by
	s.total += by
	s.got.most, s.got.mostEach = max(s.got.most, s.total), max(s.got.mostEach, s.open[a])
}

// sinkSession is a client's connection.
type sinkSession struct {
	s       *relaySink
	conn    net.Conn
	in      *bufio.Reader
	out     []byte
	content []byte
	secret  bool
	sent    int
}

func (s *relaySink) serve(conn net.Conn) {
	defer conn.Close()
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return
	}
	s.opened(local.Addr(), 1)
	defer s.opened(local.Addr(), -1)
	v := &sinkSession{s: s, conn: conn, in: bufio.NewReaderSize(conn, 2<<10)}
	if v.say("220 sink.example ESMTP\r\n") != nil {
		return
	}
	for v.next() == nil {
	}
}

// say answers, once the client has sent what it sends at a time.
func (v *sinkSession) say(text string) error {
	v.out = append(v.out, text...)
	if v.s.pause != nil {
		time.Sleep(v.s.pause())
	} else if v.in.Buffered() > 0 {
		return nil
	}
	_, err := v.conn.Write(v.out)
	v.out = v.out[:0]
	return err
}

var errQuit = errors.New("the client is gone")

// next takes one command.
func (v *sinkSession) next() error {
	line, err := v.in.ReadSlice('\n')
	if err != nil || len(line) < 4 {
		return errors.Join(errQuit, err)
	}
	switch verb := strings.ToUpper(string(line[:4])); verb {
	case "EHLO":
		answer := "250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n"
		if v.s.tls != nil && !v.secret {
			answer += "250-STARTTLS\r\n"
		}
		return v.say(answer + "250 SIZE 10000000\r\n")
	case "MAIL", "RCPT", "RSET", "NOOP":
		return v.say("250 2.0.0 ok\r\n")
	case "STAR":
		if err := v.say("220 2.0.0 go on\r\n"); err != nil {
			return err
		}
		v.conn, v.secret = tls.Server(v.conn, v.s.tls), true
		v.in.Reset(v.conn)
		return nil
	case "DATA":
		if err := v.say("354 go on\r\n"); err != nil {
			return err
		}
		return v.take()
	case "QUIT":
		return errors.Join(v.say("221 2.0.0 bye\r\n"), errQuit)
	}
	return v.say("502 5.5.1 what\r\n")
}

// take takes a message.
func (v *sinkSession) take() error {
	v.content = v.content[:0]
	for fresh := true; ; {
		line, err := v.in.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
		if fresh && string(line) == ".\r\n" {
			break
		}
		if fresh && line[0] == '.' {
			line = line[1:]
		}
		v.content = append(v.content, line...)
		fresh = err == nil
	}
	if hold := v.s.hold; hold != nil {
		v.s.held.Add(1)
		<-hold
	}
	v.sent++
	if err := v.s.note(v); err != nil {
		return errors.Join(v.say("554 5.6.0 "+err.Error()+"\r\n"), err)
	}
	return v.say("250 2.0.0 taken\r\n")
}

// note counts a message.
func (s *relaySink) note(v *sinkSession) error {
	head, body, _ := bytes.Cut(v.content, []byte("\r\n\r\n"))
	_, rest, found := bytes.Cut(head, []byte("\nMessage-ID: <"))
	number, _, _ := bytes.Cut(rest, []byte("@"))
	n, err := strconv.Atoi(string(number))
	sum, now := sha256.Sum256(body), time.Now()
	signed := bytes.HasPrefix(head, []byte("DKIM-Signature:")) || bytes.Contains(head, []byte("\nDKIM-Signature:"))
	s.mu.Lock()
	defer s.mu.Unlock()
	if !found || err != nil || n < 0 || n >= len(s.sent) {
		s.got.strange++
		return errors.New("nobody sent this")
	}
	s.got.mostSent = max(s.got.mostSent, v.sent)
	d := &s.sent[n]
	switch {
	case d.sum != sum:
		s.got.strange++
	case d.taken:
		s.got.again++
	default:
		d.taken = true
		s.got.taken++
		s.got.each, s.got.last = append(s.got.each, now.Sub(d.begun)), now
		if signed {
			s.got.signed++
		}
		if v.secret {
			s.got.secret++
		}
		if s.got.taken == len(s.sent) {
			close(s.all)
		}
	}
	return nil
}

// slowAnswers is how long a slow server thinks before it answers.
func slowAnswers() time.Duration {
	return 200*time.Millisecond + rand.N(300*time.Millisecond)
}

// sendParcels has clients send messages, each to its domain, as fast as they are
// taken; each waits for the answer to one message before it sends the next.
func (s *relaySink) sendParcels(d dialer, sessions, count, domains int) error {
	numbers := make(chan int)
	errs := make([]error, sessions)
	var done sync.WaitGroup
	for i := range sessions {
		done.Go(func() {
			c, err := d.dial(manner{pipelined: true})
			for n := range numbers {
				if err == nil {
					p := parcelOf(n)
					s.announce(n, &p)
					c.envelope[0] = "MAIL FROM:<a@client.example>\r\nRCPT TO:<b@" + domainOf(n%domains) + ">\r\nDATA\r\n"
					err = c.send(p.head + p.body + ".\r\n")
				}
			}
			if err == nil {
				err = c.quit()
			}
			errs[i] = err
		})
	}
	for n := range count {
		numbers <- n
	}
	close(numbers)
	done.Wait()
	if err := errors.Join(errs...); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
