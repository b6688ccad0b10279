package milter

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gomilter "github.com/emersion/go-milter"

	"github.com/postern-mta/postern/filters/header"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/servers/serverstest"
)

// BenchmarkMilter is a message through the filter, in a session of its own, with a
// milter that adds a field: one that wants no more than the header, with and
// without an answer to each field, and one that reads the body. Beside it the
// filter "header", which adds the same field, and the least that a client can do:
// the whole conversation, made before, written at once on a connection that stays.
// They take turns, one or sixteen at a time, and the median of each counts.
func BenchmarkMilter(b *testing.B) {
	const quiet = gomilter.OptNoConnReply | gomilter.OptNoHeloReply | gomilter.OptNoMailReply | gomilter.OptNoRcptReply | gomilter.OptNoDataReply |
		gomilter.OptNoHeaderReply | gomilter.OptNoEOHReply | gomilter.OptNoBodyReply
	for _, kind := range []struct {
		name  string
		flags gomilter.OptProtocol
	}{{"headers", quiet | gomilter.OptNoBody}, {"headers-answered", gomilter.OptNoBody}, {"body", quiet}} {
		for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
			for _, parallel := range []int{1, 16} {
				b.Run(fmt.Sprintf("%s/%dKiB/%d", kind.name, size>>10, parallel), func(b *testing.B) { benchmark(b, kind.flags, size, parallel) })
			}
		}
	}
}

const benchHead = "Received: from a by b; Mon, 2 Nov 2026 10:00:00 +0000\nReceived: from c by d; Mon, 2 Nov 2026 10:00:00 +0000\nFrom: <a@example.net>\nTo: <r@example.org>\n" +
	"Subject: hello\nDate: Mon, 2 Nov 2026 10:00:00 +0000\nMessage-ID: <1@example.net>\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 7bit\n\n"

func benchmark(b *testing.B, flags gomilter.OptProtocol, size, parallel int) {
	quick := &quickMilter{flags: flags}
	s := serverstest.Start(b, "unix", quick.play)
	f := newFilter(b, "", s.Address)
	own, err := header.Kind().New(filtertest.Env(b), filtertest.Decode("rule = [{op = \"append\", name = \"X-Seen\", value = \"yes\"}]"))
	if err != nil {
		b.Fatal(err)
	}
	spool, err := message.OpenDirectory(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	m, err := message.Read(strings.NewReader(benchHead+strings.Repeat(strings.Repeat("x", 71)+"\n", (size-len(benchHead))/72)), message.Options{Spool: spool})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Body().Release()
	plain := &bareClient{address: strings.TrimPrefix(s.Address, "unix:"), script: quick.record(b, m), flags: flags}
	defer plain.close()
	ways := []func() error{
		func() error { return once(f, m) },
		func() error { return once(own, m) },
		func() error { return plain.once() },
	}
	took := make([][]time.Duration, len(ways))
	for b.Loop() {
		for i, way := range ways {
			start := time.Now()
			if err := atOnce(parallel, way); err != nil {
				b.Fatal(err)
			}
			took[i] = append(took[i], time.Since(start))
		}
	}
	usual := make([]float64, len(ways)) // the median, since a busy host stops one of many for long
	for i := range took {
		slices.Sort(took[i])
		usual[i] = took[i][len(took[i])/2].Seconds()
	}
	b.ReportMetric(float64(parallel)/usual[0], "calls/s")
	b.ReportMetric(float64(parallel)/usual[1], "header-calls/s")
	b.ReportMetric(float64(parallel)/usual[2], "bare-calls/s")
	b.ReportMetric(usual[0]/usual[1], "x-header")
	b.ReportMetric(usual[0]/usual[2], "x-bare")
	b.ReportMetric(0, "ns/op")
}

// atOnce does something so many times at once.
func atOnce(parallel int, do func() error) error {
	if parallel == 1 {
		return do()
	}
	errs := make([]error, parallel)
	var all sync.WaitGroup
	for i := range parallel {
		all.Go(func() { errs[i] = do() })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// once has a filter judge a message in a session of its own.
func once(f pipeline.Filter, m message.Message) error {
	tx := filtertest.Transaction()
	i, err := f.Open(context.Background(), tx.Session)
	if err != nil {
		return err
	}
	v, err := i.(pipeline.Messager).Message(context.Background(), tx, m)
	if err == nil && len(v.Edits) != 1 {
		err = fmt.Errorf("%+v", v)
	}
	i.Close() //nolint:errcheck // it never fails
	return err
}

// quickMilter does no more than it must.
type quickMilter struct {
	flags gomilter.OptProtocol
	tape  *[]byte // of what it is told, if it is set
}

func (q *quickMilter) play(c *serverstest.Conn) {
	r := bufio.NewReaderSize(c, 128<<10)
	terms := (&fake{version: newest, actions: gomilter.OptAddHeader, flags: q.flags}).terms()
	goes, ends := packet('c', ""), packet('h', "X-Seen\x00yes\x00")+packet('a', "")
	var head [5]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint32(head[:])) - 1
		if q.tape != nil {
			data, err := r.Peek(n)
			if err != nil {
				return
			}
			*q.tape = append(append(*q.tape, head[:]...), data...)
		}
		if _, err := r.Discard(n); err != nil {
			return
		}
		answer := goes
		switch code := head[4]; {
		case code == 'O':
			answer = terms
		case code == 'E':
			answer = ends
		case code == 'Q':
			return
		case code == 'D' || code == 'A' || code == 'K' || q.flags&mute[code] != 0:
			continue
		}
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
	}
}

// record is what the filter says in a session, without the negotiation.
func (q *quickMilter) record(b *testing.B, m message.Message) []byte {
	b.Helper()
	var tape []byte
	s := serverstest.Start(b, "unix", (&quickMilter{flags: q.flags, tape: &tape}).play)
	f := newFilter(b, "reuse = false", s.Address)
	if err := once(f, m); err != nil {
		b.Fatal(err)
	}
	f.Close()
	s.Stop()
	tape = tape[4+1+12:]
	return append(bytes.TrimSuffix(tape, []byte(packet('Q', ""))), packet('K', "")...)
}

// bareClient says what was recorded.
type bareClient struct {
	address string
	script  []byte
	flags   gomilter.OptProtocol
	mu      sync.Mutex
	idle    []net.Conn
}

func (p *bareClient) once() error {
	p.mu.Lock()
	var c net.Conn
	if n := len(p.idle); n > 0 {
		c, p.idle = p.idle[n-1], p.idle[:n-1]
	}
	p.mu.Unlock()
	if c == nil {
		var err error
		if c, err = net.Dial("unix", p.address); err != nil {
			return err
		}
		if _, err := io.WriteString(c, packet('O', string(offer()))); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, c, 4+1+12); err != nil {
			return err
		}
	}
	if _, err := c.Write(p.script); err != nil {
		return err
	}
	answers := len(packet('h', "X-Seen\x00yes\x00") + packet('a', ""))
	for at := 0; at < len(p.script); at += 4 + int(binary.BigEndian.Uint32(p.script[at:])) {
		if code := p.script[at+4]; code != 'D' && code != 'K' && code != 'E' && p.flags&mute[code] == 0 {
			answers += len(packet('c', ""))
		}
	}
	if _, err := io.CopyN(io.Discard, c, int64(answers)); err != nil {
		return err
	}
	p.mu.Lock()
	p.idle = append(p.idle, c)
	p.mu.Unlock()
	return nil
}

func (p *bareClient) close() {
	for _, c := range p.idle {
		c.Close()
	}
}
