package resolve_test

import (
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// nameserver is a DNS server that answers as a function tells it, over UDP and
// TCP on the same port. What it asks for and how often is counted.
type nameserver struct {
	addr string

	mu    sync.Mutex
	asked map[string]int // "name TYPE network"
}

// serve starts a server; answer fills in a reply, or returns false to say
// nothing at all.
func serve(t testing.TB, answer func(reply, query *dns.Msg, network string) bool) *nameserver {
	t.Helper()
	n := &nameserver{asked: map[string]int{}}
	var udp net.PacketConn
	var tcp net.Listener
	for range 20 { // the port may be taken for the other protocol
		var err error
		if udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		n.addr = udp.LocalAddr().String()
		if tcp, err = net.Listen("tcp", n.addr); err == nil {
			break
		}
		udp.Close()
	}
	if tcp == nil {
		t.Fatal("no port is free for both UDP and TCP")
	}
	handler := func(network string) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			n.mu.Lock()
			n.asked[strings.ToLower(q.Question[0].Name)+" "+dns.TypeToString[q.Question[0].Qtype]+" "+network]++
			n.mu.Unlock()
			m := new(dns.Msg).SetReply(q)
			m.RecursionAvailable = true
			if answer(m, q, network) {
				w.WriteMsg(m) //nolint:errcheck // the asker times out then
			}
		}
	}
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: handler("udp")}, {Listener: tcp, Handler: handler("tcp")}} {
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

// times is how often something was asked: "name. TYPE udp".
func (n *nameserver) times(question string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked[question]
}

func (n *nameserver) total() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	sum := 0
	for _, k := range n.asked {
		sum += k
	}
	return sum
}

// rr makes a record of its text.
func rr(t testing.TB, text string) dns.RR {
	t.Helper()
	r, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// zone answers with those of the records that fit the question.
func zone(t testing.TB, records ...string) func(reply, query *dns.Msg, network string) bool {
	t.Helper()
	var all []dns.RR
	for _, text := range records {
		all = append(all, rr(t, text))
	}
	return func(m, q *dns.Msg, _ string) bool {
		known := false
		for _, r := range all {
			if !strings.EqualFold(r.Header().Name, q.Question[0].Name) {
				continue
			}
			known = true
			if k := r.Header().Rrtype; k == q.Question[0].Qtype || k == dns.TypeCNAME {
				m.Answer = append(m.Answer, r)
			}
		}
		if !known {
			m.Rcode = dns.RcodeNameError
		}
		return true
	}
}
