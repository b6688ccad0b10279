package sdk_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/postern-mta/postern/plugins/sdk"
	"github.com/postern-mta/postern/plugins/sdk/sdktest"
	"github.com/postern-mta/postern/plugins/wire"
)

// TestMain is the test binary as a plugin, too: with the argument "plugin".
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "plugin" {
		os.Args = append(os.Args[:1], os.Args[2:]...)
		sdk.Main(program)
	}
	os.Exit(m.Run())
}

type programOptions struct {
	What string        `key:"what" doc:"what it does" required:"true"`
	Wait time.Duration `key:"wait" default:"90s" doc:"how long it takes"`
	None []string      `key:"none" doc:"nothing"`
}

var program = sdk.Plugin[programOptions]{
	Name: "Test Program", Version: "1.2", Doc: "Does what a test says.", Needs: sdk.NeedsBody, Edits: sdk.EditsBody | sdk.EditsHead,
	Message: func(ctx context.Context, o *programOptions, m *sdk.Message) (sdk.Verdict, error) {
		switch o.What {
		case "flood":
			for i := range 4 {
				fmt.Fprintf([]*os.File{os.Stdout, os.Stderr}[i%2], "%s\n", bytes.Repeat([]byte("x"), 128<<10))
			}
			fmt.Println("by fmt")
			log.Print("by log")
			slog.Warn("by slog", "n", 1)
		case "panic":
			panic("as it was told")
		case "large":
			return sdk.Continue().SetBody(bytes.Repeat([]byte("0123456\n"), 1<<20)), nil
		case "environment":
			return sdk.Continue().Because(strings.Join(os.Args[1:], " ")), nil
		}
		return sdk.Continue(), nil
	},
}

func TestProgram(t *testing.T) {
	option := func(what string) map[string]any { return map[string]any{"what": what} }
	sdktest.RunProgram(t, []string{os.Args[0], "plugin", "its", "-argument"},
		sdktest.Case{Name: "flood", Text: hello, Options: option("flood")},
		sdktest.Case{Name: "panic", Text: hello, Options: option("panic"), Want: sdktest.Want{Error: "panic: as it was told"}},
		sdktest.Case{Name: "after a panic", Text: hello, Options: option("")},
		sdktest.Case{Name: "large", Text: hello, Options: option("large"), Want: sdktest.Want{Message: "From: alice@example.net\nSubject: hello\n\n" + strings.Repeat("0123456\n", 1<<20)}},
		sdktest.Case{Name: "arguments", Text: hello, Options: option("environment"), Want: sdktest.Want{Reason: "its -argument"}},
		sdktest.Case{Name: "refused", Text: hello, Want: sdktest.Want{Problem: "what: it is missing"}},
	)
}

// Whoever runs a plugin by hand is told what it is and how to try it.
func TestByHand(t *testing.T) {
	for args, want := range map[string]struct {
		exit          int
		stdout, wrong []string
	}{
		"":          {2, nil, []string{"Test Program 1.2 is a plugin of Postern", "\n    postern plugin run " + os.Args[0] + " MESSAGE\n"}},
		"--version": {0, []string{"Test Program 1.2 (postern.plugin.v1)\n"}, nil},
		"--help": {0, []string{
			"Does what a test says.\n", "at the stage message, needs the whole message, and edits the head, the body.\n", "    what             what it does\n", "a text; it must be written\n",
			"a length of time; by default \"1m30s\"\n", "a list of texts; none by default\n", "    [plugin.test-program]\n    command = [\"/", "    kind = \"test-program\"\n    what = ...\n",
		}, nil},
	} {
		cmd := exec.Command(os.Args[0], append([]string{"plugin"}, strings.Fields(args)...)...)
		var stdout, stderr strings.Builder
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit); (exit == nil) != (want.exit == 0) || exit != nil && exit.ExitCode() != want.exit {
			t.Errorf("%q: %v", args, err)
		}
		for _, s := range want.stdout {
			if !strings.Contains(stdout.String(), s) {
				t.Errorf("%q does not print %q:\n%s", args, s, stdout.String())
			}
		}
		for _, s := range want.wrong {
			if !strings.Contains(stderr.String(), s) {
				t.Errorf("%q does not complain %q:\n%s", args, s, stderr.String())
			}
		}
		if want.wrong == nil && stderr.Len() > 0 || want.stdout == nil && stdout.Len() > 0 {
			t.Errorf("%q prints %q and complains %q", args, stdout.String(), stderr.String())
		}
	}
}

// A plugin that cannot listen says so, and its exit code is not that of success.
func TestNoSocket(t *testing.T) {
	cmd := exec.Command(os.Args[0], "plugin")
	cmd.Env = append(os.Environ(), wire.CookieName+"="+wire.CookieValue, "PLUGIN_UNIX_SOCKET_DIR="+t.TempDir()+"/none")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || len(out) > 0 || !strings.Contains(stderr.String(), "no such file or directory") {
		t.Errorf("%v: %q, %q", err, out, stderr.String())
	}
}

// startBare starts the program without go-plugin's client, by command, whose
// output is read no further than its first line.
func startBare(t *testing.T, command ...string) (c wire.PluginClient, end func(), stderr io.Reader) {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), wire.CookieName+"="+wire.CookieValue)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) //nolint:errcheck // it may be gone
		cmd.Wait()                                      //nolint:errcheck // it was killed
		in.Close()
		r.Close()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	parts := strings.Split(strings.TrimSpace(line), "|")
	if err != nil || len(parts) < 5 || strings.Join(parts[:3], "|") != "1|1|unix" || parts[4] != "grpc" {
		t.Fatalf("the first line is %q, %v", line, err)
	}
	t.Cleanup(func() { os.Remove(parts[3]) })
	conn, err := grpc.NewClient("unix:"+parts[3], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return wire.NewPluginClient(conn), func() { cmd.Process.Signal(syscall.SIGTERM) }, r //nolint:errcheck // the test waits for its end
}

// What a plugin writes does not wait for a host that fetches go-plugin's streams,
// and all of it is on its standard error.
func TestOutput(t *testing.T) {
	c, end, stderr := startBare(t, os.Args[0], "plugin")
	all := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(stderr)
		all <- string(b)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := c.Configure(ctx, &wire.ConfigureRequest{Handle: 7, OptionsJson: []byte(`{"what": "flood"}`)}); err != nil {
		t.Fatal(err)
	}
	q := &wire.JudgeRequest{Handle: 7, Stage: wire.Stage_STAGE_MESSAGE, Session: new(wire.Session), Transaction: new(wire.Transaction), Message: new(wire.Message)}
	if _, err := c.Judge(ctx, q); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Configure(ctx, &wire.ConfigureRequest{Handle: 7, OptionsJson: []byte(`{"what": ""}`)}); err == nil {
		t.Error("a handle was given twice")
	}
	if _, err := c.Forget(ctx, &wire.ForgetRequest{Handle: 7}); err != nil {
		t.Error(err)
	}
	if _, err := c.Judge(ctx, q); err == nil {
		t.Error("a filter that was forgotten was asked")
	}
	end()
	checkOutput(t, all)
}

// checkOutput is done when the plugin's standard error has ended.
func checkOutput(t *testing.T, all <-chan string) {
	t.Helper()
	select {
	case text := <-all:
		for _, want := range []string{strings.Repeat("x", 128<<10) + "\n", "by fmt\n", "by log", "level=WARN msg=\"by slog\" n=1\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("the output lacks %.100q", want)
			}
		}
		if n := strings.Count(text, "x"); n < 4*128<<10 {
			t.Errorf("there are %d bytes of the flood", n)
		}
		if strings.Contains(text, "time=") {
			t.Error("lines have a time of their own")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the plugin does not end")
	}
}

// A plugin whose parent is gone ends by itself.
func TestOrphan(t *testing.T) {
	c, end, stderr := startBare(t, "/bin/sh", "-c", `"$0" plugin <&- & exec sleep 60`, os.Args[0])
	if _, err := c.Declare(t.Context(), new(wire.DeclareRequest)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(stderr)
		ended <- string(b)
	}()
	end()
	select {
	case text := <-ended:
		if !strings.Contains(text, "Postern is gone") {
			t.Errorf("it says %q", text)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the plugin is still there")
	}
}
