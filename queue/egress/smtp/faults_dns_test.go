package smtp_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/resolve"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// nameserver is a DNS server over UDP and TCP that misbehaves for some names.
type nameserver struct {
	addr string
	// faults are by the name that is asked for, without the final dot, and perhaps the
	// type behind a space. A fault changes the answer, or says false for none.
	faults map[string]func(m *dns.Msg, network string) bool

	mu    sync.Mutex
	zone  map[string][]dns.RR
	asked map[string]int // by "name TYPE"
}

// startNameserver serves records in the form of a zone file.
func startNameserver(t *testing.T, faults map[string]func(m *dns.Msg, network string) bool, records ...string) *nameserver {
	t.Helper()
	n := &nameserver{faults: faults, zone: map[string][]dns.RR{}, asked: map[string]int{}}
	for _, text := range records {
		r, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.ToLower(r.Header().Name)
		n.zone[name] = append(n.zone[name], r)
	}
	udp, tcp := n.listen(t)
	for network, s := range map[string]*dns.Server{"udp": {PacketConn: udp}, "tcp": {Listener: tcp}} {
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { n.answer(w, q, network) })
		started, ended := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(ended)
			s.ActivateAndServe() //nolint:errcheck // it ends by Shutdown
		}()
		<-started
		t.Cleanup(func() {
			s.Shutdown() //nolint:errcheck // nothing more to do
			<-ended
		})
	}
	return n
}

// listen finds a port that is free for both.
func (n *nameserver) listen(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		udp, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		n.addr = udp.LocalAddr().String()
		if tcp, err := net.Listen("tcp", n.addr); err == nil {
			return udp, tcp
		}
		udp.Close()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

func (n *nameserver) answer(w dns.ResponseWriter, q *dns.Msg, network string) {
	name, kind := strings.ToLower(q.Question[0].Name), q.Question[0].Qtype
	n.mu.Lock()
	n.asked[name+" "+dns.TypeToString[kind]]++
	all, known := n.zone[name]
	n.mu.Unlock()
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable, m.Compress = true, true
	if !known {
		m.Rcode = dns.RcodeNameError
	}
	for _, r := range all {
		if k := r.Header().Rrtype; k == kind || k == dns.TypeCNAME {
			m.Answer = append(m.Answer, r)
		}
	}
	for _, key := range []string{strings.TrimSuffix(name, "."), strings.TrimSuffix(name, ".") + " " + dns.TypeToString[kind]} {
		if f := n.faults[key]; f != nil && !f(m, network) {
			return
		}
	}
	if m.Id != q.Id { // a forgery, and then the truth
		w.WriteMsg(m) //nolint:errcheck // the asker times out then
		m.Id, m.Answer = q.Id, all
	}
	w.WriteMsg(m) //nolint:errcheck // the asker times out then
}

// lookups is how many questions of a type came.
func (n *nameserver) lookups(kind string) (sum int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for k, times := range n.asked {
		if strings.HasSuffix(k, " "+kind) {
			sum += times
		}
	}
	return sum
}

type dnsFault = func(m *dns.Msg, network string) bool

func rcode(code int) dnsFault {
	return func(m *dns.Msg, _ string) bool { m.Rcode, m.Answer = code, nil; return true }
}

func silent(*dns.Msg, string) bool { return false }

func waits(d time.Duration) dnsFault {
	return func(*dns.Msg, string) bool { time.Sleep(d); return true }
}

// lame answers without knowing, as who is not the one to ask.
func lame(m *dns.Msg, _ string) bool {
	m.RecursionAvailable, m.Answer = false, nil
	return true
}

func bogus(m *dns.Msg, _ string) bool {
	m.Rcode, m.Answer = dns.RcodeServerFailure, nil
	m.SetEdns0(1232, true)
	o := m.IsEdns0()
	o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeDNSBogus, ExtraText: "signature expired\r\nX-Evil: yes"})
	return true
}

func cut(m *dns.Msg, network string) bool {
	if network == "udp" {
		m.Truncate(512)
	}
	return true
}

func alwaysCut(m *dns.Msg, _ string) bool { m.Truncated, m.Answer = true, nil; return true }

func forged(m *dns.Msg, _ string) bool {
	m.Id++
	m.Answer = []dns.RR{&dns.MX{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeMX, Class: dns.ClassINET, Ttl: 60}, Mx: "evil.test."}}
	return true
}

func referral(m *dns.Msg, _ string) bool {
	m.Answer, m.Ns = nil, []dns.RR{&dns.NS{Hdr: dns.RR_Header{Name: "test.", Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 60}, Ns: "ns.test."}}
	return true
}

// many are MX records for so many hosts, each of which has an address at which # is
// its number; step is how many share a preference.
func many(n, step int, address string) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("d.test. 60 IN MX %d mx%d.d.test.", i/step, i))
		if address != "" {
			all = append(all, fmt.Sprintf("mx%d.d.test. 60 IN A %s", i, strings.ReplaceAll(address, "#", strconv.Itoa(i))))
		}
	}
	return all
}

// longest is a name of as many bytes as there can be in the DNS, 255 with the length
// of its first label.
func longest() string {
	name := strings.Repeat(strings.Repeat("x", 59)+".", 4) + "d.test."
	return strings.Repeat("y", 254-len(name)-1) + "." + name
}

// dnsCase is one thing that the DNS can do to a domain.
type dnsCase struct {
	name    string
	faults  map[string]dnsFault
	records []string
	want    string // the reply, or the address that the message went to
	dials   int    // at most, 0 being as many as there are
	lookups int    // of A, at most
}

// dnsCases have the hosts 192.0.2.1, 192.0.2.2 and 2001:db8::1, which are alive.
func dnsCases() []dnsCase {
	const (
		trouble = "451 4.4.3 Sorry, I couldn't find any host by that name."
		nobody  = "550 5.1.2 Sorry, I couldn't find any host named d.test."
		noHost  = "550 5.4.4 Sorry, I couldn't find a mail exchanger or IP address."
		noConn  = "451 4.4.1 Sorry, I wasn't able to establish an SMTP connection."
		ours    = "554 5.4.6 Sorry. Although I'm listed"
		first   = "192.0.2.1"
		second  = "192.0.2.2"
	)
	mx := []string{"d.test. 60 IN MX 10 mx1.d.test.", "mx1.d.test. 60 IN A 192.0.2.1"}
	two := append(slices.Clone(mx), "d.test. 60 IN MX 20 mx2.d.test.", "mx2.d.test. 60 IN A 192.0.2.2")
	loop := []string{"d.test. 60 IN MX 10 mx1.d.test.", "mx1.d.test. 60 IN CNAME a.test.", "a.test. 60 IN CNAME mx1.d.test."}
	type faults = map[string]dnsFault
	return []dnsCase{
		{name: "all is well", records: two, want: first},
		{name: "cut, and whole over TCP", faults: faults{"d.test": cut}, records: many(60, 60, "192.0.2.1"), want: first},
		{name: "cut over TCP, too", faults: faults{"d.test": alwaysCut}, records: mx, want: trouble},
		{name: "SERVFAIL", faults: faults{"d.test": rcode(dns.RcodeServerFailure)}, records: mx, want: trouble},
		{name: "SERVFAIL for the host", faults: faults{"mx1.d.test": rcode(dns.RcodeServerFailure)}, records: mx, want: trouble},
		{name: "SERVFAIL for AAAA alone", faults: faults{"mx1.d.test AAAA": rcode(dns.RcodeServerFailure)}, records: mx, want: first},
		{name: "SERVFAIL for the first host", faults: faults{"mx1.d.test": rcode(dns.RcodeServerFailure)}, records: two, want: second},
		{name: "REFUSED", faults: faults{"d.test": rcode(dns.RcodeRefused)}, records: mx, want: trouble},
		{name: "NOTIMP", faults: faults{"d.test": rcode(dns.RcodeNotImplemented)}, records: mx, want: trouble},
		{name: "FORMERR", faults: faults{"d.test": rcode(dns.RcodeFormatError)}, records: mx, want: trouble},
		{name: "lame", faults: faults{"d.test": lame}, records: mx, want: trouble},
		{name: "a referral", faults: faults{"d.test": referral}, records: mx, want: trouble},
		{name: "silent", faults: faults{"d.test": silent}, records: mx, want: trouble},
		{name: "silent about the host", faults: faults{"mx1.d.test": silent}, records: mx, want: trouble},
		{name: "silent about the first host", faults: faults{"mx1.d.test": silent}, records: two, want: second},
		{name: "late", faults: faults{"d.test MX": waits(50 * time.Millisecond)}, records: mx, want: first},
		{name: "too late", faults: faults{"d.test MX": waits(2500 * time.Millisecond)}, records: mx, want: trouble},
		{name: "DNSSEC says bogus", faults: faults{"d.test": bogus}, records: mx, want: trouble},
		{name: "forged, and then the truth", faults: faults{"d.test MX": forged}, records: mx, want: first},
		{name: "NXDOMAIN", want: nobody},
		{name: "NXDOMAIN for the host", records: mx[:1], want: noHost},
		{name: "NXDOMAIN for the first host", records: append(slices.Clone(mx[:1]), two[2:]...), want: second},
		{name: "neither MX nor address", records: []string{"d.test. 60 IN TXT x"}, want: nobody},
		{name: "no MX", records: []string{"d.test. 60 IN A 192.0.2.1"}, want: first},
		{name: "a circle of aliases", records: []string{"d.test. 60 IN CNAME e.test.", "e.test. 60 IN CNAME d.test."}, want: trouble},
		{name: "a circle of aliases at the host", records: loop, want: trouble},
		{name: "a circle of aliases at the first host", records: append(slices.Clone(loop), two[2:]...), want: second},
		{name: "MX to an alias", records: []string{"d.test. 60 IN MX 10 a.test.", "a.test. 60 IN CNAME b.test.", "b.test. 60 IN A 192.0.2.1"}, want: first},
		{name: "an alias with MX", records: []string{"d.test. 60 IN CNAME e.test.", "e.test. 60 IN MX 10 mx1.d.test.", mx[1]}, want: first},
		{name: "an alias without MX", records: []string{"d.test. 60 IN CNAME e.test.", "e.test. 60 IN A 192.0.2.1"}, want: first},
		{name: "an alias to nowhere", records: []string{"d.test. 60 IN CNAME e.test."}, want: nobody},
		{name: "null MX", records: []string{"d.test. 60 IN MX 0 .", "d.test. 60 IN A 192.0.2.1"}, want: "556 5.1.10 Sorry, d.test does not accept mail (null MX)."},
		{name: "null MX beside another", records: append([]string{"d.test. 60 IN MX 0 ."}, mx...), want: first},
		{name: "AAAA alone", records: []string{mx[0], "mx1.d.test. 60 IN AAAA 2001:db8::1"}, want: "2001:db8::1"},
		{name: "AAAA that is dead, and A", records: []string{mx[0], mx[1], "mx1.d.test. 60 IN AAAA 2001:db8::dead"}, want: first},
		{name: "200 hosts, all dead", records: many(200, 200, "203.0.113.#"), want: noConn, dials: 5, lookups: 8},
		{name: "200 preferences, all dead", records: many(200, 1, "203.0.113.#"), want: noConn, dials: 5, lookups: 5},
		{name: "200 hosts of no address", records: many(200, 200, ""), want: trouble, lookups: 8},
		{name: "200 preferences, nobody knows", faults: unknownHosts(200), records: many(200, 1, ""), want: trouble, lookups: 2 * 5},
		{name: "one address fifty times", records: many(50, 1, "203.0.113.1"), want: noConn, dials: 1},
		{name: "MX to localhost", records: []string{"d.test. 60 IN MX 10 localhost.", "localhost. 60 IN A 127.0.0.1"}, want: ours, dials: -1},
		{name: "MX to 127.0.0.1", records: []string{"d.test. 60 IN MX 10 127.0.0.1."}, want: ours, dials: -1},
		{name: "MX to 192.0.2.1", records: []string{"d.test. 60 IN MX 10 192.0.2.1."}, want: first},
		{name: "MX to 0.0.0.0", records: []string{mx[0], "mx1.d.test. 60 IN A 0.0.0.0"}, want: noHost, dials: -1},
		{name: "MX to ourselves", records: []string{"d.test. 60 IN MX 10 US.test.", "us.test. 60 IN A 192.0.2.1"}, want: ours, dials: -1},
		{name: "MX to ourselves behind another", records: append([]string{"d.test. 60 IN MX 20 us.test.", "us.test. 60 IN A 192.0.2.2"}, mx...), want: first},
		{name: "MX to ourselves beside another", records: append([]string{"d.test. 60 IN MX 10 us.test.", "us.test. 60 IN A 192.0.2.2"}, mx...), want: ours, dials: -1},
		{name: "8 hosts of no address", records: many(8, 8, ""), want: noHost, lookups: 8},
		{name: "a host of 255 bytes", records: []string{"d.test. 60 IN MX 10 " + longest(), longest() + " 60 IN A 192.0.2.1"}, want: first},
		{name: "hosts with CR, LF, NUL and blanks", records: []string{`d.test. 60 IN MX 1 a\013\010X-Evil:b.test.`, `d.test. 60 IN MX 2 a\000b.test.`, `d.test. 60 IN MX 3 \"x\032y\".test.`, `d.test. 60 IN MX 4 a\010T\032victim@x.test.`}, want: noHost, dials: -1},
		{name: "hosts with CR LF before another", records: append([]string{`d.test. 60 IN MX 1 a\013\010X-Evil:b.test.`}, mx...), want: first},
		{name: "an alias with CR LF", records: []string{`d.test. 60 IN CNAME a\013\010b.test.`, `a\013\010b.test. 60 IN MX 10 mx1.d.test.`, mx[1]}, want: first},
	}
}

// TestDNSFaults is what each thing means that the DNS can do to a domain, asked over
// the wire.
func TestDNSFaults(t *testing.T) {
	for _, c := range dnsCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.try(t)
		})
	}
}

func (c dnsCase) try(t *testing.T) {
	n := startNameserver(t, c.faults, c.records...)
	r, err := resolve.New(resolve.Options{Servers: []string{n.addr}, Timeout: 700 * time.Millisecond, Deadline: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	net, log := newExchange(), new(bytes.Buffer)
	servers := map[string]*smtptest.Server{}
	for _, a := range []string{"192.0.2.1", "192.0.2.2", "2001:db8::1"} {
		at := netip.AddrPortFrom(netip.MustParseAddr(a), 25).String()
		servers[a] = smtptest.Serve(net.listen(at), smtptest.Options{})
		t.Cleanup(func() { servers[a].Close() })
	}
	x, err := smtp.New(smtp.Options{
		Resolver: r, Dialer: net, ConnectTimeout: 300 * time.Millisecond, Idle: -1, Shuffle: func(int, func(i, k int)) {},
		Self: func(host string, _ netip.Addr) bool { return strings.EqualFold(host, "us.test") },
		Log:  slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	j := job("d.test", "a@d.test")
	j.Content = message.FromString(sample)
	result := one(t, x, j)
	got := result.Reply.SMTP()
	if result.Reply.Class == reply.Success {
		got = result.Address.String()
	}
	if !strings.HasPrefix(got, c.want) {
		t.Errorf("%s (%v), want %s", got, result.Err, c.want)
	}
	if dials := len(net.dials()); c.dials != 0 && dials > max(c.dials, 0) {
		t.Errorf("%d connections: %v", dials, net.dials())
	}
	if asked := n.lookups("A"); c.lookups > 0 && asked > c.lookups {
		t.Errorf("%d look-ups", asked)
	}
	for name, text := range map[string]string{"reply": result.Reply.SMTP(), "where": result.Where, "error": fmt.Sprint(result.Err)} {
		if !clean(text) || len(text) > 1000 {
			t.Errorf("%s is not clean: %q", name, text)
		}
	}
	if strings.Contains(log.String(), `\r`) || strings.Contains(log.String(), `\n`) || strings.Contains(log.String(), `\u00`) {
		t.Errorf("the log is not clean: %s", log)
	}
}

// unknownHosts are those of many, of whom nobody can tell.
func unknownHosts(n int) map[string]dnsFault {
	all := map[string]dnsFault{}
	for i := range n {
		all[fmt.Sprintf("mx%d.d.test", i)] = rcode(dns.RcodeServerFailure)
	}
	return all
}
