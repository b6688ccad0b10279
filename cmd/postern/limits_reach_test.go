package main

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// nobody is an address where nobody listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestTheSecondServerIsReached: that the first server of a site refuses connections, to
// however many at once, keeps no message from the second one; nor that it hangs up, where
// nobody else takes the room that this leaves.
func TestTheSecondServerIsReached(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]string{
		"refused": nobody(t), "hangs up": smtptest.New(t, smtptest.Step{At: smtptest.Connect, End: smtptest.Close}).Addr().String(),
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.2:0")
			if err != nil {
				t.Fatal(err)
			}
			second := smtptest.Serve(l, smtptest.Options{})
			t.Cleanup(func() { second.Close() })
			out := testOutward(t, fmt.Sprintf("[route]\n\"d.test\" = [%q, %q]\n[outbound]\nkeep = \"0s\"\n[site.default]\nconnection_rate = \"none\"\n", first, second.Addr()))
			deliver := func() smtp.Result {
				job := &smtp.Job{
					Domain: "d.test", Envelope: envelope.Envelope{Sender: "s@us.test", Recipients: []envelope.Recipient{{Address: "r@d.test"}}},
					Content: message.FromString("Subject: hello\n\nHello.\n"),
				}
				return out.deliver(t.Context(), job, "", 5*time.Minute)[0]
			}
			atOnce := map[string]int{"refused": 8, "hangs up": 1}[name]
			for range 5 {
				var wg sync.WaitGroup
				for range atOnce {
					wg.Go(func() {
						if r := deliver(); r.Reply.Class != reply.Success {
							t.Errorf("%+v", r)
						}
					})
				}
				wg.Wait()
			}
		})
	}
}
