package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/cmd/postern/admin"
	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/throttle"
)

func serveCommand() *cobra.Command {
	var grace time.Duration
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long: `Run the daemon in the foreground, logging to standard error, as a supervisor wants it.

SIGHUP reads the configuration again: if it is wrong the old one stays in force and
the log says what is wrong. SIGTERM and SIGINT end the daemon: what has begun is
finished for up to --grace, and what has not is answered "try again later".

A supervisor may hand over the sockets of entrances (LISTEN_FDS), and is told when the
daemon is ready, reloads and stops (NOTIFY_SOCKET): Type=notify-reload under systemd.`,
		Args: cobra.NoArgs,
	}
	file := configFlag(c)
	c.Flags().DurationVar(&grace, "grace", 60*time.Second, "how long a stop waits for what has begun")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return serve(c.Context(), *file, grace, c.ErrOrStderr())
	}
	return c
}

// serve runs the daemon until a signal ends it.
func serve(ctx context.Context, file string, grace time.Duration, stderr io.Writer) error {
	hup, end := make(chan os.Signal, 1), make(chan os.Signal, 2)
	signal.Notify(hup, syscall.SIGHUP)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(hup)
	defer signal.Stop(end)
	d, err := startDaemon(file, stderr)
	if err != nil {
		return err
	}
	for {
		select {
		case <-hup:
			d.reload("SIGHUP") //nolint:errcheck // the log has it, and the old configuration stays
		case s := <-end:
			d.tell(stateStopping)
			d.log.Info("stopping", "signal", s.String(), "grace", grace.String())
			ctx, cancel := context.WithTimeout(ctx, grace)
			go func() {
				<-end // a second signal ends the waiting
				cancel()
			}()
			err := d.stop(ctx)
			cancel()
			d.log.Info("stopped")
			return err
		case err := <-d.failed:
			d.log.Error("stopping because of a failure", "error", err)
			ctx, cancel := context.WithTimeout(ctx, grace)
			defer cancel()
			d.stop(ctx) //nolint:errcheck // the first failure is what counts
			return err
		}
	}
}

// newLogger makes the logger that a configuration asks for, whose level can be
// changed while it is used. An address or a header value is quoted by its
// handler, so no control byte gets into the log.
func newLogger(l config.Log, level *slog.LevelVar, w io.Writer) *slog.Logger {
	level.Set(l.SlogLevel())
	o := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// startDaemon reads the configuration, takes the state directory, opens the
// entrances and serves. Nothing is left behind if it fails.
func startDaemon(file string, stderr io.Writer) (*daemon, error) {
	d := &daemon{
		file: file, started: time.Now(),
		modes: pipeline.NewModes(time.Now), meter: admin.NewMeter(), entrances: map[string]*entrance{}, failed: make(chan error, 16),
		headroom: newHeadroom(),
	}
	d.giveUp, d.cancel = context.WithCancel(context.Background())
	// The first reading only tells where the state directory is: filters are
	// made once more when their environment is there.
	first, err := config.Load(file, loadOptions(pipeline.Env{Log: slog.New(slog.DiscardHandler), Now: time.Now, Secret: derive(nil)}))
	if err != nil {
		return nil, fmt.Errorf("the configuration is wrong, see postern check:\n%w", err)
	}
	d.log = newLogger(first.Log, &d.level, stderr)
	if d.inherited, err = inheritListeners(); err != nil {
		return nil, err
	}
	d.logins, d.penalty = newLogins(d.log), throttle.NewPenalty(throttle.PenaltyOptions{})
	d.programs = newPrograms(d.log)
	if err := d.whileRoot(first); err != nil {
		d.programs.close()
		d.closeEarly()
		d.vault.close()
		d.logins.close()
		return nil, err
	}
	if err := d.open(first); err != nil {
		d.closeAll()
		return nil, err
	}
	d.tell(stateReady)
	return d, nil
}

// whileRoot does what needs root, and gives it up.
func (d *daemon) whileRoot(first *config.Config) error {
	h, err := heir(first)
	if err != nil {
		return err
	}
	if err := h.makeDirs(first); err != nil {
		return err
	}
	if err := d.openEarly(first); err != nil {
		return err
	}
	if d.vault, err = openVault(first, nil, d.log); err != nil {
		return err
	}
	if err := d.logins.startHelpers(first); err != nil {
		return err
	}
	if err := d.programs.startOthers(first); err != nil {
		return err
	}
	if err := preparePlugins(first, h); err != nil {
		return err
	}
	return h.become(first)
}
