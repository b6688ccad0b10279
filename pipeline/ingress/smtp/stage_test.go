package smtp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// stage is a server and what a dialogue can ask of it.
type stage struct {
	o           Options
	chain       pipeline.ChainOptions
	filters     []*fakeFilter
	relay       *fakeRelay
	sink        *fakeSink
	gate        *fakeGate
	peer        netip.AddrPort
	listener    *pipeListener
	log, script syncBuffer
	resets      counter
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *syncBuffer) Close() error { return nil }
func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// settings is the table of the dialogues' options.
var settings = map[string]func(st *stage, v string) error{
	"service":   func(st *stage, v string) (err error) { return word2(&st.o.Service, v, ParseService) },
	"tls":       func(st *stage, v string) error { return word2(&st.o.TLSMode, v, ParseTLSMode) },
	"greeting":  func(st *stage, v string) error { st.o.Greeting = v; return nil },
	"auth":      func(st *stage, _ string) error { st.o.Auth = fakeAuth{}; return nil },
	"authplain": func(st *stage, _ string) error { st.o.Auth, st.o.AuthPlain = fakeAuth{}, true; return nil },
	"requiretls": func(st *stage, _ string) error {
		st.o.RequireTLS = true
		return nil
	},
	"late":        func(st *stage, _ string) error { st.o.Late = true; return nil },
	"whole":       func(*stage, string) error { return nil },
	"plainclient": func(*stage, string) error { return nil },
	"repair":      func(st *stage, _ string) error { lines := message.Repair; st.o.Lines = &lines; return nil },
	"size": func(st *stage, v string) (err error) {
		st.o.Limits.Message, err = strconv.ParseInt(v, 10, 64)
		return err
	},
	"recipients": func(st *stage, v string) error { return number(&st.o.Limits.Recipients, v) },
	"head":       func(st *stage, v string) error { return number(&st.o.Limits.Head, v) },
	"fields":     func(st *stage, v string) error { return number(&st.o.Limits.Fields, v) },
	"messages":   func(st *stage, v string) error { return number(&st.o.Limits.Messages, v) },
	"bad":        func(st *stage, v string) error { return number(&st.o.Limits.BadCommands, v) },
	"idle":       func(st *stage, v string) error { return number(&st.o.Limits.Idle, v) },
	"unknown":    func(st *stage, v string) error { return number(&st.o.Limits.Unknown, v) },
	"logins":     func(st *stage, v string) error { return number(&st.o.Limits.Logins, v) },
	"pause":      func(st *stage, v string) error { return duration(&st.o.GreetPause, v) },
	"tarpit":     func(st *stage, v string) error { return duration(&st.o.Tarpit, v) },
	"judge":      func(st *stage, v string) error { return duration(&st.o.Timeouts.Judge, v) },
	"session":    func(st *stage, v string) error { return duration(&st.o.Timeouts.Session, v) },
	"transaction": func(st *stage, v string) error {
		return duration(&st.o.Timeouts.Transaction, v)
	},
	"slowsink": func(st *stage, v string) error { return duration(&st.sink.delay, v) },
	"proxies":  func(st *stage, v string) error { return prefix(&st.o.Proxies, v) },
	"xclient":  func(st *stage, v string) error { return prefix(&st.o.XClient, v) },
	"peer": func(st *stage, v string) (err error) {
		st.peer, err = netip.ParseAddrPort(v)
		return err
	},
	"name": func(st *stage, v string) error {
		confirmed, claimed, _ := strings.Cut(v, " ")
		st.o.Names = fakeNames{confirmed: confirmed, claimed: claimed}
		return nil
	},
	"slowname": func(st *stage, v string) (err error) {
		d, err := time.ParseDuration(v)
		st.o.Names = fakeNames{confirmed: "slow.example", delay: d}
		return err
	},
	"standing": func(st *stage, v string) error { st.relay.standing = pipeline.ParseStanding(v); return nil },
	"tlsstanding": func(st *stage, v string) error {
		s := pipeline.ParseStanding(v)
		st.relay.tlsStanding = &s
		return nil
	},
	"tlsadmit": func(st *stage, v string) error { return answers(&st.relay.tlsAdmit, v) },
	"env": func(st *stage, v string) error {
		key, value, _ := strings.Cut(v, "=")
		st.relay.env = map[string]string{key: value}
		return nil
	},
	"lot": func(st *stage, v string) error {
		address, lot, _ := strings.Cut(v, " ")
		if st.relay.lots == nil {
			st.relay.lots = map[string]string{}
		}
		st.relay.lots[address] = lot
		return nil
	},
	"admit":  func(st *stage, v string) error { return answers(&st.relay.admit, v) },
	"sender": func(st *stage, v string) error { return answers(&st.relay.sender, v) },
	"gate":   func(st *stage, v string) error { return answers(&st.gate.err, v) },
	"sink":   func(st *stage, v string) error { return answers(&st.sink.err, v) },
	"mixed": func(st *stage, v string) error {
		return word2(&st.chain.Mixed, v, pipeline.ParseMixed)
	},
	"reports":    func(st *stage, _ string) error { st.o.Report = fakeReport; return nil },
	"mend":       func(st *stage, _ string) error { st.o.Mend = fakeMend; return nil },
	"transcript": func(st *stage, _ string) error { st.o.Transcript = st.transcript; return nil },
	"filter":     (*stage).filter,
	// These are about the filter before.
	"hangup": func(st *stage, v string) error {
		end, ok := map[string]pipeline.HangUp{"after": pipeline.HangUpAfter, "at once": pipeline.HangUpAtOnce}[v]
		if !ok || len(st.filters) == 0 {
			return errors.New("say hangup: after|at once behind a filter")
		}
		st.filters[len(st.filters)-1].verdict.HangUp = end
		return nil
	},
	"remark": func(st *stage, v string) error {
		if len(st.filters) == 0 {
			return errors.New("say remark: TEXT behind a filter")
		}
		said := &st.filters[len(st.filters)-1].verdict.Remarks
		*said = append(*said, strings.ReplaceAll(v, `\r\n`, "\r\n"))
		return nil
	},
}

func (st *stage) transcript(*pipeline.Session) io.WriteCloser { return &st.script }

func word2[T any](to *T, s string, parse func(string) (T, bool)) error {
	v, ok := parse(s)
	if *to = v; !ok {
		return fmt.Errorf("unknown word %q", s)
	}
	return nil
}

func number(to *int, s string) (err error) {
	*to, err = strconv.Atoi(s)
	return err
}

func duration(to *time.Duration, s string) (err error) {
	*to, err = time.ParseDuration(s)
	return err
}

func prefix(to *[]netip.Prefix, s string) error {
	p, err := netip.ParsePrefix(s)
	*to = append(*to, p)
	return err
}

func answers(to *error, s string) error {
	r, ok := reply.Parse(s)
	if *to = reply.With(r, errors.New("the test says so")); !ok {
		return fmt.Errorf("%q is no reply", s)
	}
	return nil
}

var filterOption = regexp.MustCompile(`^(\w+) (\w+)(?: after (\S+))?(?: (\d.*?))?(?: when (\w+)=(.*))?$`)

// filter is the option "filter: STAGE ACTION [after TIME] [REPLY] [when KEY=VALUE]".
func (st *stage) filter(v string) error {
	m := filterOption.FindStringSubmatch(v)
	if m == nil {
		return errors.New("say filter: STAGE ACTION [after TIME] [REPLY] [when KEY=VALUE]")
	}
	f := &fakeFilter{key: m[5], value: m[6], resets: &st.resets}
	found := false
	for s := pipeline.AtConnect; s <= pipeline.AtMessage; s++ {
		if s.String() == m[1] {
			f.stage, found = s, true
		}
	}
	action, ok := reply.ParseAction(m[2])
	f.verdict.Action = action
	if m[4] != "" {
		r, parsed := reply.Parse(m[4])
		f.verdict.Reply, ok = r, ok && parsed
	}
	if m[3] != "" {
		d, err := time.ParseDuration(m[3])
		if f.delay = d; err != nil {
			return err
		}
	}
	if !ok || !found {
		return errors.New("unknown stage, action or reply")
	}
	st.filters = append(st.filters, f)
	return nil
}

func fakeReport(_ context.Context, tx *pipeline.Transaction, refused []pipeline.Refusal, _ message.Message) ([]pipeline.Outgoing, error) {
	text := "To: " + tx.Envelope.Sender + "\n\n"
	for _, r := range refused {
		text += r.Recipient.Address + " " + r.Reply.SMTP() + "\n"
	}
	o := pipeline.Outgoing{Message: message.FromString(text)}
	o.Envelope.Recipients = append(o.Envelope.Recipients, tx.Envelope.Recipients[0])
	return []pipeline.Outgoing{o}, nil
}

func fakeMend(_ context.Context, s *pipeline.Session, _ *envelope.Envelope, m message.Message) (message.Message, error) {
	h, err := m.Head().Edit(message.FieldEdit{Op: message.Append, Name: "Mended", Value: "for " + s.User})
	return m.WithHead(h), err
}

// newStage makes a server as options say. The caller ends it with stop.
func newStage(t *testing.T, options []setting) *stage {
	t.Helper()
	st := &stage{
		relay: &fakeRelay{}, sink: &fakeSink{}, gate: &fakeGate{}, listener: newPipeListener(),
		peer: netip.MustParseAddrPort("192.0.2.1:4321"),
	}
	ours := func(d string) bool { return d == "example.org" }
	st.relay.ours = ours
	st.o = Options{
		Listener: st.listener, Hostname: "mx.example.org", Sink: st.sink, Relay: st.relay, Gate: st.gate, Ours: ours,
		Log: slog.New(slog.NewTextHandler(&st.log, nil)), Ident: func() string { return "s1" },
		TLS: &tls.Config{Certificates: []tls.Certificate{makeCertificate()}},
	}
	for _, s := range options {
		set := settings[s.key]
		if set == nil {
			t.Fatalf("unknown option %q", s.key)
		}
		if err := set(st, s.value); err != nil {
			t.Fatalf("option %s: %v", s.key, err)
		}
	}
	st.o.Chains = generations(t, st.chain, st.filters...)
	return st
}
