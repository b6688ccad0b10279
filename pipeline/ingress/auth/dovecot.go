package auth

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// DovecotOptions of a Dovecot. Only Socket is needed.
type DovecotOptions struct {
	// Socket is the path of Dovecot's client socket, which its configuration
	// opens for us by "service auth { unix_listener auth-client { ... } }".
	Socket string
	// Service is what we call ourselves there (%s in Dovecot's configuration);
	// "" means "smtp".
	Service string
	// Timeout is the longest time for one login (0: 30 s), Dovecot's own delay of
	// failures included.
	Timeout time.Duration
	// Concurrency bounds how many logins are under way at a time (0: 100).
	// Further ones wait.
	Concurrency int
	// Log hears when the connection is made or lost; nil means slog.Default.
	Log *slog.Logger
}

// Dovecot asks a Dovecot server, by its authentication protocol (version 1.1
// and up, as doc.dovecot.org describes it), with the mechanism PLAIN. All logins
// share one connection, which is made when it is first needed and again when it
// was lost; a login that was under way then is asked once more. Dovecot hears
// the client's address and whether it uses TLS, and may make clients wait that
// fail often.
//
// A failure that Dovecot calls temporary is trouble; so is everything that is
// not plainly a yes or a no.
type Dovecot struct {
	o      DovecotOptions
	asking slots
	// connecting is held by whoever makes the connection.
	connecting slots

	mu     sync.Mutex // guards what follows
	link   *link      // nil if there is none
	closed bool
}

// NewDovecot checks the options. Nothing is connected yet: Dovecot may start
// after us.
func NewDovecot(o DovecotOptions) (*Dovecot, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Service == "" {
		o.Service = "smtp"
	}
	orTime(&o.Timeout, 30*time.Second)
	orNumber(&o.Concurrency, 100)
	if !filepath.IsAbs(o.Socket) {
		return nil, fmt.Errorf("dovecot's socket %q: it must be named by its absolute path", o.Socket)
	}
	if strings.ContainsFunc(o.Service, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("dovecot's service %q: a word, please", o.Service)
	}
	return &Dovecot{o: o, asking: make(slots, o.Concurrency), connecting: make(slots, 1)}, nil
}

// Authenticate asks Dovecot. The name is the one that Dovecot gives the user.
func (d *Dovecot) Authenticate(ctx context.Context, s *pipeline.Session, user, password string) (string, error) {
	if err := plausible(user, password); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, d.o.Timeout)
	defer cancel()
	if err := d.asking.take(ctx); err != nil {
		return "", trouble(err)
	}
	defer d.asking.give()
	request := d.request(s, user, password)
	for again := false; ; again = true {
		l, err := d.connect(ctx)
		if err != nil {
			return "", d.trouble(err)
		}
		r, err := l.ask(ctx, request)
		d.release(l)
		switch {
		case errors.Is(err, errLost) && !again:
			continue
		case err != nil:
			return "", d.trouble(err)
		}
		return d.result(r, user)
	}
}

func (d *Dovecot) trouble(err error) error {
	return trouble(fmt.Errorf("dovecot at %s: %w", d.o.Socket, err))
}

// request is the AUTH line after its id. The response is its last parameter, as
// the protocol wants it, and base64, so that nothing in it can end it.
func (d *Dovecot) request(s *pipeline.Session, user, password string) string {
	var b strings.Builder
	b.WriteString("PLAIN\tservice=" + d.o.Service + "\tnologin")
	if s.TLS != "" {
		b.WriteString("\tsecured")
	}
	if a := s.Peer.Addr().Unmap().WithZone(""); a.IsValid() {
		fmt.Fprintf(&b, "\trip=%s\trport=%d", a, s.Peer.Port())
	}
	b.WriteString("\tresp=" + base64.StdEncoding.EncodeToString([]byte("\x00"+user+"\x00"+password)))
	return b.String()
}

// result reads Dovecot's answer.
func (d *Dovecot) result(r dovecotReply, user string) (string, error) {
	detail := "dovecot says no"
	for _, key := range [...]string{"code", "reason"} {
		if v := r.values[key]; v != "" {
			detail += ", " + key + " " + reply.Clean(v, 200)
		}
	}
	switch {
	case r.command == "OK":
		name := r.values["user"]
		if name == "" {
			return user, nil
		}
		if plausible(name, "x") != nil {
			return "", d.trouble(errors.New("it names the user by what is no name"))
		}
		return name, nil
	case r.command == "CONT":
		return "", d.trouble(errors.New("it asks on after a whole PLAIN response"))
	case r.flags["temp"] || r.values["code"] == "temp_fail":
		return "", d.trouble(errors.New("a temporary failure; its log tells more: " + detail))
	}
	return "", refused(detail)
}

// connect gives the connection, or makes it. The caller must release it.
func (d *Dovecot) connect(ctx context.Context) (*link, error) {
	if l := d.current(); l != nil {
		return l, nil
	}
	if err := d.connecting.take(ctx); err != nil {
		return nil, err
	}
	defer d.connecting.give()
	if l := d.current(); l != nil {
		return l, nil
	}
	l, err := d.dial(ctx)
	if err != nil {
		return nil, err
	}
	d.o.Log.Info("connected to dovecot", "socket", d.o.Socket)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.link, l.users = l, 1
	return l, nil
}

// current is the connection that there is, with one user more.
func (d *Dovecot) current() *link {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.link == nil || d.link.err() != nil {
		return nil
	}
	d.link.users++
	return d.link
}

// release ends the use of a connection; the last one closes it if it is not
// wanted any more.
func (d *Dovecot) release(l *link) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l.users--; l.users == 0 && d.closed {
		l.end(errLost)
		<-l.done
	}
}

// Close gives up the connection when what is under way on it has ended. A login
// after that still works, with a connection of its own: a session that is older
// than the configuration may have one.
func (d *Dovecot) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.link != nil && d.link.users == 0 {
		d.link.end(errLost)
		<-d.link.done
	}
	return nil
}

// dial connects and shakes hands.
func (d *Dovecot) dial(ctx context.Context) (*link, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", d.o.Socket)
	if err != nil {
		return nil, err
	}
	l, err := shake(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	l.log = d.o.Log.With("socket", d.o.Socket)
	go l.listen()
	return l, nil
}
