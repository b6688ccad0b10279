package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ServeHelper is the helper's end: it runs the checkpassword program that
// options (JSON of a ProgramOptions) name, for whom it is connected to on
// descriptor 3, until that one is gone or breaks the format, and kills what runs
// then. It takes the whole process: signals that would end it are ignored, for
// the daemon decides when it ends, and no descriptor that was inherited reaches
// the program.
func ServeHelper(options string, log *slog.Logger) error {
	var o ProgramOptions
	d := json.NewDecoder(bytes.NewReader([]byte(options)))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return fmt.Errorf("the helper's options: %w", err)
	}
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		for fd := 3; fd < 1024; fd++ { // before Linux 5.11
			unix.CloseOnExec(fd)
		}
	}
	conn, err := unixConn(os.NewFile(3, "daemon"))
	if err != nil {
		return fmt.Errorf("descriptor 3 is no connection, only the daemon starts this command: %w", err)
	}
	defer conn.Close()
	p, err := NewProgram(o, log)
	if err != nil {
		return err
	}
	// A signal that is ignored would be ignored by the program too; one that is
	// caught would not.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(caught)
	return serveHelper(conn, p)
}

// serveHelper answers questions until the connection ends.
func serveHelper(conn *net.UnixConn, p *Program) error {
	ctx, cancel := context.WithCancel(context.Background())
	var asked sync.WaitGroup
	defer asked.Wait()
	defer cancel()
	if _, err := conn.Write(answer{code: answerYes}.append(nil, 0)); err != nil {
		return err
	}
	// The daemon keeps to the program's slots. One of its questions may come a
	// moment before the slot is free again, whence twice as many.
	open := make(slots, 2*p.o.Concurrency)
	b := make([]byte, maxQuestion+1)
	for {
		n, err := conn.Read(b)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		id, q, err := parseQuestion(b[:n])
		if err != nil {
			return fmt.Errorf("from the daemon: %w", err)
		}
		if err := open.take(ctx); err != nil {
			return err
		}
		asked.Go(func() {
			defer open.give()
			var a answer
			if err := p.running.take(ctx); err != nil {
				a = troubled("%v", err)
			} else {
				a = p.ask(ctx, q)
			}
			conn.Write(a.append(nil, id)) //nolint:errcheck // a daemon that is gone shows in Read
		})
	}
}
