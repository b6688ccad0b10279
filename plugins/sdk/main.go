package sdk

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"github.com/postern-mta/postern/plugins/wire"
)

// Main is the whole main function of a plugin. Started by Postern it serves until
// it is told to end; started by hand it says what it is, and its options --help and
// --version say more. It does not return.
func Main[O any](p Plugin[O]) {
	g, err := p.program()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(2)
	}
	if os.Getenv(wire.CookieName) != wire.CookieValue {
		os.Exit(g.byHand(os.Args, os.Stdout, os.Stderr))
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: timeless})))
	go endWithParent()
	if !serve(&server{program: g, filters: map[uint64]*filter{}}) {
		os.Exit(1)
	}
	os.Exit(0)
}

// timeless leaves the time of a log line to Postern's log.
func timeless(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// maxRequest is the greatest call in bytes: a head of any configured size, and the
// envelope of a mailing list.
const maxRequest = 64 << 20

// GRPC makes the gRPC server of a plugin, with its limits, for tests; Main has one
// of its own.
func GRPC(s wire.PluginServer, options ...grpc.ServerOption) *grpc.Server {
	g := grpc.NewServer(append(options, grpc.MaxRecvMsgSize(maxRequest), grpc.MaxSendMsgSize(wire.MaxReply))...)
	wire.RegisterPluginServer(g, s)
	return g
}

// serve speaks go-plugin's protocol until Postern ends it. It reports whether
// anybody has called: if not, its log says why nobody could.
func serve(s wire.PluginServer) bool {
	o := &outputs{error: os.Stderr}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{ProtocolVersion: wire.Version, MagicCookieKey: wire.CookieName, MagicCookieValue: wire.CookieValue},
		Plugins:         plugin.PluginSet{wire.Service: &service{}},
		GRPCServer: func(options []grpc.ServerOption) *grpc.Server {
			return GRPC(s, append(options, grpc.StatsHandler(o))...)
		},
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: os.Stderr, DisableTime: true}),
	})
	return o.called.Load()
}

// service is the plugin in go-plugin's words. The calls are registered with the
// server, since they need its options.
type service struct{ plugin.NetRPCUnsupportedPlugin }

// GRPCServer implements plugin.GRPCPlugin.
func (*service) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }

// GRPCClient implements plugin.GRPCPlugin.
func (*service) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return wire.NewPluginClient(c), nil
}

// outputs gives the program its standard error back, and as its standard output,
// too: go-plugin puts pipes in the place of both, and a writer to them would wait
// for ever for a host that does not fetch what is in them.
type outputs struct {
	once   sync.Once
	error  *os.File
	called atomic.Bool
}

// TagConn implements stats.Handler. It comes before any call.
func (o *outputs) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	o.once.Do(func() {
		os.Stdout, os.Stderr = o.error, o.error
		o.called.Store(true)
	})
	return ctx
}

// HandleConn implements stats.Handler.
func (*outputs) HandleConn(context.Context, stats.ConnStats) {}

// TagRPC implements stats.Handler.
func (*outputs) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements stats.Handler.
func (*outputs) HandleRPC(context.Context, stats.RPCStats) {}

// parentCheck is how often a plugin looks whether its parent is there.
const parentCheck = 2 * time.Second

// endWithParent ends a program that nobody can call any more, or end.
func endWithParent() {
	parent := os.Getppid()
	for range time.Tick(parentCheck) {
		if os.Getppid() != parent {
			slog.Error("Postern is gone: the plugin ends")
			os.Exit(1)
		}
	}
}
