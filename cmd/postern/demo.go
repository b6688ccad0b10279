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
	"syscall"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

//go:embed demo
var demoFiles embed.FS

// demoMail are the samples: a file under demo, its envelope, and the client it
// pretends to come from.
var demoMail = []struct {
	file, from, to string
	arrives        int // how many messages are to arrive somewhere
}{
	{"1-clean.eml", "ann@sender.example", "joe@demo.example", 1},
	{"2-tapped.eml", "ann@sender.example", "boss@demo.example", 2},
	{"3-refused.eml", "luck@lottery.example", "joe@demo.example", 0},
}

// demoMailboxes are the Maildirs of the demonstration.
var demoMailboxes = []string{"joe", "boss"}

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
	sink      *smtptest.Server
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
	defer d.sink.Close()
	if err := d.start(ctx); err != nil {
		return err
	}
	defer d.stop()
	for _, m := range demoMail {
		if err := d.pass(ctx, m.file, m.from, m.to, m.arrives); err != nil {
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
	for _, box := range demoMailboxes {
		for _, sub := range []string{"tmp", "new", "cur"} {
			if err := os.MkdirAll(filepath.Join(dir, "mail", box, sub), 0o755); err != nil {
				return nil, err
			}
		}
	}
	if d.sink, err = smtptest.Listen("127.0.0.1:0", smtptest.Options{Name: "archive.example"}); err != nil {
		return nil, err
	}
	if err := d.writeConfig(); err != nil {
		d.sink.Close()
		return nil, err
	}
	return d, nil
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
	if err := t.Execute(&b, map[string]string{"Dir": d.dir, "User": me.Username, "Sink": d.sink.Addr().String()}); err != nil {
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
func (d *demo) pass(ctx context.Context, file, from, to string, arrives int) error {
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
	before, err := d.arrived()
	if err != nil {
		return err
	}
	exit, text, err := d.inject(ctx, content, envelope.To(from, to))
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "bin/qmail-queue exited %d%s\n", exit, optional(" and wrote ", text))
	if err := d.printNew(ctx, before, arrives); err != nil {
		return err
	}
	fmt.Fprintln(d.out)
	return nil
}

// printNew waits until as many messages as expected have arrived, and says where.
func (d *demo) printNew(ctx context.Context, before map[string]string, expected int) error {
	for begin := time.Now(); ; {
		after, err := d.arrived()
		if err != nil {
			return err
		}
		if len(after)-len(before) >= expected {
			var names []string
			for name := range after {
				if _, old := before[name]; !old {
					names = append(names, name)
				}
			}
			sort.Strings(names)
			for _, name := range names {
				fmt.Fprintf(d.out, "arrived at %s: %s\n", name, after[name])
			}
			if len(names) == 0 {
				fmt.Fprintln(d.out, "nothing arrived anywhere")
			}
			return nil
		}
		if time.Since(begin) > 20*time.Second {
			return fmt.Errorf("only %d of %d messages arrived: see %s", len(after)-len(before), expected, filepath.Join(d.dir, "postern.log"))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
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

// arrived is what lies in the Maildirs and came to the sink: where, and what.
func (d *demo) arrived() (map[string]string, error) {
	all := map[string]string{}
	for _, box := range demoMailboxes {
		names, err := filepath.Glob(filepath.Join(d.dir, "mail", box, "new", "*"))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				return nil, err
			}
			h, _ := message.ParseHead(string(b))
			all[filepath.Join("mail", box, "new", filepath.Base(name))] = fmt.Sprintf("from %s, subject %q", clean(h.Get("Return-Path")), clean(h.Get("Subject")))
		}
	}
	for i, m := range d.sink.Messages() {
		h, _ := message.ParseHead(string(m.Content))
		all[fmt.Sprintf("%s by SMTP (%d)", d.sink.Addr(), i+1)] = fmt.Sprintf("from <%s> to %s, subject %q", clean(m.Mail.Sender), addresses(m.Addresses()), clean(h.Get("Subject")))
	}
	return all, nil
}
