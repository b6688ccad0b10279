package dkim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/resolve"
	wire "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/egress/smtp"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store/pebble"
)

// remote is the SMTP exit as an exit of the queue, as the daemon has it.
type remote struct{ exit *smtp.Exit }

func (r remote) Deliver(ctx context.Context, j *queue.Job) ([]queue.Result, schedule.Health) {
	var made []message.Message
	got := r.exit.Deliver(ctx, &smtp.Job{
		Domain: j.Domain, Envelope: j.Envelope, Content: j.Message,
		Prepare: func(ctx context.Context, can wire.Capabilities) (message.Message, error) {
			form := message.SevenBit
			switch {
			case can.Extensions.Has(wire.UTF8):
				form = message.UTF8
			case can.Extensions.Has(wire.EightBit):
				form = message.EightBit
			}
			m, err := j.Prepare(ctx, j.Domain, form)
			if err == nil {
				made = append(made, m)
			}
			return m, err
		},
	})
	for _, m := range made {
		m.Body().Release() //nolint:errcheck // the folder goes
	}
	all := make([]queue.Result, len(got))
	for i, one := range got {
		all[i] = queue.Result{Reply: one.Reply, Where: one.Where, Perhaps: one.Perhaps}
	}
	return all, schedule.Succeeded
}

// noNames resolves nothing: all domains are routed.
type noNames struct{}

func (noNames) LookupMX(context.Context, string) (resolve.MX, error) {
	return resolve.MX{}, errors.New("no DNS")
}

func (noNames) LookupAddrs(context.Context, string) ([]netip.Addr, error) {
	return nil, errors.New("no DNS")
}

// post is a queue on disk whose mail leaves by SMTP through dkim-sign.
type post struct {
	queue   *queue.Queue
	store   *pebble.Store
	servers []*smtptest.Server
	made    *atomic.Int32 // RSA operations
	zone    zone
}

// newPost makes a post with a server for each kind of them: one that can carry
// everything, one that knows 8BITMIME, and one that knows nothing. Domains are
// spread over them by their last digit.
func newPost(t testing.TB) *post {
	t.Helper()
	p := &post{made: new(atomic.Int32), zone: zone{}}
	for _, extensions := range [][]string{nil, {"8BITMIME", "PIPELINING"}, {}} {
		s, err := smtptest.Listen("127.0.0.1:0", smtptest.Options{Extensions: extensions})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		p.servers = append(p.servers, s)
	}
	chain := p.signing(t)
	exit, err := smtp.New(smtp.Options{
		Resolver: noNames{}, Hello: "mx.example.org",
		Routes: func(domain string) []smtp.Hop {
			name, _, _ := strings.Cut(domain, ".")
			at := p.servers[int(name[len(name)-1]-'0')%len(p.servers)].AddrPort()
			return []smtp.Hop{{Host: at.Addr().String(), Port: at.Port()}}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if p.store, err = pebble.Open(pebble.Options{Dir: t.TempDir(), LowBytes: -1, LowInodes: -1}); err != nil {
		t.Fatal(err)
	}
	p.queue, err = queue.Open(queue.Options{
		Store: p.store, Spool: p.store, Log: slog.New(slog.DiscardHandler), Host: "mx.example.org",
		Channels: []queue.Channel{{Name: "remote", Exit: remote{exit}, Backoff: schedule.Qmail(schedule.QmailRemote), Limit: 20}},
		Route:    func(address string) (channel, domain string) { return "remote", envelope.Domain(address) },
		Prepare: func(ctx context.Context, j *queue.Job, host string, form message.Form) (message.Message, error) {
			m, fate, _ := chain.Deliver(ctx, &pipeline.Delivery{ID: j.ID.String(), Envelope: j.Envelope, Origin: pipeline.Origin{Standing: pipeline.Local.String()}, Host: host, Form: form}, j.Message)
			if fate.Action != pipeline.Continue {
				return m, fmt.Errorf("%v: %s", fate.Action, fate.Reason)
			}
			return m, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		p.queue.Close(ctx) //nolint:errcheck // the test is over
		p.store.Close()
	})
	p.queue.Start()
	return p
}

// signing is the chain at the exit, with a key that is counted.
func (p *post) signing(t testing.TB) *pipeline.Chain {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "example.org", "sel.pem")
	key := testKey(t, 2048)
	writeKey(t, path, key)
	p.zone.publish(t, Key{Domain: "example.org", Selector: "sel", Signer: key})
	o := DefaultSignOptions()
	o.Keys = []string{dir}
	f, err := NewSignFilter(pipeline.Env{}, o)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f.keys.parsed[path] = parsedKey{stampOf(info), countingKey{key, p.made}, "counted"}
	chain, err := pipeline.NewChain("delivery", []pipeline.Step{{Name: SignName, Filter: f}}, pipeline.ChainOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

// send queues a message for 1,000 recipients in 100 domains.
func (p *post) send(t testing.TB, text string) {
	t.Helper()
	var to []string
	for i := range 1000 {
		to = append(to, fmt.Sprintf("r%d@d%d.example", i/100, i%100))
	}
	if _, err := p.queue.Submit(context.Background(), []queue.Submission{{Envelope: envelope.To("joe@example.org", to...), Message: message.FromString(text)}}); err != nil {
		t.Fatal(err)
	}
}

// taken waits until so many recipients have what was sent, and returns what the
// servers took.
func (p *post) taken(t testing.TB, recipients int) (all []smtptest.Message) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		all = nil
		n := 0
		for _, s := range p.servers {
			for _, m := range s.Messages() {
				n += len(m.Recipients)
				all = append(all, *m)
			}
		}
		if n >= recipients {
			return all
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d recipients have it", n, recipients)
		}
	}
}

// A message for a thousand recipients in a hundred domains costs one RSA
// operation on its way through the queue, or two where some servers can carry
// what others cannot; and each copy verifies.
func TestThousandThroughQueue(t *testing.T) {
	for name, c := range map[string]struct {
		body string
		most int32
	}{"7bit": {"Hello.\n", 1}, "8bit": {"Gr\xc3\xbc\xc3\x9fe\n", 2}} {
		t.Run(name, func(t *testing.T) {
			p := newPost(t)
			p.send(t, letter+c.body)
			all := p.taken(t, 1000)
			if n := p.made.Load(); n < 1 || n > c.most {
				t.Errorf("%d RSA operations for 1,000 recipients, want %d", n, c.most)
			}
			heard := map[string]int{}
			verified := map[string]bool{}
			for _, m := range all {
				for _, to := range m.Addresses() {
					heard[to]++
				}
				text := string(m.Content)
				if ok, seen := verified[text]; seen && ok {
					continue
				}
				got := p.zone.verify(t, text)
				verified[text] = len(got) == 1 && got[0].Result == Pass
				if !verified[text] {
					t.Errorf("%v\n%s", got, text)
				}
			}
			if len(all) < 100 || len(heard) != 1000 {
				t.Errorf("%d messages came to %d recipients", len(all), len(heard))
			}
			for to, n := range heard {
				if n != 1 {
					t.Errorf("%s has it %d times", to, n)
				}
			}
			t.Logf("%d transactions, %d RSA operations, %d different copies", len(all), p.made.Load(), len(verified))
		})
	}
}
