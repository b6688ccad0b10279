package certs_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/ingress/certs"
)

// BenchmarkHandshake measures whole handshakes, both ends, over a pipe: full
// and resumed, with both kinds of keys. The floor is crypto/tls with one fixed
// certificate, run in turns with ours; "x-floor" is our time over its.
func BenchmarkHandshake(b *testing.B) {
	a := newAuthority(b)
	dir := b.TempDir()
	for _, key := range []string{"ECDSA", "RSA2048"} {
		p := a.pair(b, dir, key, leaf{names: []string{"mx.example.org"}, rsa: key == "RSA2048"})
		s := open(b, certs.Options{Pairs: []certs.Pair{p}})
		fixed, err := tls.LoadX509KeyPair(p.Cert, p.Key)
		if err != nil {
			b.Fatal(err)
		}
		for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, resumed := range []bool{false, true} {
				kind := map[bool]string{false: "full", true: "resumed"}[resumed]
				ours, floor := configure(b, s, certs.Policy{}), &tls.Config{Certificates: []tls.Certificate{fixed}}
				b.Run(strings.ReplaceAll(tls.VersionName(v), " ", "")+"/"+key+"/"+kind, func(b *testing.B) {
					took := map[*tls.Config]time.Duration{}
					clients := map[*tls.Config]*tls.Config{}
					for _, config := range []*tls.Config{ours, floor} {
						clients[config] = &tls.Config{RootCAs: a.pool, ServerName: "mx.example.org", MaxVersion: v}
						if resumed {
							clients[config].ClientSessionCache = tls.NewLRUClientSessionCache(1)
							handshake(b, config, clients[config], false)
						}
					}
					for b.Loop() {
						for _, config := range []*tls.Config{ours, floor} {
							start := time.Now()
							handshake(b, config, clients[config], resumed)
							took[config] += time.Since(start)
						}
					}
					b.ReportMetric(float64(b.N)/took[ours].Seconds(), "handshakes/s")
					b.ReportMetric(took[ours].Seconds()/took[floor].Seconds(), "x-floor")
				})
			}
		}
	}
}

func handshake(b *testing.B, server, client *tls.Config, resumed bool) {
	_, c, err := shake(server, client)
	if err != nil || c.DidResume != resumed {
		b.Fatalf("resumed %v: %v", c.DidResume, err)
	}
}

// idleConnections is how many BenchmarkIdle holds.
const idleConnections = 500

// TestMain is the test, or the clients of BenchmarkIdle in a process of their own.
func TestMain(m *testing.M) {
	if address := os.Getenv("CERTS_IDLE_CLIENTS"); address != "" {
		idleClients(address, os.Getenv("CERTS_IDLE_TLS") != "")
		return
	}
	os.Exit(m.Run())
}

// idleClients connects, says so with a line, and holds until its input ends.
func idleClients(address string, encrypted bool) {
	var held []net.Conn // the collector closes what nobody holds
	for range idleConnections {
		c, err := net.Dial("tcp", address)
		if err == nil && encrypted {
			t := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: "mx.example.org"})
			if err = t.Handshake(); err == nil {
				_, err = io.ReadFull(t, make([]byte, 1))
			}
		} else if err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		held = append(held, c)
	}
	fmt.Println("connected")
	_, _ = io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(held)
}

// BenchmarkIdle measures the memory of idle server connections after the
// handshake, a goroutine in Read each, clients in another process: live heap
// and stacks after garbage collection, and what the process grew by. The floor
// is the same without TLS.
func BenchmarkIdle(b *testing.B) {
	a := newAuthority(b)
	s := open(b, certs.Options{Pairs: []certs.Pair{a.pair(b, b.TempDir(), "mx", leaf{names: []string{"mx.example.org"}})}})
	config := configure(b, s, certs.Policy{})
	for b.Loop() {
		plainHeap, plainRSS := idle(b, nil)
		heap, rss := idle(b, config)
		b.ReportMetric(heap, "B/conn-heap+stack")
		b.ReportMetric(plainHeap, "B/conn-heap+stack-plain")
		b.ReportMetric(rss, "B/conn-rss")
		b.ReportMetric(plainRSS, "B/conn-rss-plain")
		b.ReportMetric(heap/plainHeap, "x-floor")
	}
}

func idle(b *testing.B, config *tls.Config) (live, rss float64) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	clients := exec.CommandContext(ctx, os.Args[0])
	clients.Env = append(os.Environ(), "CERTS_IDLE_CLIENTS="+l.Addr().String())
	if config != nil {
		clients.Env = append(clients.Env, "CERTS_IDLE_TLS=1")
	}
	in, err := clients.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := clients.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	liveBefore, rssBefore := memory(b)
	if err := clients.Start(); err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{}, idleConnections)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { done <- struct{}{} }()
				defer c.Close()
				if config != nil {
					c = tls.Server(c, config)
				}
				_, _ = c.Write([]byte("2"))
				_, _ = c.Read(make([]byte, 1))
			}()
		}
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "connected\n" {
		b.Fatalf("clients: %q, %v", line, err)
	}
	if n := len(done); n > 0 {
		b.Fatalf("%d connections ended", n)
	}
	liveAfter, rssAfter := memory(b)
	in.Close()
	if err := clients.Wait(); err != nil {
		b.Fatal(err)
	}
	for range idleConnections {
		<-done
	}
	return float64(liveAfter-liveBefore) / idleConnections, float64(rssAfter-rssBefore) / idleConnections
}

// memory is live heap and stacks, and the process's resident bytes.
func memory(b *testing.B) (live, rss int64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, line, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.ParseInt(strings.Fields(line)[0], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return int64(m.HeapAlloc + m.StackInuse), kib << 10
}
