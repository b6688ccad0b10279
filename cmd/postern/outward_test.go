package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// testOutward is a way out without a daemon.
func testOutward(t *testing.T, text string) *outward {
	t.Helper()
	c, err := config.Parse("postern.toml", []byte("hostname = \"mx.example.org\"\ncontrol = \"\"\n"+text), loadOptions(quietEnv()))
	if err != nil {
		t.Fatal(err)
	}
	out, err := newOutward(c, here{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.close(context.Background()) })
	return out
}

// here has every host at one address of this machine, and knows no MX.
type here struct{ noDNS }

func (here) LookupAddrs(context.Context, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

// TestOutwardDeliver: whichever limit it is, it is never exceeded, and who waits is
// delivered in the end.
func TestOutwardDeliver(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		config string
		most   int64 // connections at a time
	}{
		"site":               {"[site.default]\nconnections = 2\nconnection_rate = \"none\"\n", 2 * outwardSites},
		"group":              {"[site.all]\ndomains = [\".test\"]\nconnections = 3\nconnection_rate = \"none\"\n", 3},
		"address":            {"[site.default]\nconnection_rate = \"none\"\n[address.default]\nconnections = 2\nconnection_rate = \"none\"\n", 2},
		"source":             {"[site.default]\nconnection_rate = \"none\"\n[source.default]\nconnections = 3\n", 3},
		"messages":           {"[site.default]\nmessage_rate = \"10/s\"\nconnection_rate = \"none\"\n", 0},
		"message each":       {"[site.default]\nmessages_per_connection = 1\nconnections = 2\nconnection_rate = \"none\"\n", 2 * outwardSites},
		"no connection kept": {"[site.default]\nconnections = 1\nconnection_rate = \"none\"\n[outbound]\nkeep = \"0s\"\n", outwardSites},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sink := smtptest.Start(t, smtptest.Options{Latency: 2 * time.Millisecond, Keep: smtptest.KeepNothing})
			var routes strings.Builder
			routes.WriteString("[route]\n")
			for i := range outwardSites {
				fmt.Fprintf(&routes, "\"d%d.test\" = \"h%d.test:%d\"\n", i, i, sink.AddrPort().Port())
			}
			out := testOutward(t, routes.String()+c.config)
			var all sync.WaitGroup
			const each = 10
			for i := range outwardSites * each {
				domain := fmt.Sprintf("d%d.test", i%outwardSites)
				all.Go(func() {
					job := &smtp.Job{Domain: domain, Envelope: envelope.To("a@b.test", "r@"+domain), Content: message.FromString("Subject: x\n\n")}
					if r := out.deliver(t.Context(), job, "", time.Minute)[0]; r.Reply.Class != reply.Success {
						t.Errorf("%+v", r)
					}
				})
			}
			all.Wait()
			if st := sink.Stats(); st.Messages != outwardSites*each || c.most > 0 && st.MostOpen > c.most {
				t.Errorf("%+v", st)
			}
		})
	}
}

// outwardSites is how many sites are delivered to.
const outwardSites = 4
