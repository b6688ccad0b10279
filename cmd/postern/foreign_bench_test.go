package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gomilter "github.com/emersion/go-milter"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/servers/serverstest"
	"github.com/postern-mta/postern/plugins/host"
)

// The targets for a plugin that needs the head only, in calls a second with
// sixteen at once: with messages of any size, and with those of 1 MiB.
const (
	foreignTarget    = 10_000
	foreignMiBTarget = 5_000
	foreignParallel  = 16
	foreignSlice     = 60 * time.Millisecond
)

// foreignWays are the chains of the benchmark, the built-in filter first.
var foreignWays = []string{"built-in", "plugin", "qfilter", "milter"}

const foreignConfig = `hostname = "mx.example.org"
control = ""
trusted = ["0"]
state = "%[1]s/state"
admin.socket = "%[1]s/admin.sock"
[listen.queue]
socket = "%[1]s/queue.sock"
next = "discard"
chain = "built-in"
[plugin.seen]
command = ["%[1]s/plugin", "%[2]s"]
%[4]s
[chain]
built-in = ["own"]
plugin = ["seen"]
qfilter = ["program"]
milter = ["milter"]
[filter.own]
%[5]s
[filter.program]
kind = "qfilter"
command = ["%[1]s/program", "%[2]s"]
may_change = ["message"]
[filter.milter]
address = ["%[3]s"]
`

// BenchmarkForeign is a message through a chain of one filter that adds a field,
// as the daemon makes it of its configuration: one that needs the head, or reads
// the whole body; as a filter of our own, a plugin in Go, a program for
// qmail-qfilter in C, and a milter. They take turns, so that a busy host is as
// busy for each. The built-in filter is "header"; that which reads the body is the
// same with a reading in front, in this program. A qmail-qfilter program writes
// the whole message in either case, since it can do nothing else. The milter is in
// this process. Processor time is that of all processes together.
func BenchmarkForeign(b *testing.B) {
	dir := b.TempDir()
	for _, c := range [][]string{
		{"go", "build", "-o", filepath.Join(dir, "plugin"), "./testdata/foreign/plugin"},
		{"cc", "-O2", "-static", "-o", filepath.Join(dir, "program"), "testdata/foreign/program.c"},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			b.Fatalf("%v: %v\n%s", c, err, out)
		}
	}
	for _, needs := range []string{"head", "body"} {
		b.Run(needs, func(b *testing.B) {
			chains, spool := foreignChains(b, dir, needs)
			for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
				for _, parallel := range []int{1, foreignParallel} {
					b.Run(fmt.Sprintf("%dKiB/%d", size>>10, parallel), func(b *testing.B) { benchForeign(b, chains, foreignMessages(b, spool, size, parallel), needs, size) })
				}
			}
		})
	}
}

// foreignChains makes the chains, in the order of foreignWays.
func foreignChains(b *testing.B, dir, needs string) (chains []*pipeline.Chain, spool message.Spooler) {
	b.Helper()
	home, err := os.MkdirTemp("", "pb") // the path of a socket is short
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(home) })
	for _, name := range []string{"plugin", "program"} {
		if err := os.Link(filepath.Join(dir, name), filepath.Join(home, name)); err != nil {
			b.Fatal(err)
		}
	}
	user, own := "", "kind = \"header\"\nrule = [{op = \"add\", name = \"X-Seen\", value = \"yes\"}]"
	if os.Geteuid() == 0 {
		user = `user = "nobody"`
		if err := os.Chmod(home, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	if needs == "body" {
		own = `kind = "reads"`
	}
	server := serverstest.Start(b, "unix", (&seenMilter{body: needs == "body"}).play)
	file := filepath.Join(home, "postern.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, foreignConfig, home, needs, server.Address, user, own), 0o600); err != nil {
		b.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(b.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	if spool, err = message.OpenDirectory(filepath.Join(home, "spool")); err != nil {
		b.Fatal(err)
	}
	runs := newPrograms(log)
	b.Cleanup(runs.close)
	o := loadOptions(pipeline.Env{Log: log, Now: time.Now, Spool: spool, Secret: derive([]byte("secret")), Programs: runs})
	o.Kinds = append(o.Kinds, readsKind())
	first, err := config.Load(file, o)
	if err == nil {
		err = runs.startOthers(first)
	}
	if err != nil {
		b.Fatal(err)
	}
	plugins, err := host.New(host.Options{Programs: runs, Dir: filepath.Join(home, "p"), Log: log, Version: "test"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { plugins.Close() })
	o.Plugins = plugins
	c, err := config.Load(file, o)
	if err != nil {
		b.Fatal(err)
	}
	plugins.Settle(true)
	all, err := c.Chains(nil, 1)
	if err != nil {
		b.Fatal(err)
	}
	for _, way := range foreignWays {
		for _, chain := range all {
			if chain.Name() == way {
				chains = append(chains, chain)
				b.Cleanup(func() { chain.Close() })
			}
		}
	}
	return chains, spool
}

// foreignMessages are as many messages of a size as calls are made at once.
func foreignMessages(b *testing.B, spool message.Spooler, size, n int) []message.Message {
	b.Helper()
	const head = "Received: from a by b; Mon, 2 Nov 2026 10:00:00 +0000\nReceived: from c by d; Mon, 2 Nov 2026 10:00:00 +0000\nFrom: <a@example.net>\nTo: <r@example.org>\n" +
		"Subject: hello\nDate: Mon, 2 Nov 2026 10:00:00 +0000\nMessage-ID: <1@example.net>\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\n"
	text := head + strings.Repeat(strings.Repeat("x", 71)+"\n", (size-len(head))/72)
	all := make([]message.Message, n)
	for i := range all {
		m, err := message.Read(strings.NewReader(text), message.Options{Spool: spool})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { m.Body().Release() })
		all[i] = m
	}
	return all
}

func benchForeign(b *testing.B, chains []*pipeline.Chain, messages []message.Message, needs string, size int) {
	type cost struct {
		calls           int64
		took, processor time.Duration
	}
	costs := make([]cost, len(chains))
	for _, chain := range chains { // connections, buffers
		if _, err := foreignFlow(chain, messages, 0); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		for i, chain := range chains {
			before, began := foreignProcessorTime(), time.Now()
			calls, err := foreignFlow(chain, messages, foreignSlice)
			if err != nil {
				b.Fatalf("%s: %v", foreignWays[i], err)
			}
			costs[i].took += time.Since(began)
			costs[i].processor += foreignProcessorTime() - before
			costs[i].calls += calls
		}
	}
	rate := func(c cost) float64 { return float64(c.calls) / c.took.Seconds() }
	for i, way := range foreignWays {
		b.ReportMetric(rate(costs[i]), way+"-calls/s")
		b.ReportMetric(float64(costs[i].processor.Microseconds())/float64(costs[i].calls), way+"-cpu-us/call")
		if i > 0 {
			b.ReportMetric(rate(costs[0])/rate(costs[i]), way+"-x-built-in")
		}
	}
	if len(messages) == foreignParallel && needs == "head" {
		b.ReportMetric(rate(costs[1])/foreignTarget, "x-target")
	} else if len(messages) == foreignParallel && size == 1<<20 {
		b.ReportMetric(rate(costs[1])/foreignMiBTarget, "x-target")
	}
	b.ReportMetric(0, "ns/op")
}

// foreignFlow makes calls for a time, as many at once as there are messages, and
// one for each at least.
func foreignFlow(chain *pipeline.Chain, messages []message.Message, within time.Duration) (int64, error) {
	var calls atomic.Int64
	errs := make([]error, len(messages))
	end := time.Now().Add(within)
	var all sync.WaitGroup
	for i, m := range messages {
		all.Go(func() {
			for first := true; first || time.Now().Before(end); first = false {
				if errs[i] = foreignCall(chain, m); errs[i] != nil {
					return
				}
				calls.Add(1)
			}
		})
	}
	all.Wait()
	return calls.Load(), errors.Join(errs...)
}

// foreignProcessorTime is what this process and its descendants have used, those
// that ended among them.
func foreignProcessorTime() time.Duration {
	children, used := map[int][]int{}, map[int]int64{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(text), ") ") // behind the program's name
		f := strings.Fields(rest)
		number := func(i int) int { n, _ := strconv.Atoi(f[i]); return n }
		id, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		children[number(1)] = append(children[number(1)], id)
		used[id] = int64(number(11) + number(12) + number(13) + number(14))
	}
	ticks := int64(0)
	for all := []int{os.Getpid()}; len(all) > 0; {
		id := all[0]
		ticks += used[id]
		all = append(all[1:], children[id]...)
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// foreignCall is one message in a session of its own.
func foreignCall(chain *pipeline.Chain, m message.Message) error {
	tx := &pipeline.Transaction{ID: "t1", Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", "r@example.org"), Chain: chain.Name()}
	o := chain.Run(context.Background(), tx, m)
	defer o.Release()
	if len(o.Outgoing) != 1 {
		return fmt.Errorf("%v: %+v", o.Reply, o.Trace)
	}
	if got := o.Outgoing[0].Message.Head().Get("X-Seen"); got != "yes" {
		return fmt.Errorf("X-Seen: %q: %+v", got, o.Trace)
	}
	return nil
}

// readsKind is a filter that reads the body and adds a field.
func readsKind() pipeline.Kind {
	return pipeline.Kind{Name: "reads", New: func(_ pipeline.Env, decode pipeline.Decode) (pipeline.Filter, error) {
		return reads{}, decode(&struct{}{})
	}}
}

type reads struct{}

func (r reads) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return r, nil }

func (reads) Close() error { return nil }

var readBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

func (reads) Message(_ context.Context, _ *pipeline.Transaction, m message.Message) (v pipeline.Verdict, err error) {
	buffer := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(buffer)
	body := io.NewSectionReader(m.Body(), 0, m.Body().Size())
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{body}, *buffer); err != nil {
		return v, err
	}
	v.Edits = []pipeline.Edit{pipeline.Field(message.FieldEdit{Op: message.Add, Name: "X-Seen", Value: "yes"})}
	return v, nil
}

// seenMilter is a milter that adds a field, and wants no answers in between: it
// wants the body if body is set, and reads all that it is told.
type seenMilter struct{ body bool }

func (s *seenMilter) play(c *serverstest.Conn) {
	packet := func(code byte, data string) string {
		return string(append(binary.BigEndian.AppendUint32(nil, uint32(len(data)+1)), code)) + data
	}
	flags := gomilter.OptNoConnReply | gomilter.OptNoHeloReply | gomilter.OptNoMailReply | gomilter.OptNoRcptReply | gomilter.OptNoDataReply |
		gomilter.OptNoHeaderReply | gomilter.OptNoEOHReply | gomilter.OptNoBodyReply
	if !s.body {
		flags |= gomilter.OptNoBody
	}
	terms := binary.BigEndian.AppendUint32(nil, 6)
	terms = binary.BigEndian.AppendUint32(terms, uint32(gomilter.OptAddHeader))
	terms = binary.BigEndian.AppendUint32(terms, uint32(flags))
	answers := map[byte]string{
		'O': packet('O', string(terms)), 'E': packet('h', "X-Seen\x00yes\x00") + packet('c', ""),
	}
	block := make([]byte, 128<<10)
	var head [5]byte
	for {
		if _, err := io.ReadFull(c.R, head[:]); err != nil || head[4] == 'Q' {
			return
		}
		n := int(binary.BigEndian.Uint32(head[:])) - 1
		if n > len(block) {
			return
		}
		if _, err := io.ReadFull(c.R, block[:n]); err != nil {
			return
		}
		if answer, ok := answers[head[4]]; ok {
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	}
}
