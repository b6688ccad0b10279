package certs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// TestBackoff: an ACME server that is down is asked ever less often, by our
// clock, until somebody asks for it.
func TestBackoff(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	directory := "http://" + l.Addr().String() + "/dir"
	l.Close()
	now := time.Now()
	var log bytes.Buffer
	s, err := New(Options{
		State: t.TempDir(), Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(&log, nil)),
		ACME: &ACME{Names: []string{"mx.example.org"}, Directory: directory, Email: "a@example.org", Agreed: true, HTTP: "127.0.0.1:0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	attempts := func() int { return strings.Count(log.String(), "no TLS certificate from the ACME server") }
	ctx := context.Background()
	wait := s.acme.pass(ctx, false)
	for i, least := range backoff[:4] {
		if attempts() != i+1 {
			t.Fatalf("%d attempts, want %d: %s", attempts(), i+1, log.String())
		}
		if n := s.acme.names[0]; n.next.Sub(now) < least || n.next.Sub(now) > least+least/10 {
			t.Errorf("attempt %d is put off for %v, want %v to a tenth more", i+2, n.next.Sub(now), least)
		}
		if wait > check {
			t.Errorf("Manage would sleep for %v", wait)
		}
		now = now.Add(least - time.Second)
		s.acme.pass(ctx, false)
		if attempts() != i+1 {
			t.Errorf("an attempt before its time")
		}
		now = now.Add(least/10 + time.Second)
		wait = s.acme.pass(ctx, false)
	}
	before := attempts()
	s.acme.pass(ctx, true)
	if n := s.acme.names[0]; attempts() != before+1 || n.failures != 1 {
		t.Errorf("asked for: %d attempts more, %d failures", attempts()-before, n.failures)
	}
	for range 20 {
		s.acme.failed(s.acme.names[0], now, errors.New("x"))
	}
	if d := s.acme.names[0].next.Sub(now); d < 6*time.Hour || d > 7*time.Hour {
		t.Errorf("after many failures it waits %v", d)
	}
}

// TestCertmagicDefaults: nothing of ours is in certmagic's globals, and none of
// what they hold decides for us.
func TestCertmagicDefaults(t *testing.T) {
	s, err := New(Options{State: t.TempDir(), ACME: &ACME{Names: []string{"mx.example.org"}, Email: "A@example.org", Agreed: true, HTTP: "127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if certmagic.DefaultACME.Email != "" || certmagic.DefaultACME.Agreed || certmagic.Default.Storage == s.acme.storage || len(certmagic.Default.Issuers) > 0 {
		t.Error("certmagic's defaults were changed")
	}
	if i := s.acme.issuer; i.CA != certmagic.LetsEncryptProductionCA || !i.DisableTLSALPNChallenge || i.DisableHTTPChallenge || len(s.acme.config.Issuers) != 1 {
		t.Errorf("the issuer is for %s", i.CA)
	}
	if s.acme.config.Storage != s.acme.storage || s.acme.config.OnDemand != nil || !s.acme.config.OCSP.DisableStapling {
		t.Error("the configuration is not ours")
	}
}

// TestZapLog: what certmagic says is clean, short and bounded.
func TestZapLog(t *testing.T) {
	now := time.Now()
	var out bytes.Buffer
	handler := slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})
	logger := zap.New(&zapCore{log: slog.New(handler), now: func() time.Time { return now }, bound: &bound{}}).Named("obtain").With(zap.String("identifier", "mx.example.org"))
	logger.Debug("chatter")
	logger.Info("working")
	logger.Error("bad\x1b[31m\nlevel=ERROR msg=forged", zap.Error(fmt.Errorf("%s", strings.Repeat("e", 5000))), zap.Strings("names", []string{"a", "b"}))
	got := out.String()
	if strings.Contains(got, "chatter") || !strings.Contains(got, "level=DEBUG") || strings.Contains(got, "\x1b") || strings.Count(got, "\n") != 2 ||
		!strings.Contains(got, "identifier=mx.example.org") || !strings.Contains(got, `names="[a b]"`) || len(got) > 1000 || !strings.Contains(got, "level=WARN") {
		t.Errorf("%s", got)
	}
	out.Reset()
	for range 1000 {
		logger.Warn("again")
	}
	if n := strings.Count(out.String(), "\n"); n != logLines-2 {
		t.Errorf("%d lines of 1000", n)
	}
	out.Reset()
	now = now.Add(logWindow)
	logger.Warn("later")
	if !strings.Contains(out.String(), "left out") || !strings.Contains(out.String(), "lines=942") {
		t.Errorf("%s", out.String())
	}
}

// TestStorageLock: one holder at a time, over several storages of one folder,
// and a waiter that gives up.
func TestStorageLock(t *testing.T) {
	dir := t.TempDir()
	a, b := newStorage(dir), newStorage(dir)
	ctx := context.Background()
	if err := a.Lock(ctx, "issue mx.example.org"); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 3*lockPoll/2)
	defer cancel()
	if err := b.Lock(short, "issue mx.example.org"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second holder: %v", err)
	}
	if err := b.Lock(ctx, "another"); err != nil {
		t.Error(err)
	}
	if err := b.Unlock(ctx, "issue mx.example.org"); err == nil {
		t.Error("unlocked what it has not")
	}
	if err := a.Unlock(ctx, "issue mx.example.org"); err != nil {
		t.Error(err)
	}
	if err := b.Lock(ctx, "issue mx.example.org"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"another", "issue mx.example.org"} {
		if err := b.Unlock(ctx, name); err != nil {
			t.Error(err)
		}
	}
}
