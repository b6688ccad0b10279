package sdktest

import (
	"bytes"
	"context"
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/postern-mta/postern/plugins/sdk"
	"github.com/postern-mta/postern/plugins/wire"
)

func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		d = defaultTimeout
	}
	return context.WithTimeout(ctx, d)
}

// serve serves a plugin in this process until the test ends.
func serve(t testing.TB, s wire.PluginServer) wire.PluginClient {
	t.Helper()
	g, l := sdk.GRPC(s), bufconn.Listen(64<<10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(l)
	}()
	c, err := grpc.NewClient("passthrough:plugin", grpc.WithTransportCredentials(insecure.NewCredentials()), callOptions(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		g.Stop()
		<-done
	})
	return wire.NewPluginClient(c)
}

func callOptions() grpc.DialOption {
	return grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxReply), grpc.MaxCallSendMsgSize(1<<30))
}

// Build builds the Go program in a directory and gives its path.
func Build(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plugin")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// startTimeout is how long a program may take to say where it listens.
const startTimeout = 30 * time.Second

// Start starts a program until the test ends, as Postern would, for tests that
// make calls of their own. What it writes to its standard error is in the log of a
// test that fails.
func Start(t testing.TB, command ...string) wire.PluginClient {
	t.Helper()
	log := new(safeBuffer)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin"}
	c := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  plugin.HandshakeConfig{ProtocolVersion: wire.Version, MagicCookieKey: wire.CookieName, MagicCookieValue: wire.CookieValue},
		Plugins:          plugin.PluginSet{wire.Service: new(client)},
		Cmd:              cmd,
		SkipHostEnv:      true,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		GRPCDialOptions:  []grpc.DialOption{callOptions()},
		StartTimeout:     startTimeout,
		Stderr:           log,
		Logger:           hclog.NewNullLogger(),
	})
	t.Cleanup(func() {
		c.Kill()
		if t.Failed() && log.String() != "" {
			t.Logf("%s wrote:\n%s", filepath.Base(command[0]), log)
		}
	})
	fail := func(what string, err error) {
		t.Helper()
		t.Fatalf("%s %s: %v", command[0], what, err)
	}
	p, err := c.Client()
	if err != nil {
		fail("did not start", err)
	}
	if err := p.Ping(); err != nil {
		fail("is not well", err)
	}
	raw, err := p.Dispense(wire.Service)
	if err != nil {
		fail("has no calls", err)
	}
	return raw.(wire.PluginClient)
}

// client is Postern's end of a plugin in go-plugin's words.
type client struct{ plugin.NetRPCUnsupportedPlugin }

// GRPCServer implements plugin.GRPCPlugin; nobody serves by it.
func (*client) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }

// GRPCClient implements plugin.GRPCPlugin.
func (*client) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return wire.NewPluginClient(c), nil
}

// safeBuffer is written by one goroutine and read by another.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// maxLog is how much of a program's output is kept, from its beginning.
const maxLog = 32 << 10

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b.Write(p[:min(len(p), maxLog-s.b.Len())])
	return len(p), nil
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
