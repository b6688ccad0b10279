package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

func sinkCommand() *cobra.Command {
	var listen, dir string
	var quiet bool
	var faults []string
	o := smtptest.Options{Keep: smtptest.KeepNothing}
	c := &cobra.Command{
		Use:   "sink",
		Short: "Run an SMTP server that takes everything, or misbehaves as told, for tests",
		Long: `Run an SMTP server that takes whatever comes and prints a line a message. It relays nothing
and is not for the Internet.

A --fault is POINT[=MATCH]:WHAT. POINT is connect, hello, mail, rcpt, data, body, dot, after, reset or quit;
MATCH an address or @domain at mail and rcpt. WHAT is an answer ("450 4.2.1 later"), a delay
("5s"), or an end: close, reset, half-close, hole, stall or endless.

  postern sink --fault 'rcpt=@busy.example:451 4.3.2 later' --fault dot:close`,
		Args: cobra.NoArgs,
	}
	fl := c.Flags()
	fl.StringVar(&listen, "listen", "127.0.0.1:2525", "the address to listen on")
	fl.StringVar(&dir, "dir", "", "keep each message as a file in this directory")
	fl.BoolVar(&quiet, "quiet", false, "print nothing but the totals in the end")
	fl.StringArrayVar(&faults, "fault", nil, "a fault; may be repeated, the first that matches acts")
	fl.DurationVar(&o.Latency, "latency", 0, "wait before every answer")
	fl.DurationVar(&o.Greylist, "greylist", 0, "put off what is new for so long")
	fl.IntVar(&o.Connections, "connections", 0, "the most connections at a time; 0 is no limit")
	fl.IntVar(&o.PerHost, "per-host", 0, "the most connections from one address; 0 is no limit")
	fl.IntVar(&o.Recipients, "recipients", 0, "the most recipients of a message; 0 is no limit")
	c.RunE = func(c *cobra.Command, _ []string) error {
		for _, f := range faults {
			step, err := parseFault(f)
			if err != nil {
				return err
			}
			o.Steps = append(o.Steps, step)
		}
		return runSink(c.OutOrStdout(), listen, dir, quiet, o)
	}
	return c
}

// parseFault reads a --fault.
func parseFault(s string) (smtptest.Step, error) {
	where, what, found := strings.Cut(s, ":")
	if !found {
		return smtptest.Step{}, fmt.Errorf("--fault %s: write POINT:WHAT, like dot:close", clean(s))
	}
	point, match, _ := strings.Cut(where, "=")
	at, ok := smtptest.ParseAt(point)
	if !ok {
		return smtptest.Step{}, fmt.Errorf("--fault %s: there is no point %q", clean(s), point)
	}
	step := smtptest.Step{At: at, Match: match}
	if end, ok := smtptest.ParseEnd(what); ok {
		step.End = end
		return step, nil
	}
	if d, err := time.ParseDuration(what); err == nil {
		step.Delay = d
		return step, nil
	}
	if len(what) < 3 || strings.Trim(what[:3], "0123456789") != "" {
		return smtptest.Step{}, fmt.Errorf("--fault %s: write an answer that begins with its code, a delay, or an end", clean(s))
	}
	step.Reply = what
	return step, nil
}

func runSink(out io.Writer, listen, dir string, quiet bool, o smtptest.Options) error {
	if dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		o.Keep = smtptest.KeepAll
	}
	var mu sync.Mutex
	var failed error
	count := 0
	o.OnMessage = func(m *smtptest.Message) {
		mu.Lock()
		defer mu.Unlock()
		count++
		if !quiet {
			fmt.Fprintf(out, "%d from <%s> to %s, %d bytes, by %s [%s]\n", count, clean(m.Mail.Sender), addresses(m.Addresses()), m.Size, clean(m.Hello), m.Peer.Addr())
		}
		if dir != "" {
			failed = errors.Join(failed, os.WriteFile(filepath.Join(dir, strconv.Itoa(count)+".eml"), m.Content, 0o644))
		}
	}
	s, err := smtptest.Listen(listen, o)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "listening on %s\n", s.Addr())
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	<-end
	err = s.Close()
	st := s.Stats()
	fmt.Fprintf(out, "%d messages, %d recipients, %d bytes, %d connections, at most %d at a time\n", st.Messages, st.Recipients, st.Bytes, st.Connections, st.MostOpen)
	mu.Lock()
	defer mu.Unlock()
	return errors.Join(failed, err)
}
