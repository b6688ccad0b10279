package certs

import (
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/net/netutil"
)

// Bounds of the server that answers http-01. The whole Internet can reach it.
const (
	maxChallengeClients = 64
	maxChallengeHeader  = 8 << 10 // bytes
	challengeTimeout    = 10 * time.Second
)

// serve answers http-01 until the function that it returns is called. The
// listener stays open.
func (m *manager) serve() (stop func()) {
	if m.http == nil {
		return func() {}
	}
	// A listener of its own, since closing the server closes its listener.
	l, err := double(m.http)
	if err != nil {
		l = m.http
	}
	server := &http.Server{
		Handler:           m.issuer.HTTPChallengeHandler(http.NotFoundHandler()),
		ReadTimeout:       challengeTimeout,
		ReadHeaderTimeout: challengeTimeout,
		WriteTimeout:      challengeTimeout,
		MaxHeaderBytes:    maxChallengeHeader,
		ErrorLog:          slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
	}
	server.SetKeepAlivesEnabled(false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(netutil.LimitListener(l, maxChallengeClients))
	}()
	return func() {
		_ = server.Close()
		<-done
	}
}
