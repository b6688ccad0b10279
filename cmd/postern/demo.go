package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
)

//go:embed demo
var demoFiles embed.FS

// demoMail are the samples: a file under demo, its envelope, and the client it
// pretends to come from.
var demoMail = []struct{ file, from, to string }{
	{"1-clean.eml", "ann@sender.example", "joe@demo.example"},
	{"2-tapped.eml", "ann@sender.example", "boss@demo.example"},
	{"3-refused.eml", "luck@lottery.example", "joe@demo.example"},
}

// demoEnv is what a qmail-smtpd under tcpserver would say of the client.
var demoEnv = []string{"TCPREMOTEIP=192.0.2.7", "TCPREMOTEHOST=client.sender.example", "SMTPHELOHOST=client.sender.example"}

func demoCommand() *cobra.Command {
	var dir string
	var once bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show Postern at work: start it under a directory and pass sample messages through it",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return runDemo(ctx, c.OutOrStdout(), dir, once)
		},
	}
	c.Flags().StringVar(&dir, "dir", "run", "directory for everything that the demonstration makes")
	c.Flags().BoolVar(&once, "once", false, "end after the samples instead of serving on")
	return c
}

// demo is a demonstration that is set up.
type demo struct {
	out       io.Writer
	dir       string
	self      string // the postern program
	shim      string // bin/qmail-queue beside it
	config    string
	daemon    *exec.Cmd
	daemonErr chan error
}

func runDemo(ctx context.Context, out io.Writer, dir string, once bool) error {
	d, err := setUpDemo(out, dir)
	if err != nil {
		return err
	}
	if err := d.start(ctx); err != nil {
		return err
	}
	defer d.stop()
	for _, m := range demoMail {
		if err := d.pass(ctx, m.file, m.from, m.to); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "The daemon's log is %s, its configuration %s.\n", filepath.Join(d.dir, "postern.log"), d.config)
	if once {
		return nil
	}
	fmt.Fprintf(out, "Serving until you interrupt. Try, in another terminal:\n  %s filter list --config %s\n", d.self, d.config)
	select {
	case <-ctx.Done():
		return nil
	case err := <-d.daemonErr:
		d.daemon = nil
		return fmt.Errorf("the daemon ended: %w", err)
	}
}

func setUpDemo(out io.Writer, dir string) (*demo, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	d := &demo{out: out, dir: dir, self: self, shim: filepath.Join(filepath.Dir(self), "qmail-queue"), config: filepath.Join(dir, "postern.toml")}
	if _, err := os.Stat(d.shim); err != nil {
		return nil, fmt.Errorf("the shim is missing beside %s: run make build: %w", self, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "site"), 0o755); err != nil {
		return nil, err
	}
	next := filepath.Join(dir, siteQueueName)
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := os.Symlink(self, next); err != nil {
		return nil, err
	}
	return d, d.writeConfig()
}

func (d *demo) writeConfig() error {
	me, err := user.Current()
	if err != nil {
		return err
	}
	t, err := template.ParseFS(demoFiles, "demo/postern.toml")
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, map[string]string{"Dir": d.dir, "User": me.Username}); err != nil {
		return err
	}
	return os.WriteFile(d.config, b.Bytes(), 0o644)
}

// start runs the daemon and waits until it answers.
func (d *demo) start(ctx context.Context) error {
	log, err := os.Create(filepath.Join(d.dir, "postern.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	d.daemon = exec.Command(d.self, "serve", "--config", d.config)
	d.daemon.Stdout, d.daemon.Stderr = log, log
	// An interrupt at the terminal is the demonstration's to hand on.
	d.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := d.daemon.Start(); err != nil {
		return err
	}
	d.daemonErr = make(chan error, 1)
	go func() { d.daemonErr <- d.daemon.Wait() }()
	client := admin.NewClient(filepath.Join(d.dir, "admin.sock"))
	for begin := time.Now(); ; {
		if _, err := client.Status(ctx); err == nil {
			return nil
		}
		select {
		case err := <-d.daemonErr:
			d.daemon = nil
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("the daemon did not start: %w\n%s", err, text)
		case <-ctx.Done():
			d.stop()
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Since(begin) > 20*time.Second {
			d.stop()
			return errors.New("the daemon does not answer")
		}
	}
}

func (d *demo) stop() {
	if d.daemon == nil {
		return
	}
	d.daemon.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it has ended by itself
	select {
	case <-d.daemonErr:
	case <-time.After(30 * time.Second):
		d.daemon.Process.Kill() //nolint:errcheck // likewise
		<-d.daemonErr
	}
	d.daemon = nil
}

// pass explains one sample, then sends it through the shim as qmail-smtpd
// would, and says where it went.
func (d *demo) pass(ctx context.Context, file, from, to string) error {
	content, err := demoFiles.ReadFile("demo/" + file)
	if err != nil {
		return err
	}
	sample := filepath.Join(d.dir, file)
	if err := os.WriteFile(sample, content, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "==== %s\n", file)
	explain := exec.CommandContext(ctx, d.self, "explain", "--config", d.config, "--from", from, "--to", to, "--ip", "192.0.2.7", "--helo", "client.sender.example", sample)
	explain.Stdout, explain.Stderr = d.out, d.out
	if err := explain.Run(); err != nil {
		return fmt.Errorf("postern explain: %w", err)
	}
	before, err := d.siteMail()
	if err != nil {
		return err
	}
	exit, text, err := d.inject(ctx, content, envelope.To(from, to))
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "bin/qmail-queue exited %d%s\n", exit, optional(" and wrote ", text))
	after, err := d.siteMail()
	if err != nil {
		return err
	}
	d.printNew(before, after)
	fmt.Fprintln(d.out)
	return nil
}

func (d *demo) printNew(before, after map[string]string) {
	var names []string
	for name := range after {
		if _, old := before[name]; !old {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(d.out, "the site's qmail-queue took %s: %s\n", name, after[name])
	}
	if len(names) == 0 {
		fmt.Fprintln(d.out, "nothing went on to the site's qmail-queue")
	}
}

// inject runs the shim as qmail-smtpd runs a qmail-queue: message on 0,
// envelope on 1, a pipe for the error text on 6.
func (d *demo) inject(ctx context.Context, content []byte, e envelope.Envelope) (exit int, text string, err error) {
	env, err := envelope.Append(nil, e)
	if err != nil {
		return 0, "", err
	}
	envR, envW, err := os.Pipe()
	if err != nil {
		return 0, "", err
	}
	defer envR.Close()
	if _, err = envW.Write(env); err != nil { // it fits into the pipe
		return 0, "", err
	}
	envW.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		return 0, "", err
	}
	defer errR.Close()
	c := exec.CommandContext(ctx, d.shim)
	c.Env = append(os.Environ(), append(demoEnv, "POSTERN_SOCKET="+filepath.Join(d.dir, "queue.sock"))...)
	c.Stdin, c.Stderr = bytes.NewReader(content), d.out
	c.Stdout = envR // descriptor 1 is read, not written
	c.ExtraFiles = []*os.File{nil, nil, nil, errW}
	if err = c.Start(); err != nil {
		errW.Close()
		return 0, "", err
	}
	errW.Close()
	said, err := io.ReadAll(io.LimitReader(errR, 1024))
	if err != nil {
		return 0, "", err
	}
	var failed *exec.ExitError
	if err = c.Wait(); err != nil && !errors.As(err, &failed) {
		return 0, "", err
	}
	return c.ProcessState.ExitCode(), string(said), nil
}

// siteMail is what the stand-in for the site's qmail-queue has taken so far.
func (d *demo) siteMail() (map[string]string, error) {
	dir := filepath.Join(d.dir, "site")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".env") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		got, err := envelope.Read(bytes.NewReader(b), envelope.Limits{})
		if err != nil {
			return nil, err
		}
		all[strings.TrimSuffix(filepath.Join("site", e.Name()), ".env")] = fmt.Sprintf("from <%s> to %s", clean(got.Sender), addresses(got.Addresses()))
	}
	return all, nil
}

// siteQueueName is the name under which this program stands in for a site's
// qmail-queue in the demonstration.
const siteQueueName = "site-qmail-queue"

// siteQueue is that stand-in: it keeps message and envelope under site/, beside
// itself.
func siteQueue(program string, stdin, stdout io.Reader) reply.Reply {
	dir := filepath.Join(filepath.Dir(program), "site")
	f, err := os.CreateTemp(dir, "*.msg")
	if err != nil {
		return reply.NoQueueFile
	}
	defer f.Close()
	if _, err := io.Copy(f, stdin); err != nil {
		return reply.ReadError
	}
	e, err := envelope.Read(stdout, envelope.Limits{})
	if err != nil {
		os.Remove(f.Name())
		return reply.Of(err)
	}
	b, err := envelope.Append(nil, e)
	if err == nil {
		err = os.WriteFile(strings.TrimSuffix(f.Name(), ".msg")+".env", b, 0o644)
	}
	if err != nil {
		return reply.NoSpace
	}
	return reply.OK
}
