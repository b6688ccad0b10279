// Package admin is the operator's door: an HTTP API on a Unix socket that only
// the daemon's user and root may open.
//
// It promises that a request which fails changes nothing, that bodies are
// bounded, and that whoever changes something is in the log.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline/state"
	"github.com/postern-mta/postern/plugins/host"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/store"
)

// Daemon is what the door opens on. The functions are called concurrently.
type Daemon struct {
	Log       *slog.Logger
	Status    func() api.Status
	Filters   func() []api.Filter
	SetFilter func(name string, s api.SetFilter) (api.Filter, error)
	Reload    func(context.Context) (api.Reload, error)
	// Queue and Store are the daemon's queue and its store; nil if it has none.
	Queue *queue.Queue
	Store Store
	// Release lets one message go on that a filter holds; it may be nil. Elsewhere
	// says whether a held message goes to another program when it is let go, and
	// not into the queue; nil: none does.
	Release   func(ctx context.Context, v *queue.View, r *api.QuarantineRelease) api.QuarantineResult
	Elsewhere func(v *queue.View) bool
	// State is what a filter of that name remembers; nil if there is none. The
	// function may be nil.
	State func(filter string) Space
	// Plugins tells of the plugins; nil: nothing is told.
	Plugins func() []host.Status
	// StateStats tells what the filters' state takes; nil: nothing is told.
	StateStats func() []state.Stats
	// Limits are those of what is sent; nil if nothing is.
	Limits Limits
	// Meter counts what the entrances take; nil: nothing is counted.
	Meter *Meter
	// Now is the clock; nil means the system's.
	Now func() time.Time
}

func (d Daemon) now() time.Time {
	if d.Now == nil {
		return time.Now()
	}
	return d.Now()
}

// ErrNotFound is wrapped by errors about what is not there, as SetFilter's for
// a filter is.
var ErrNotFound = errors.New("not found")

// maxBody bounds a request's body in bytes.
const maxBody = 64 << 10

// Server serves one Daemon.
type Server struct {
	http *http.Server
	ln   net.Listener
}

// Listen opens the socket at path, mode 0600. A socket that nobody answers on
// is replaced; one that somebody does is an error that names the process.
func Listen(path string, d Daemon) (*Server, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		defer c.Close()
		return nil, fmt.Errorf("admin socket %s: %s answers there already", path, process(c))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	old := unix.Umask(0o177)
	ln, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	s := &Server{ln: ln, http: &http.Server{
		Handler: d.routes(), ReadTimeout: 30 * time.Second, WriteTimeout: 120 * time.Second, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(d.Log.Handler(), slog.LevelWarn),
	}}
	return s, nil
}

// process says which process is at the other end of a Unix socket.
func process(c net.Conn) string {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return "another process"
	}
	var who *unix.Ucred
	raw.Control(func(fd uintptr) { //nolint:errcheck // who stays nil
		who, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil || who == nil {
		return "another process"
	}
	return fmt.Sprintf("process %d", who.Pid)
}

// Serve answers until Shutdown.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown lets requests that have begun end, and removes the socket.
func (s *Server) Shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }

func (d Daemon) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, d.Status(), nil) })
	mux.HandleFunc("GET /v1/filters", func(w http.ResponseWriter, _ *http.Request) { answer(w, d.Filters(), nil) })
	mux.HandleFunc("PUT /v1/filters/{name}", func(w http.ResponseWriter, r *http.Request) {
		var s api.SetFilter
		if err := read(r, &s); err != nil {
			answer(w, nil, err)
			return
		}
		f, err := d.SetFilter(r.PathValue("name"), s)
		answer(w, f, err)
	})
	mux.HandleFunc("POST /v1/reload", func(w http.ResponseWriter, r *http.Request) {
		done, err := d.Reload(r.Context())
		answer(w, done, err)
	})
	d.queueRoutes(mux)
	d.quarantineRoutes(mux)
	d.limitRoutes(mux)
	d.stateRoutes(mux)
	mux.Handle("GET /metrics", d.metrics())
	return mux
}

func read(r *http.Request, into any) error { return readUpTo(r, into, maxBody) }

// readUpTo reads a body of at most limit bytes.
func readUpTo(r *http.Request, into any, limit int64) error {
	d := json.NewDecoder(io.LimitReader(r.Body, limit))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("request: %w", err)
	}
	return nil
}

func answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		code := http.StatusBadRequest
		if errors.Is(err, ErrNotFound) || errors.Is(err, store.ErrNotFound) {
			code = http.StatusNotFound
		}
		w.WriteHeader(code)
		v = api.Error{Error: err.Error()}
	}
	json.NewEncoder(w).Encode(v) //nolint:errcheck // the client went away
}
