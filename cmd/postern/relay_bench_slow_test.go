package main

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkRelaySlow has messages of 4 KiB relayed to 4,000 domains whose servers
// wait for 200 to 500 ms before every answer, by the daemon and, in the same run,
// by Debian's Postfix, tuned as in BenchmarkRelay. A server has as many deliveries
// at a time as it may; Postfix has 1,000, because each is a process.
//
// No domain may have more than two connections at a time and none of them carry
// more than 20 messages: the servers count, and the benchmark fails if one finds
// more. The targets are 2,000 connections at a time and 1,000 messages a second.
func BenchmarkRelaySlow(b *testing.B) {
	e := errand{domains: 4000, remote: 4000, each: 2, messages: 20, program: buildProgram(b)}
	counts := []int{20_000, 6_000}
	if testing.Short() {
		counts = []int{5_000, 1_000}
	}
	r := startRelays(b, e, true)
	r.sink.pause = slowAnswers
	for b.Loop() {
		for i, count := range counts {
			r.turn(b, i, relayClients, count)
		}
	}
	ours := &r.results[0]
	if ours.mostEach > e.each || ours.mostSent > e.messages {
		b.Errorf("a domain that may have %d connections had %d, and one that may carry %d messages carried %d", e.each, ours.mostEach, e.messages, ours.mostSent)
	}
	r.report(b)
	b.ReportMetric(float64(ours.most), "connections")
	b.ReportMetric(float64(ours.most)/float64(r.results[1].most), "connections-of-postfix")
	b.Logf("\n  ours: at most %d connections to a domain that may have %d, and %d messages over one that may carry %d", ours.mostEach, e.each, ours.mostSent, e.messages)
}

// BenchmarkRelayConnections has the daemon hold 10,000 connections at a time, each
// to a domain of its own whose server has the whole message and does not answer,
// with and without TLS. It tells the memory of a connection, as what the process
// has grown by since it had relayed a few messages; that of the message is in it.
// The target is 32 KiB without TLS.
func BenchmarkRelayConnections(b *testing.B) {
	count := 10_000
	if testing.Short() {
		count = 1_000
	}
	program := buildProgram(b)
	for _, secret := range []bool{false, true} {
		name := map[bool]string{false: "plain", true: "tls"}[secret]
		b.Run(name, func(b *testing.B) {
			// Domains that have not been delivered to yet get no more than half of all.
			e := errand{domains: count, remote: 2*count + 100, each: 2, messages: 100, program: program, secret: secret}
			var grown int64
			for b.Loop() {
				r := startRelays(b, e, false)
				r.turn(b, 0, relayClients, 1000)
				before := r.h.resident(b)
				r.sink.hold = make(chan struct{})
				grown = r.holdAll(b, count) - before
				if got, err := r.sink.wait(relayPatience); err != nil || got.most < count || got.strange > 0 || secret && got.secret != count {
					b.Fatalf("%d connections, %d strange messages, %d under TLS: %v", got.most, got.strange, got.secret, err)
				}
				b.Logf("\n  the process has %.1f MiB, and with %d connections %.1f MiB more", float64(before)/(1<<20), count, float64(grown)/(1<<20))
				r.h.stop()
			}
			b.ReportMetric(float64(grown)/float64(count)/1024, "KiB/connection")
			b.ReportMetric(0, "ns/op") // it takes as long as it takes
		})
	}
}

// holdAll sends messages to a sink that keeps its answers back until all of them
// are there, and returns the memory that the daemon has then.
func (r *relays) holdAll(b testing.TB, count int) (resident int64) {
	b.Helper()
	r.sink.expect(count)
	if err := r.sink.sendParcels(r.all[0].dialer, relayClients, count, r.domains); err != nil {
		b.Fatal(err)
	}
	for had, since := int64(-1), time.Now(); had < int64(count); pauseToLook() {
		if now := r.sink.held.Load(); now > had {
			had, since = now, time.Now()
		} else if time.Since(since) > relayPatience {
			b.Fatal(fmt.Sprint("only ", had, " messages came at a time"))
		}
	}
	resident = r.h.resident(b)
	close(r.sink.hold)
	return resident
}
