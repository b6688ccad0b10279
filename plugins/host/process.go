package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	starting "github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/postern-mta/postern/plugins/wire"
)

const (
	// stopTime is how long a plugin may take to end when it is asked to.
	stopTime = 3 * time.Second
	// healthTime is how long it may take to say that it is well.
	healthTime = 5 * time.Second
	// idleTime is after how long without calls a connection is given up: one that
	// has lost its process must not be tried for ever.
	idleTime = time.Minute
	// maxTrailer bounds what comes around an answer, as the text of an error, in
	// bytes.
	maxTrailer = 64 << 10
)

// process is one process of a plugin, and the connection to it.
type process struct {
	log    *slog.Logger
	runner *runner
	client *plugin.Client
	rpc    wire.PluginClient
	health grpc_health_v1.HealthClient
	pid    int

	// calls are those that it has now; guarded by its pool.
	calls int
	// late counts the calls in a row that it did not answer in time.
	late atomic.Int32
	// answered is set once it has answered a call.
	answered atomic.Bool
	// suspect has room for one word that it should be looked at.
	suspect chan struct{}
	// used is the processor time that it may use before it is replaced, 0 for all.
	used time.Duration

	mu   sync.Mutex
	told map[uint64]*telling // by handle
}

// telling is what a process was told of a filter, or is being told.
type telling struct {
	done chan struct{} // closed behind the answer
	// reply and err are the answer.
	reply *wire.ConfigureReply
	err   error
}

// peer is a plugin as go-plugin dispenses it.
type peer struct {
	plugin.NetRPCUnsupportedPlugin
}

// GRPCServer is the plugin's half.
func (peer) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error {
	return errors.New("this is no plugin")
}

// GRPCClient is ours.
func (peer) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return c, nil
}

// withoutBroker refuses the stream by which a plugin offers go-plugin further
// connections. Nobody takes them here, and go-plugin would remember each.
func withoutBroker(ctx context.Context, d *grpc.StreamDesc, c *grpc.ClientConn, method string, stream grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
	if strings.HasPrefix(method, "/plugin.GRPCBroker/") {
		return nil, status.Error(codes.Unimplemented, "no further connections")
	}
	return stream(ctx, d, c, method, o...)
}

// launch starts a process, and waits until it is well.
func launch(ctx context.Context, r *runner, temporary string) (*process, error) {
	p := &process{log: r.log, runner: r, suspect: make(chan struct{}, 1), told: map[uint64]*telling{}, used: r.settings.CPU * 8 / 10}
	p.client = plugin.NewClient(p.clientConfig(temporary))
	ctx, cancel := context.WithTimeout(ctx, r.settings.Timeout)
	defer cancel()
	err := p.connect(ctx)
	if err == nil {
		err = r.binary.unchanged()
	}
	if err == nil {
		return p, nil
	}
	err = p.explain(ctx, err)
	p.kill()
	return nil, err
}

func (p *process) clientConfig(temporary string) *plugin.ClientConfig {
	r := p.runner
	return &plugin.ClientConfig{
		HandshakeConfig:  plugin.HandshakeConfig{ProtocolVersion: wire.Version, MagicCookieKey: wire.CookieName, MagicCookieValue: wire.CookieValue},
		VersionedPlugins: map[int]plugin.PluginSet{wire.Version: {wire.Service: peer{}}},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (starting.Runner, error) {
			os.Remove(dir) //nolint:errcheck // nothing is in it, and nothing will be
			r.env = cmd.Env
			return r, nil
		},
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: temporary},
		SkipHostEnv:      true, StartTimeout: r.settings.Timeout,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		SyncStdout:       r.out, SyncStderr: r.err, Logger: hclog.NewNullLogger(),
		GRPCDialOptions: []grpc.DialOption{
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxReply)), grpc.WithIdleTimeout(idleTime),
			grpc.WithMaxHeaderListSize(maxTrailer), grpc.WithContextDialer(r.dial), grpc.WithStreamInterceptor(withoutBroker),
		},
	}
}

// connect starts the program and waits for its first answer. go-plugin knows no
// context: what it waits for ends when the process does.
func (p *process) connect(ctx context.Context) error {
	connected := make(chan error, 1)
	go func() {
		protocol, err := p.client.Client()
		if err == nil {
			err = p.dispense(protocol)
		}
		connected <- err
	}()
	select {
	case err := <-connected:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		p.runner.abort()
		<-connected
		return ctx.Err()
	}
	p.pid = p.runner.process.Load().Pid()
	return p.check(ctx)
}

func (p *process) dispense(protocol plugin.ClientProtocol) error {
	raw, err := protocol.Dispense(wire.Service)
	if err != nil {
		return err
	}
	conn, ok := raw.(*grpc.ClientConn)
	if !ok {
		return fmt.Errorf("dispensed a %T", raw)
	}
	p.rpc, p.health = wire.NewPluginClient(conn), grpc_health_v1.NewHealthClient(conn)
	return nil
}

// check asks whether it is well.
func (p *process) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthTime)
	defer cancel()
	r, err := p.health.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: plugin.GRPCServiceName})
	switch {
	case err != nil:
		return fmt.Errorf("it does not say that it is well: %w", remote(err))
	case r.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
		return fmt.Errorf("it says that it is not well (%v)", r.GetStatus())
	}
	return nil
}

// gone is closed when the process has ended.
func (p *process) gone() <-chan struct{} { return p.runner.process.Load().Done() }

// ended says how it has ended, nil if it has not.
func (p *process) ended() error {
	started := p.runner.process.Load()
	if started == nil {
		return nil
	}
	select {
	case <-started.Done():
	default:
		return nil
	}
	ending, err := started.Wait(context.Background())
	if err != nil {
		return err
	}
	if ending.Signal == syscall.SIGKILL && p.runner.killed.Load() {
		return nil // by us
	}
	return fmt.Errorf("it has ended: %v", ending)
}

// explain says what an error at the start means.
func (p *process) explain(ctx context.Context, err error) error {
	switch text := err.Error(); {
	case p.runner.process.Load() == nil:
		return fmt.Errorf("it cannot be started: %w", err)
	case strings.Contains(text, "incompatible API version"):
		return fmt.Errorf("it speaks another version of the calls than %d: build it against this version of Postern", wire.Version)
	case strings.Contains(text, "incompatible core API version"), strings.Contains(text, "Unrecognized remote plugin message"), strings.Contains(text, "unsupported plugin protocol"):
		if ended := p.soonEnded(); ended != nil {
			return fmt.Errorf("%w, without the line that says where it listens; what it said is in the log", ended)
		}
		return fmt.Errorf("its first line is not that of a plugin (1|%d|unix|SOCKET|grpc): %s", wire.Version, cleanText(text, "nothing"))
	}
	if ended := p.soonEnded(); ended != nil {
		return ended
	}
	if ctx.Err() != nil {
		return fmt.Errorf("it is not ready within %v (timeout): %s", p.runner.settings.Timeout, cleanText(err.Error(), ""))
	}
	return err
}

// soonEnded is ended for a process that may be about to end.
func (p *process) soonEnded() error {
	t := time.NewTimer(100 * time.Millisecond)
	defer t.Stop()
	select {
	case <-p.gone():
	case <-t.C:
	}
	return p.ended()
}

// stop has the process end, in peace if it will, and waits for it. It must have
// no calls any more.
func (p *process) stop() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.client.Kill()
	}()
	t := time.NewTimer(stopTime)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
	p.runner.abort()
	<-done
	p.runner.end()
}

// kill ends the process at once.
func (p *process) kill() {
	p.runner.abort()
	if p.runner.process.Load() != nil {
		<-p.gone()
	}
	p.client.Kill()
	p.runner.end()
}

// doubt has the supervisor look at the process soon.
func (p *process) doubt() {
	select {
	case p.suspect <- struct{}{}:
	default:
	}
}

// configure tells the process of a filter, unless it knows it: once, however many
// calls want that, and not for the time of one of them only.
func (p *process) configure(ctx context.Context, c *wire.ConfigureRequest) (*wire.ConfigureReply, error) {
	p.mu.Lock()
	t := p.told[c.GetHandle()]
	if t == nil {
		t = &telling{done: make(chan struct{})}
		p.told[c.GetHandle()] = t
		go p.tell(c, t)
	}
	p.mu.Unlock()
	select {
	case <-t.done:
		return t.reply, t.err
	case <-ctx.Done():
		return nil, p.failed(ctx, ctx.Err())
	}
}

// tell tells the process of a filter. A process that has a filter of that handle
// has this one: a handle is never used again, and its answer was lost.
func (p *process) tell(c *wire.ConfigureRequest, t *telling) {
	ctx, cancel := context.WithTimeout(context.Background(), p.runner.settings.Timeout)
	defer cancel()
	defer close(t.done)
	t.reply, t.err = p.rpc.Configure(ctx, c)
	if status.Code(t.err) == codes.AlreadyExists {
		t.err = nil
	}
	if t.err != nil {
		t.err = p.failed(ctx, t.err)
	}
	if t.err != nil || len(t.reply.GetProblems()) > 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.told, c.GetHandle())
	}
}

// forget tells it that a handle is not used any more.
func (p *process) forget(ctx context.Context, handle uint64) {
	p.mu.Lock()
	t := p.told[handle]
	delete(p.told, handle)
	p.mu.Unlock()
	if t == nil {
		return
	}
	select {
	case <-t.done:
	case <-ctx.Done():
	}
	p.rpc.Forget(ctx, &wire.ForgetRequest{Handle: handle}) //nolint:errcheck // it costs the plugin a little memory
}

// failed is the error of a call, in words.
func (p *process) failed(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("given up: %w", ctx.Err())
	case ctx.Err() != nil, status.Code(err) == codes.DeadlineExceeded:
		p.late.Add(1)
		p.doubt()
		return fmt.Errorf("the plugin did not answer in time: %w", context.DeadlineExceeded)
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.Canceled:
		if ended := p.soonEnded(); ended != nil {
			return fmt.Errorf("the plugin died in mid-call: %w", ended)
		}
		p.doubt()
		return fmt.Errorf("the plugin has closed the connection: %w", remote(err))
	case codes.ResourceExhausted:
		return fmt.Errorf("a call or answer is too large: %w", remote(err))
	case codes.Unimplemented:
		return fmt.Errorf("the plugin does not know this call: %w", remote(err))
	}
	return fmt.Errorf("the plugin fails: %w", remote(err))
}

// remote is an error that came from the plugin, cleaned.
func remote(err error) error {
	if s, ok := status.FromError(err); ok {
		return errors.New(cleanText(s.Message(), s.Code().String()))
	}
	return errors.New(cleanText(err.Error(), "an error"))
}
