package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// farNet is another machine as the kernel has it: a network namespace behind a pair
// of interfaces, with a packet filter of its own.
type farNet struct {
	t      *testing.T
	name   string
	prefix string // of its addresses; .1 is ours
}

// newFarNet makes one with the addresses .2 to .9. It needs root.
func newFarNet(t *testing.T) *farNet {
	t.Helper()
	pid := os.Getpid()
	n := &farNet{t: t, name: fmt.Sprintf("postern%d", pid), prefix: fmt.Sprintf("198.%d.%d.", 18+pid>>8&1, pid&255)}
	if os.Getuid() != 0 {
		t.Fatal("this test makes a network namespace: run it as root, in a container with CAP_NET_ADMIN and CAP_SYS_ADMIN")
	}
	n.ip("netns", "add", n.name)
	t.Cleanup(func() { exec.Command("ip", "netns", "del", n.name).Run() }) //nolint:errcheck // it takes the interfaces along
	here, there := fmt.Sprintf("pst%d", pid), fmt.Sprintf("far%d", pid)
	n.ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", n.name)
	t.Cleanup(func() { exec.Command("ip", "link", "del", here).Run() }) //nolint:errcheck // it may be gone
	n.ip("addr", "add", n.prefix+"1/24", "dev", here)
	n.ip("link", "set", here, "up")
	for i := 2; i < 10; i++ {
		n.ip("-n", n.name, "addr", "add", fmt.Sprintf("%s%d/24", n.prefix, i), "dev", there)
	}
	n.ip("-n", n.name, "link", "set", there, "up")
	n.filter("", "")
	return n
}

func (n *farNet) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v: %s(make deps installs it; it needs root with CAP_NET_ADMIN and CAP_SYS_ADMIN)", strings.Join(args, " "), err, out)
	}
}

// filter sets the rules for what comes in there and for what goes out.
func (n *farNet) filter(in, out string) {
	c := exec.Command("ip", "netns", "exec", n.name, "nft", "-f", "-")
	c.Stdin = strings.NewReader("add table inet f\ndelete table inet f\ntable inet f {\n" +
		"chain i { type filter hook input priority 0; " + in + "\n}\nchain o { type filter hook output priority 0; " + out + "\n}\n}\n")
	if said, err := c.CombinedOutput(); err != nil {
		n.t.Errorf("nft: %v: %s(make deps installs nftables)", err, said)
	}
}

// serve starts a server there. Its socket stays there when the thread that made it
// has ended.
func (n *farNet) serve(host int, o smtptest.Options) *smtptest.Server {
	n.t.Helper()
	type result struct {
		l   net.Listener
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // for ever, so that the thread ends with this
		f, err := os.Open("/var/run/netns/" + n.name)
		if err != nil {
			made <- result{nil, err}
			return
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			made <- result{nil, err}
			return
		}
		l, err := net.Listen("tcp", n.at(host))
		made <- result{l, err}
	}()
	r := <-made
	if r.err != nil {
		n.t.Fatal(r.err)
	}
	s := smtptest.Serve(r.l, o)
	n.t.Cleanup(func() { s.Close() })
	return s
}

func (n *farNet) at(host int) string { return fmt.Sprintf("%s%d:2525", n.prefix, host) }

// saidLog is a daemon's log.
type saidLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *saidLog) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *saidLog) count(words string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), words)
}

const farConfig = `hostname = "mx.example.org"
control = ""
domains = []
state = "$DIR/state"
admin.socket = "$DIR/admin.sock"
[listen.queue]
socket = "$DIR/queue.sock"
next = "queue"
[queue]
retry = "list 1s jitter 0%"
resolver = ["127.0.0.1:1"]
low_space = "1 MB"
[outbound]
connect_timeout = "5s"
[route]
"lossy.example" = "$2"
"reset.example" = ["$3", "$5"]
"away.example" = ["$4", "$5"]
"pulled.example" = "$6"
"hole.example" = ["$7", "$5"]
`

// startFarDaemon starts a daemon whose mail goes to servers there.
func startFarDaemon(n *farNet, log *saidLog) *daemon {
	n.t.Helper()
	dir, err := os.MkdirTemp("", "far")
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { os.RemoveAll(dir) })
	words := []string{"$DIR", dir}
	for i := 2; i < 10; i++ {
		words = append(words, fmt.Sprintf("$%d", i), n.at(i))
	}
	file := filepath.Join(dir, "postern.toml")
	if err := os.WriteFile(file, []byte(strings.NewReplacer(words...).Replace(farConfig)), 0o600); err != nil {
		n.t.Fatal(err)
	}
	d, err := startDaemon(file, log)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := d.stop(ctx); err != nil {
			n.t.Errorf("stopping: %v", err)
		}
	})
	return d
}

func letter(id string, size int) message.Message {
	return message.FromString("Message-ID: <" + id + ">\nSubject: a test\n\n" + strings.Repeat("0123456789abcdef\n", size/17))
}

// TestNetworkOfTheKernel sends through networks that lose a third of all packets, that
// refuse, that swallow everything, and that fall silent when a message was taken: each message arrives, and
// twice only where the log says that this may be.
func TestNetworkOfTheKernel(t *testing.T) {
	n := newFarNet(t)
	lossy, spare := n.serve(2, smtptest.Options{}), n.serve(5, smtptest.Options{})
	refusing, away := n.serve(3, smtptest.Options{}), n.serve(4, smtptest.Options{})
	loss := "tcp dport 2525 ip daddr " + n.prefix + "2 numgen random mod 100 < 30 drop"
	back := "tcp sport 2525 ip saddr " + n.prefix + "2 numgen random mod 100 < 30 drop"
	closed := "\nip daddr " + n.prefix + "3 tcp dport 2525 reject with tcp reset\nip daddr " + n.prefix + "4 reject with icmp host-unreachable\nip daddr " + n.prefix + "7 drop\n"
	mute := "\nip saddr " + n.prefix + "6 tcp sport 2525 drop\n"
	var silence atomic.Bool
	pulled := n.serve(6, smtptest.Options{OnMessage: func(*smtptest.Message) {
		if silence.CompareAndSwap(false, true) {
			n.filter(loss+closed, back+mute)
			time.AfterFunc(2*time.Second, func() { n.filter(loss+closed, back) })
		}
	}})
	n.filter(loss+closed, back)
	log := &saidLog{}
	d := startFarDaemon(n, log)
	origin, err := ownOrigin().Encode()
	if err != nil {
		t.Fatal(err)
	}
	var batch []queue.Submission
	sent := map[string][]string{}
	for domain, count := range map[string]int{"lossy.example": 10, "reset.example": 10, "away.example": 10, "pulled.example": 10, "hole.example": 2} {
		for i := range count {
			id := fmt.Sprintf("%d@%s", i, domain)
			sent[domain] = append(sent[domain], "<"+id+">")
			batch = append(batch, queue.Submission{Envelope: envelope.To("us@example.org", "you@"+domain), Message: letter(id, 20_000), Origin: origin})
		}
	}
	if _, err := d.engine.queue.Submit(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for {
		st, err := d.engine.queue.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if st.Messages == 0 {
			break
		}
		if time.Since(began) > 5*time.Second {
			n.filter(closed, "") // nothing is lost any more, so that this ends
		}
		if time.Since(began) > 2*time.Minute {
			t.Fatal("there is still mail in the queue")
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("after %v, %d deliveries were put off, %d in doubt", time.Since(began).Round(time.Millisecond), log.count("status=deferred"), log.count("Possible duplicate"))
	got := map[string]int{}
	for _, s := range []*smtptest.Server{lossy, spare, pulled} {
		for _, m := range s.Messages() {
			got[m.ID()]++
		}
	}
	again := 0
	for domain, ids := range sent {
		for _, id := range ids {
			if got[id] == 0 {
				t.Errorf("%s: %s did not arrive", domain, id)
			}
			again += max(0, got[id]-1)
		}
	}
	if doubts := log.count("Possible duplicate"); again > doubts {
		t.Errorf("%d came again, and %d were in doubt", again, doubts)
	}
	if a, b := refusing.Stats().Connections, away.Stats().Connections; a+b > 0 {
		t.Errorf("%d connections came through where none could", a+b)
	}
	if !silence.Load() {
		t.Error("the line was never pulled")
	}
}

// TestSilenceOfTheKernel: a host that drops all packets is given up after the time for
// a connection, and a line that dies within a message after the time for a write,
// without a doubt; then the next host has the message.
func TestSilenceOfTheKernel(t *testing.T) {
	n := newFarNet(t)
	dead, alive := n.serve(2, smtptest.Options{}), n.serve(3, smtptest.Options{})
	dies := n.serve(4, smtptest.Options{ReadBuffer: 4 << 10, Script: func(m *smtptest.Moment) *smtptest.Step {
		if m.At == smtptest.Data {
			n.filter("ip daddr { "+n.prefix+"2, "+n.prefix+"4 } drop", "")
		}
		return nil
	}})
	n.filter("ip daddr "+n.prefix+"2 drop", "")
	hops := map[string][]smtp.Hop{}
	for domain, hosts := range map[string][]int{"hole.example": {2, 3}, "dies.example": {4, 3}} {
		for _, host := range hosts {
			h, err := smtp.ParseHop(n.at(host))
			if err != nil {
				t.Fatal(err)
			}
			hops[domain] = append(hops[domain], h)
		}
	}
	second := time.Second
	x, err := smtp.New(smtp.Options{
		Resolver: zone{}, Routes: func(domain string) []smtp.Hop { return hops[domain] }, ConnectTimeout: second,
		Timeouts: wire.Timeouts{Write: second, Data: 10 * second, Dot: 10 * second, Quit: second},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close(t.Context())
	send := func(domain string, size int) smtp.Result {
		return x.Deliver(t.Context(), &smtp.Job{Domain: domain, Envelope: envelope.To("us@example.org", "you@"+domain), Content: letter("1@"+domain, size)})[0]
	}
	if r := send("hole.example", 1000); r.Reply.Class != reply.Success || len(alive.Messages()) != 1 || dead.Stats().Connections != 0 {
		t.Errorf("%+v", r)
	}
	if r := send("dies.example", 32<<20); r.Reply.Class != reply.Temporary || r.Phase != wire.Body || r.Perhaps || len(dies.Messages())+len(alive.Messages()) != 1 {
		t.Errorf("%+v", r)
	}
}
