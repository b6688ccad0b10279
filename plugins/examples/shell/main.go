// Shell is a plugin of Postern that runs a program for each message, a shell
// script as a rule. The program has the head of the message, as far as the empty
// line, on its standard input, and in its environment
//
//	POSTERN_ID         what the log calls the transaction
//	POSTERN_SENDER     the envelope's sender; empty is the null sender
//	POSTERN_RECIPIENTS the recipients, a line each; left out where they do not fit
//	POSTERN_COUNT      how many they are
//	POSTERN_CLIENT     the client's address; empty for a local one
//	POSTERN_NAME       its name in the DNS, as far as it is known
//	POSTERN_HELO       the name that it gave itself
//	POSTERN_USER       who logged in
//	POSTERN_SIZE       the message's bytes
//	POSTERN_SUBJECT    its decoded subject
//
// All of it is what strangers say: quote it ("$POSTERN_SENDER"), and never eval
// it. What the program prints is the verdict, a line for each thing; nothing is
// "continue":
//
//	continue | accept | discard
//	reject [5.7.1] [text for the peer]
//	defer  [4.7.1] [text for the peer]
//	quarantine [reason]
//	add X-Field: value | append X-Field: value | replace X-Field: value | remove X-Field
//	symbol NAME SCORE
//	because [reason for the log]
//
// An exit code that is not 0, another line, two verdicts, more than 64 KiB, more
// time than "wait", or a process left behind that has the output open is an error,
// and what becomes of the message is the filter's on_error. The program and all
// that it has started are killed when it has ended, or has to.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/postern-mta/postern/plugins/sdk"
)

type options struct {
	Command []string      `key:"command" required:"true" doc:"the program's absolute path, and its arguments"`
	Wait    time.Duration `key:"wait" default:"10s" doc:"how long it may take"`
}

var plugin = sdk.Plugin[options]{
	Name: "shell", Version: "1.0", Doc: "Runs a program, as a shell script, that says what to do with a message.",
	Needs: sdk.NeedsHead, Edits: sdk.EditsHead,
	Configure: configure, Message: judge,
}

func main() { sdk.Main(plugin) }

func configure(_ context.Context, o *options, _ sdk.Filter) error {
	switch {
	case len(o.Command) == 0 || !filepath.IsAbs(o.Command[0]):
		return sdk.Wrong("command", "write the program's absolute path first, like [\"/etc/postern/check.sh\"]")
	case o.Wait <= 0:
		return sdk.Wrong("wait", "it must be more than nothing")
	}
	if _, err := exec.LookPath(o.Command[0]); err != nil {
		return sdk.Wrong("command", "%w", err)
	}
	return nil
}

const (
	maxOutput = 64 << 10
	maxError  = 4 << 10
	// maxVariable is the longest value of the environment in bytes; Linux has 128
	// KiB for a name and its value.
	maxVariable = 100 << 10
	// grace is how long a program's output may stay open when it has ended.
	grace = 500 * time.Millisecond
)

func judge(ctx context.Context, o *options, m *sdk.Message) (sdk.Verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Wait)
	defer cancel()
	out, complaint := &bounded{most: maxOutput}, &bounded{most: maxError, drop: true}
	c := exec.CommandContext(ctx, o.Command[0], o.Command[1:]...)
	c.Env, c.Dir, c.Stdin, c.Stdout, c.Stderr = environment(m), "/", strings.NewReader(m.Head()), out, complaint
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = grace
	err := c.Run()
	if c.Process != nil {
		// Whatever it has left behind: the group has its number while one of it lives.
		_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
	}
	if len(complaint.text) > 0 {
		slog.Warn("the program complains", "id", m.ID, "text", strings.TrimSpace(string(complaint.text)))
	}
	switch {
	case ctx.Err() != nil:
		return sdk.Verdict{}, fmt.Errorf("%s: it took more than %v: %w", o.Command[0], o.Wait, ctx.Err())
	case errors.Is(err, exec.ErrWaitDelay):
		return sdk.Verdict{}, fmt.Errorf("%s: it left a process behind that has its output open", o.Command[0])
	case out.over:
		return sdk.Verdict{}, fmt.Errorf("%s: %w", o.Command[0], errOver)
	case err != nil:
		return sdk.Verdict{}, fmt.Errorf("%s: %w", o.Command[0], err)
	}
	v, err := parse(string(out.text))
	if err != nil {
		return sdk.Verdict{}, fmt.Errorf("%s: %w", o.Command[0], err)
	}
	return v, nil
}

// bounded keeps what a program writes, up to most bytes. More is an error, unless
// it is to be dropped. (It embeds no buffer: io.Copy would use its ReadFrom.)
type bounded struct {
	text []byte
	most int
	drop bool
	over bool
}

var errOver = fmt.Errorf("it printed more than %d bytes", maxOutput)

func (b *bounded) Write(p []byte) (int, error) {
	room := min(b.most-len(b.text), len(p))
	b.text = append(b.text, p[:room]...)
	if b.over = b.over || room < len(p); b.over && !b.drop {
		return room, errOver
	}
	return len(p), nil
}

// environment is what a program is told. A value that no environment can hold is
// left out.
func environment(m *sdk.Message) []string {
	client := ""
	if m.Remote.IsValid() {
		client = m.Remote.Addr().String()
	}
	all := []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"}
	for _, v := range [][2]string{
		{"ID", m.ID},
		{"SENDER", m.Sender},
		{"RECIPIENTS", strings.Join(m.Recipients, "\n")},
		{"COUNT", strconv.Itoa(len(m.Recipients))},
		{"CLIENT", client},
		{"NAME", m.RemoteName},
		{"HELO", m.Helo},
		{"USER", m.User},
		{"SIZE", strconv.FormatInt(m.HeadSize+1+m.BodySize, 10)},
		{"SUBJECT", m.Subject()},
	} {
		if len(v[1]) <= maxVariable && !strings.Contains(v[1], "\x00") {
			all = append(all, "POSTERN_"+v[0]+"="+v[1])
		}
	}
	return all
}
