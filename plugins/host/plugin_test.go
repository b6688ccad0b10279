package host

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/postern-mta/postern/pipeline/program"
	"github.com/postern-mta/postern/plugins/wire"
)

// TestMain is this program in its three roles: the process that starts
// programs, a plugin, and the tests.
func TestMain(m *testing.M) {
	program.Main()
	if os.Getenv(wire.CookieName) == wire.CookieValue {
		actor(os.Args[1:])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// actor is a plugin that does what its arguments say: how it starts, and what it
// declares. What it does when it is asked says its option "do".
func actor(args []string) {
	p := &player{declared: &wire.Declaration{
		Name: "player", Version: "1", Doc: "does\nwhat it is told", Stages: []wire.Stage{wire.Stage_STAGE_MESSAGE}, Needs: wire.Needs_NEEDS_BODY,
		EditsHead: true, EditsBody: true, EditsEnvelope: true,
		Options: []*wire.Option{
			{Name: "do", Doc: "what to do", DefaultJson: `"nothing"`},
			{Name: "with", Type: wire.OptionType_OPTION_TYPE_STRINGS, Doc: "more of it"},
			{Name: "size", Type: wire.OptionType_OPTION_TYPE_SIZE, Doc: "a size"},
		},
	}}
	version := uint(wire.Version)
	for _, arg := range args {
		word, value, _ := strings.Cut(arg, "=")
		switch word {
		case "needs":
			p.declared.Needs = wire.Needs(wire.Needs_value["NEEDS_"+strings.ToUpper(value)])
		case "stages":
			p.declared.Stages = nil
			for _, s := range strings.Split(value, ",") {
				p.declared.Stages = append(p.declared.Stages, wire.Stage(wire.Stage_value["STAGE_"+strings.ToUpper(s)]))
			}
		case "meek":
			p.declared.EditsHead, p.declared.EditsBody, p.declared.EditsEnvelope = false, false, false
		case "advises":
			p.declared.Advises = true
		case "version":
			version = 99
		case "noname":
			p.declared.Name = ""
		case "changes": // is another one when there is a file
			if _, err := os.Stat(value); err == nil {
				p.declared.Advises = true
			}
		case "required":
			p.declared.Options[0].Required, p.declared.Options[0].DefaultJson = true, ""
		case "say":
			fmt.Fprintln(os.Stderr, value)
		default:
			misstart(word, value)
		}
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{ProtocolVersion: version, MagicCookieKey: wire.CookieName, MagicCookieValue: wire.CookieValue},
		Plugins:         plugin.PluginSet{wire.Service: stage{p: p}},
		GRPCServer:      plugin.DefaultGRPCServer, Logger: hclog.NewNullLogger(),
	})
}

// misstart does what a plugin should not do at its start.
func misstart(word, value string) {
	switch word {
	case "exit":
		os.Exit(0)
	case "crash":
		panic("at the start")
	case "hang":
		time.Sleep(time.Hour)
	case "stopped":
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	case "flood":
		flood(os.Stdout)
	case "closed":
		syscall.Close(1)
		syscall.Close(2)
	case "garbage":
		fmt.Println("hello, I am a program")
		time.Sleep(time.Hour)
	case "elsewhere":
		fmt.Printf("1|1|unix|%s|grpc\n", value)
		time.Sleep(time.Hour)
	case "mute": // listens, and does not speak HTTP/2
		path := filepath.Join(os.Getenv(plugin.EnvUnixSocketDir), "mute")
		if _, err := net.Listen("unix", path); err != nil {
			panic(err)
		}
		fmt.Printf("1|1|unix|%s|grpc\n", path)
		time.Sleep(time.Hour)
	case "child":
		leave(value)
	case "eat":
		eat()
	case "unless": // does not start when there is a file
		if _, err := os.Stat(value); err == nil {
			os.Exit(3)
		}
	case "once": // starts once only
		if _, err := os.Stat(value); err == nil {
			os.Exit(3)
		}
		if err := os.WriteFile(value, nil, 0o600); err != nil {
			panic(err)
		}
	default:
		panic("no such argument: " + word)
	}
}

// flood writes a gigabyte, without a newline.
func flood(f *os.File) {
	block := []byte(strings.Repeat("x", 1<<20))
	for range 1 << 10 {
		if _, err := f.Write(block); err != nil {
			return
		}
	}
}

// leave leaves a child behind, in a session of its own, that holds everything
// open.
func leave(name string) {
	c := exec.Command("/bin/sh", "-c", `trap "" TERM HUP INT; while :; do sleep 1; done # `+name)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		panic(err)
	}
}

// eat takes memory without end.
func eat() {
	var all [][]byte
	for {
		b := make([]byte, 16<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
		runtime.KeepAlive(all)
	}
}

// stage serves a player.
type stage struct {
	plugin.NetRPCUnsupportedPlugin
	p *player
}

func (s stage) GRPCServer(b *plugin.GRPCBroker, g *grpc.Server) error {
	s.p.broker = b
	wire.RegisterPluginServer(g, s.p)
	return nil
}

func (stage) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, os.ErrInvalid
}

// player is the plugin.
type player struct {
	wire.UnimplementedPluginServer
	declared *wire.Declaration
	broker   *plugin.GRPCBroker
	calls    atomic.Int64
	used     sync.Map // handles
	filters  [1 << 16]options
}

type options struct {
	Do   string   `json:"do"`
	With []string `json:"with"`
	Size int64    `json:"size"`
	dir  string
}

// slow is how long a filter with a "slow" in its option "with" takes to be
// configured, twice.
func (o *options) slow() time.Duration {
	for _, w := range o.With {
		if d, ok := strings.CutPrefix(w, "slow="); ok {
			n, _ := time.ParseDuration(d)
			return n
		}
	}
	return 0
}

func (p *player) Declare(context.Context, *wire.DeclareRequest) (*wire.Declaration, error) {
	return p.declared, nil
}

func (p *player) Configure(_ context.Context, r *wire.ConfigureRequest) (*wire.ConfigureReply, error) {
	o := options{dir: r.GetStateDir()}
	if err := json.Unmarshal(r.GetOptionsJson(), &o); err != nil {
		return nil, err
	}
	if o.Do == "wrong" {
		return &wire.ConfigureReply{Problems: []*wire.Problem{{Option: "do", Text: "wrong is\x1b wrong"}, {Text: "and all of it"}}}, nil
	}
	time.Sleep(o.slow())
	if _, used := p.used.LoadOrStore(r.GetHandle(), true); used { // as the SDK answers
		return nil, status.Error(codes.AlreadyExists, "the handle is in use")
	}
	p.filters[r.GetHandle()%uint64(len(p.filters))] = o
	time.Sleep(o.slow())
	return &wire.ConfigureReply{}, nil
}

func (p *player) Forget(_ context.Context, r *wire.ForgetRequest) (*wire.ForgetReply, error) {
	p.filters[r.GetHandle()%uint64(len(p.filters))] = options{Do: "forgotten"}
	return &wire.ForgetReply{}, nil
}

func (p *player) Judge(ctx context.Context, q *wire.JudgeRequest) (*wire.JudgeReply, error) {
	o := &p.filters[q.GetHandle()%uint64(len(p.filters))]
	if act, ok := acts[o.Do]; ok {
		return act(ctx, p, o, q)
	}
	return nil, status.Errorf(codes.Internal, "no act %q", o.Do)
}

// one is an answer with one verdict.
func one(v *wire.Verdict) (*wire.JudgeReply, error) {
	return &wire.JudgeReply{Verdicts: []*wire.Verdict{v}}, nil
}

func tag(name, value string) *wire.Edit {
	return &wire.Edit{Edit: &wire.Edit_Add{Add: &wire.AddField{Name: name, Value: []byte(value)}}}
}

// bodyOf is the message's body, wherever it is.
func bodyOf(q *wire.JudgeRequest) ([]byte, error) {
	if f := q.GetMessage().GetFile(); f != nil {
		all, err := os.ReadFile(f.GetPath())
		if err != nil {
			return nil, err
		}
		return all[f.GetOffset() : f.GetOffset()+f.GetSize()], nil
	}
	return q.GetMessage().GetInline(), nil
}

type act func(context.Context, *player, *options, *wire.JudgeRequest) (*wire.JudgeReply, error)

// acts are what a player can do.
var acts = map[string]act{
	"nothing": func(context.Context, *player, *options, *wire.JudgeRequest) (*wire.JudgeReply, error) {
		return &wire.JudgeReply{}, nil
	},
	"tag": func(_ context.Context, _ *player, _ *options, q *wire.JudgeRequest) (*wire.JudgeReply, error) {
		return one(&wire.Verdict{Edits: []*wire.Edit{tag("X-Seen", q.GetStage().String())}})
	},
	"touch": func(_ context.Context, _ *player, _ *options, q *wire.JudgeRequest) (*wire.JudgeReply, error) { // every 64th byte
		sum := 0
		look := func(b []byte) {
			for i := 0; i < len(b); i += 64 {
				sum += int(b[i])
			}
		}
		look(q.GetMessage().GetInline())
		if f := q.GetMessage().GetFile(); f != nil {
			opened, err := os.Open(f.GetPath())
			if err != nil {
				return nil, err
			}
			defer opened.Close()
			b, err := syscall.Mmap(int(opened.Fd()), 0, int(f.GetOffset()+f.GetSize()), syscall.PROT_READ, syscall.MAP_SHARED)
			if err != nil {
				return nil, err
			}
			look(b[f.GetOffset():])
			if err := syscall.Munmap(b); err != nil {
				return nil, err
			}
		}
		return one(&wire.Verdict{Edits: []*wire.Edit{tag("X-Sum", strconv.Itoa(sum))}})
	},
	"length": func(_ context.Context, _ *player, _ *options, q *wire.JudgeRequest) (*wire.JudgeReply, error) {
		b, err := bodyOf(q)
		if err != nil {
			return nil, err
		}
		text := fmt.Sprintf("head %d of %d, body %d of %d", len(q.GetMessage().GetHead()), q.GetMessage().GetHeadSize(), len(b), q.GetMessage().GetBodySize())
		return one(&wire.Verdict{Reason: text, Edits: []*wire.Edit{tag("X-Length", text)}})
	},
	"reject": func(_ context.Context, _ *player, o *options, _ *wire.JudgeRequest) (*wire.JudgeReply, error) {
		v := &wire.Verdict{Action: wire.Action_ACTION_REJECT, Reason: "told to"}
		if len(o.With) > 0 {
			v.Reply = &wire.Reply{Code: 550, Enhanced: "5.7.1", Text: o.With[0]}
		}
		return one(v)
	},
	"first": func(_ context.Context, _ *player, _ *options, _ *wire.JudgeRequest) (*wire.JudgeReply, error) {
		return &wire.JudgeReply{Verdicts: []*wire.Verdict{
			{Action: wire.Action_ACTION_REJECT, Recipients: []uint32{0}, Reason: "the first"},
			{Edits: []*wire.Edit{tag("X-Rest", "yes")}},
		}}, nil
	},
	"envelope": func(_ context.Context, _ *player, _ *options, _ *wire.JudgeRequest) (*wire.JudgeReply, error) {
		return one(&wire.Verdict{Edits: []*wire.Edit{
			{Edit: &wire.Edit_Sender{Sender: []byte("new@example.net")}},
			{Edit: &wire.Edit_AddRecipient{AddRecipient: []byte("more@example.org")}},
			{Edit: &wire.Edit_Copy{Copy: &wire.Copy{Sender: []byte("c@example.org"), Recipients: [][]byte{[]byte("archive@example.org")}, Fields: []*wire.Edit{tag("X-Copy", "1")}}}},
		}})
	},
	"body": func(_ context.Context, _ *player, o *options, q *wire.JudgeRequest) (*wire.JudgeReply, error) {
		b, err := bodyOf(q)
		if err != nil {
			return nil, err
		}
		b = append(append([]byte("above\n"), b...), strings.Join(o.With, "")...)
		if len(b) <= 64<<10 {
			return one(&wire.Verdict{Body: &wire.Verdict_Inline{Inline: b}})
		}
		path := filepath.Join(o.dir, "new"+strconv.FormatInt(time.Now().UnixNano(), 36))
		return answerFile(path, b)
	},
	"scrub": func(_ context.Context, _ *player, _ *options, q *wire.JudgeRequest) (*wire.JudgeReply, error) { // writes on what it is lent
		if f := q.GetMessage().GetFile(); f != nil {
			if err := os.WriteFile(f.GetPath(), []byte("scrubbed"), 0o600); err == nil {
				return one(&wire.Verdict{Reason: "scrubbed"})
			}
		}
		return one(&wire.Verdict{Reason: "could not"})
	},
	"offer": func(_ context.Context, p *player, _ *options, _ *wire.JudgeRequest) (*wire.JudgeReply, error) { // connections that nobody wants
		for id := range uint32(300) {
			go p.broker.Accept(id + 1) //nolint:errcheck // it ends with the process
		}
		time.Sleep(300 * time.Millisecond)
		return &wire.JudgeReply{}, nil
	},
	"die": func(context.Context, *player, *options, *wire.JudgeRequest) (*wire.JudgeReply, error) {
		os.Exit(7)
		return nil, nil
	},
	"panic": func(context.Context, *player, *options, *wire.JudgeRequest) (*wire.JudgeReply, error) {
		go panic("in mid-call")
		select {}
	},
	"hang": func(context.Context, *player, *options, *wire.JudgeRequest) (*wire.JudgeReply, error) { select {} },
	"stop": func(context.Context, *player, *options, *wire.JudgeRequest) (*wire.JudgeReply, error) {
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		select {} // it takes a moment
	},
	"wait": func(ctx context.Context, p *player, _ *options, _ *wire.JudgeRequest) (*wire.JudgeReply, error) {
		n := p.calls.Add(1)
		defer p.calls.Add(-1)
		time.Sleep(50 * time.Millisecond)
		return one(&wire.Verdict{Reason: fmt.Sprintf("%d at once", n)})
	},
	"flood": func(context.Context, *player, *options, *wire.JudgeRequest) (*wire.JudgeReply, error) {
		go flood(os.Stderr)
		return &wire.JudgeReply{}, nil
	},
	"burn": func(context.Context, *player, *options, *wire.JudgeRequest) (*wire.JudgeReply, error) {
		for processorTime(os.Getpid()) < 1700*time.Millisecond {
			runtime.Gosched()
		}
		return &wire.JudgeReply{}, nil
	},
	"large": func(context.Context, *player, *options, *wire.JudgeRequest) (*wire.JudgeReply, error) {
		return one(&wire.Verdict{Body: &wire.Verdict_Inline{Inline: make([]byte, wire.MaxReply+1)}})
	},
	"child": func(_ context.Context, _ *player, o *options, _ *wire.JudgeRequest) (*wire.JudgeReply, error) {
		leave(o.With[0])
		os.Exit(0)
		return nil, nil
	},
	"close": func(context.Context, *player, *options, *wire.JudgeRequest) (*wire.JudgeReply, error) {
		for fd := range 64 {
			syscall.Close(fd)
		}
		select {}
	},
	"eat": func(context.Context, *player, *options, *wire.JudgeRequest) (*wire.JudgeReply, error) {
		eat()
		return nil, nil
	},
	"file": func(_ context.Context, _ *player, o *options, _ *wire.JudgeRequest) (*wire.JudgeReply, error) { // names o.With[0] as its body
		return one(&wire.Verdict{Body: &wire.Verdict_Path{Path: strings.ReplaceAll(o.With[0], "STATE", o.dir)}})
	},
	"facts": func(_ context.Context, _ *player, o *options, q *wire.JudgeRequest) (*wire.JudgeReply, error) {
		t := q.GetTransaction()
		return one(&wire.Verdict{Reason: fmt.Sprintf("%s ip=%s helo=%s from=%s rcpt=%s to=%d size=%d", q.GetStage(), q.GetSession().GetRemoteIp(), q.GetSession().GetHelo(), t.GetSender(), q.GetRecipient(), len(t.GetRecipients()), o.Size)})
	},
	"given": func(_ context.Context, _ *player, _ *options, q *wire.JudgeRequest) (*wire.JudgeReply, error) {
		t, m := q.GetTransaction(), q.GetMessage()
		return one(&wire.Verdict{Reason: fmt.Sprintf("from=%s to=%d head=%d of %d body=%d of %d", t.GetSender(), len(t.GetRecipients()), len(m.GetHead()), m.GetHeadSize(), len(m.GetInline()), m.GetBodySize())})
	},
	"env": func(context.Context, *player, *options, *wire.JudgeRequest) (*wire.JudgeReply, error) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			return nil, err
		}
		limits, err := os.ReadFile("/proc/self/limits")
		if err != nil {
			return nil, err
		}
		return one(&wire.Verdict{Symbols: []*wire.Symbol{
			{Name: "env", Detail: strings.Join(os.Environ(), " ")},
			{Name: "fds", Score: float64(len(fds))},
			{Name: "uid", Score: float64(os.Getuid())},
			{Name: "limits", Detail: strings.ReplaceAll(string(limits), "\n", " ")},
		}})
	},
}

// answerFile answers with a body in a file, which its group may read.
func answerFile(path string, b []byte) (*wire.JudgeReply, error) {
	if err := os.WriteFile(path, b, 0o640); err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o640); err != nil {
		return nil, err
	}
	return one(&wire.Verdict{Body: &wire.Verdict_Path{Path: path}})
}
