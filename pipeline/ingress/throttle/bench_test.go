package throttle

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkGate lets connections in and out, of 4,096 addresses with 2,000 open
// meanwhile, all sessions at once behind the gate's one lock. The peer is what
// the kernel takes to accept a connection on the loopback: the gate must be
// little beside it.
func BenchmarkGate(b *testing.B) {
	g := New(Options{Total: 1 << 20, Address: 1000, Network: 10000, AddressRate: 1e9, NetworkRate: 1e9, Penalty: NewPenalty(PenaltyOptions{}), Exempt: []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:ffff::/48"),
	}})
	addrs := make([]netip.Addr, 4096)
	for i := range addrs {
		addrs[i] = netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
		if i < 2000 {
			if _, err := g.Admit(addrs[i]); err != nil {
				b.Fatal(err)
			}
		}
	}
	var number, refused atomic.Int64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := number.Add(1000); pb.Next(); i++ {
			release, err := g.Admit(addrs[i%4096])
			if err != nil {
				refused.Add(1)
				continue
			}
			release()
		}
	})
	b.StopTimer()
	if refused.Load() > 0 {
		b.Fatalf("%d refused", refused.Load())
	}
	each := float64(b.Elapsed()) / float64(b.N)
	b.ReportMetric(each/float64(accept(b)), "x-accept")
}

// accept is what a connection on the loopback takes, from dialling to closing.
func accept(b *testing.B) time.Duration {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	const n = 500
	start := time.Now()
	for range n {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
		s.Close()
	}
	return time.Since(start) / n
}
