package internet

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

// Provider runs hosts in one manner, and keeps account of what they saw. Its methods
// are safe for concurrent use.
type Provider struct {
	n    *Internet
	name string

	mu     sync.Mutex
	manner Manner
	course Course
	calls  map[call]*caller
	from   map[netip.Addr]int
	to     map[netip.Addr]int
	sent   map[netip.Addr]window
	first  map[[3]string]time.Time // when a combination was seen first
}

// call is a connection to one of the provider's addresses.
type call struct {
	to     netip.Addr
	number uint64
}

// caller is who called.
type caller struct {
	from       netip.Addr
	over       bool // it was one too many when it came
	recipients int
	messages   int
}

// window is how many messages there were in it.
type window struct {
	begun time.Time
	count int
}

// Provider makes one without hosts.
func (n *Internet) Provider(name string, m Manner) *Provider {
	return &Provider{
		n: n, name: name, manner: m, calls: map[call]*caller{}, from: map[netip.Addr]int{}, to: map[netip.Addr]int{},
		sent: map[netip.Addr]window{}, first: map[[3]string]time.Time{},
		course: Course{PeakFrom: map[netip.Addr]int{}, PeakTo: map[netip.Addr]int{}, TakenFrom: map[netip.Addr]int{}},
	}
}

// Host declares a host with these addresses, and starts a server at each.
func (p *Provider) Host(name string, addresses ...string) { p.HostSet(Setting{}, name, addresses...) }

// HostSet is Host for one that is set up in another way than others.
func (p *Provider) HostSet(set Setting, name string, addresses ...string) {
	p.n.Names(name, addresses...)
	for _, text := range addresses {
		at := netip.MustParseAddr(text)
		o := p.n.tls(name, set.TLS)
		o.Name, o.Latency, o.Extensions = name, set.Tarpit, set.Extensions
		o.Steps = append(set.TLS.faults(), set.Faults...)
		o.Script = func(m *smtptest.Moment) *smtptest.Step { return p.answer(at, m) }
		o.OnEnd = func(number uint64) { p.end(call{at, number}) }
		o.OnMessage = func(m *smtptest.Message) { p.take(name, call{at, m.Connection}, m) }
		p.n.settle(at, o)
	}
}

// Change changes the manner.
func (p *Provider) Change(change func(*Manner)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.manner)
}

// Course is what the provider saw so far.
func (p *Provider) Course() Course {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.course
	c.PeakFrom, c.PeakTo, c.TakenFrom = maps.Clone(c.PeakFrom), maps.Clone(c.PeakTo), maps.Clone(c.TakenFrom)
	c.Refusals = slices.Clone(c.Refusals)
	return c
}

// Course is what a provider saw.
type Course struct {
	// Connections were not refused at the greeting; Peak of them were open at a time,
	// PeakFrom from one source and PeakTo to one address. Tried are all, with those
	// that were refused.
	Connections, Tried, Peak int
	PeakFrom, PeakTo         map[netip.Addr]int
	// Taken are the messages that were taken, TakenFrom by source, and MostEach those
	// over one connection.
	Taken, MostEach int
	TakenFrom       map[netip.Addr]int
	// Refusals are what was refused, in the order of time.
	Refusals []Refusal
}

// Reasons are those of a Refusal.
var Reasons = [...]string{"connections", "messages", "used", "greylisted", "mailbox", "blocked"}

// Refusal is one no.
type Refusal struct {
	At       time.Time
	From, To netip.Addr
	// Why is one of Reasons.
	Why string
}

// Refused counts refusals for one reason; "" is any.
func (c *Course) Refused(why string) (count int) {
	for _, r := range c.Refusals {
		if why == "" || r.Why == why {
			count++
		}
	}
	return count
}

// After is the course without the refusals before an instant.
func (c Course) After(then time.Time) Course {
	c.Refusals = slices.DeleteFunc(slices.Clone(c.Refusals), func(r Refusal) bool { return r.At.Before(then) })
	return c
}

var (
	usualFull       = No{At: smtptest.Connect, Reply: "421 mx.example.net: Too many concurrent SMTP connections; please try again later"}
	usualFast       = No{At: smtptest.Mail, Reply: "450 4.7.1 Error: too much mail from your host"}
	usualUsed       = No{At: smtptest.Mail, Reply: "421 4.7.0 That is enough for one connection"}
	usualGreylisted = No{At: smtptest.Rcpt, Reply: "450 4.2.0 Greylisted, please come back later"}
)

// answer is the script of a host.
func (p *Provider) answer(to netip.Addr, m *smtptest.Moment) *smtptest.Step {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, key := time.Now(), call{to, m.Connection}
	if m.At == smtptest.Connect {
		p.course.Tried++
		c := &caller{from: m.Peer.Addr(), over: p.isOver(m.Peer.Addr(), to, 1)}
		if c.over && p.manner.Full.or(usualFull).At == smtptest.Connect {
			return p.refuse(now, c, to, "connections", p.manner.Full.or(usualFull))
		}
		p.begin(key, c)
	}
	c := p.calls[key]
	if c == nil {
		return nil
	}
	for _, rule := range rules {
		if no, refused := rule.says(p, now, c, to, m); refused && no.At == m.At {
			return p.refuse(now, c, to, rule.why, no)
		}
	}
	if m.At == smtptest.Rcpt {
		if reply, ok := p.manner.Mailboxes[envelope.Local(m.What)]; ok {
			return p.refuse(now, c, to, "mailbox", No{Reply: reply})
		}
		c.recipients++
	}
	return nil
}

func (p *Provider) refuse(now time.Time, c *caller, to netip.Addr, why string, no No) *smtptest.Step {
	p.course.Refusals = append(p.course.Refusals, Refusal{now, c.from, to, why})
	return no.step()
}

// rules say no, each at its point only.
var rules = [...]struct {
	why  string
	says func(p *Provider, now time.Time, c *caller, to netip.Addr, m *smtptest.Moment) (No, bool)
}{
	{"blocked", func(p *Provider, _ time.Time, c *caller, _ netip.Addr, _ *smtptest.Moment) (No, bool) {
		m := &p.manner
		return m.Blocked, m.Blocked != (No{}) && (len(m.Blocks) == 0 || slices.Contains(m.Blocks, c.from.String()))
	}},
	{"connections", func(p *Provider, _ time.Time, c *caller, to netip.Addr, m *smtptest.Moment) (No, bool) {
		no := p.manner.Full.or(usualFull)
		c.over = c.over && p.isOver(c.from, to, 0)
		return no, c.over && m.At != smtptest.Connect
	}},
	{"used", func(p *Provider, _ time.Time, c *caller, _ netip.Addr, m *smtptest.Moment) (No, bool) {
		no := p.manner.Used.or(usualUsed)
		if n := p.manner.RecipientsEach; m.At == smtptest.Rcpt && n > 0 && c.recipients >= n {
			no.At = m.At
			return no, true
		}
		n := p.manner.MessagesEach
		return no, n > 0 && m.Messages >= n
	}},
	{"messages", func(p *Provider, now time.Time, c *caller, _ netip.Addr, m *smtptest.Moment) (No, bool) {
		no := p.manner.Fast.or(usualFast)
		return no, p.manner.Messages > 0 && no.At == m.At && p.isFast(now, c.from)
	}},
	{"greylisted", func(p *Provider, now time.Time, c *caller, _ netip.Addr, m *smtptest.Moment) (No, bool) {
		if p.manner.Greylist == 0 || m.At != smtptest.Rcpt {
			return No{}, false
		}
		key := [3]string{c.from.String(), m.Sender, strings.ToLower(m.What)}
		first, ok := p.first[key]
		if !ok {
			first, p.first[key] = now, now
		}
		return p.manner.Greylisted.or(usualGreylisted), now.Sub(first) < p.manner.Greylist
	}},
}

// isOver reports whether there are too many connections, with so many more.
func (p *Provider) isOver(from, to netip.Addr, more int) bool {
	over := func(n, most int) bool { return most > 0 && n+more > most }
	m := &p.manner
	return over(len(p.calls), m.Connections) || over(p.from[from], m.PerSource) || over(p.to[to], m.PerAddress)
}

// isFast counts a message, and reports whether it is one too many.
func (p *Provider) isFast(now time.Time, from netip.Addr) bool {
	w := p.sent[from]
	if begun := now.Truncate(p.manner.Window); !begun.Equal(w.begun) {
		w = window{begun: begun}
	}
	over := w.count >= p.manner.Messages
	if !over {
		w.count++
	}
	p.sent[from] = w
	return over
}

func (p *Provider) begin(key call, c *caller) {
	p.calls[key] = c
	p.from[c.from]++
	p.to[key.to]++
	v := &p.course
	v.Connections++
	v.Peak = max(v.Peak, len(p.calls))
	v.PeakFrom[c.from] = max(v.PeakFrom[c.from], p.from[c.from])
	v.PeakTo[key.to] = max(v.PeakTo[key.to], p.to[key.to])
}

func (p *Provider) end(key call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.calls[key]
	if c == nil {
		return
	}
	delete(p.calls, key)
	p.from[c.from]--
	p.to[key.to]--
}

// take takes a message, whether or not its dot will be answered.
func (p *Provider) take(host string, key call, m *smtptest.Message) {
	if m.Answer != 0 && m.Answer/100 != 2 {
		return // it was refused after the dot
	}
	p.n.mail.take(host, m)
	m.Content = nil
	p.mu.Lock()
	defer p.mu.Unlock()
	p.course.Taken++
	if c := p.calls[key]; c != nil {
		c.messages++
		p.course.MostEach = max(p.course.MostEach, c.messages)
	}
	p.course.TakenFrom[m.Peer.Addr()]++
}

// Name is the provider's name.
func (p *Provider) Name() string { return p.name }
