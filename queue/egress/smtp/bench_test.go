package smtp_test

import (
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// BenchmarkRelay sends messages of 4 KiB one after the other, in the ways in which
// a connection can be had, and says how many times as long each takes as the
// cheapest: a kept connection in clear.
func BenchmarkRelay(b *testing.B) {
	text := "Subject: x\n\n" + string(make4K())
	var floor time.Duration
	for _, c := range []struct {
		name string
		o    smtp.Options
		tls  bool
		full bool // no tickets: a new Exit each time
	}{
		{name: "clear kept", o: smtp.Options{TLS: fixed(smtp.TLSPolicy{Level: smtp.NoTLS})}},
		{name: "clear new", o: smtp.Options{TLS: fixed(smtp.TLSPolicy{Level: smtp.NoTLS}), Idle: -1}},
		{name: "TLS kept", tls: true},
		{name: "TLS new, by ticket", o: smtp.Options{Idle: -1}, tls: true},
		{name: "TLS new, whole handshake", o: smtp.Options{Idle: -1}, tls: true, full: true},
	} {
		b.Run(c.name, func(b *testing.B) {
			n := newInternet(b)
			s := n.put("d.test", "192.0.2.1", smtptest.Options{
				Keep: smtptest.KeepNothing, TLS: smtptest.TLS(smtptest.NewAuthority(b).Issue(b, time.Time{}, "d.test")),
			})
			j := job("d.test", "r@d.test")
			j.Content = message.FromString(text)
			c.o.MaxMessages = 1 << 30
			x := n.exit(c.o)
			for b.Loop() {
				if c.full {
					x = n.exit(c.o)
				}
				if r := x.Deliver(b.Context(), j)[0]; r.Reply.Class != reply.Success || (r.TLS.Version != 0) != c.tls {
					b.Fatalf("%+v", r)
				}
			}
			each := b.Elapsed() / time.Duration(b.N)
			if floor == 0 {
				floor = each
			}
			st := s.Stats()
			b.ReportMetric(float64(each)/float64(floor), "x-kept-in-clear")
			b.ReportMetric(float64(st.Messages)/float64(st.Connections), "messages/connection")
		})
	}
}

func make4K() []byte {
	line := []byte("0123456789012345678901234567890123456789012345678901234567890123456789\n")
	var all []byte
	for len(all) < 4<<10 {
		all = append(all, line...)
	}
	return all
}
