// Package python_test runs plugins in Python as Postern does it.
package python_test

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/postern-mta/postern/plugins/sdk"
	"github.com/postern-mta/postern/plugins/sdk/sdktest"
	"github.com/postern-mta/postern/plugins/wire"
)

// command is a program in Python with the module. It is Debian's Python, which
// has its packages; another may stand before it in PATH.
func command(t *testing.T, args ...string) []string {
	t.Helper()
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{"/usr/bin/env", "PYTHONPATH=" + here, "/usr/bin/python3", "-B"}, args...)
}

const (
	hello = "From: alice@example.net\nSubject: hello\n\nHello, world!\n"
	odd   = "From a@example.net Mon\r\nReceived: a\r\n\tb\r\nSubject: =?utf-8?q?gr=C3=BC=C3=9Fe?= =?iso-8859-1?q?_=FC?=\r\nreceived:c\r\nX-Raw: \xff\r\n\r\nbody\r\n"
)

func TestEverything(t *testing.T) {
	two := []string{"a@example.org", "b@example.org"}
	of := func(what, text string, want sdktest.Want) sdktest.Case {
		return sdktest.Case{Name: what, Text: text, From: "s@example.net", To: two, Options: map[string]any{"what": what}, Want: want}
	}
	look := of("look", odd, sdktest.Want{Fields: []string{"X-Raw: \xff!"}, Reason: "test@mx.example.org True"})
	look.Symbols, look.Options["size"], look.Options["list"] = []sdk.Symbol{{Name: "A"}}, "10MB", []string{"x"}
	at := func(stage sdk.Stage, c sdktest.Case) sdktest.Case {
		c.Name, c.Stage = stage.String(), stage
		return c
	}
	asked := at(sdk.AtRecipient, of("", "", sdktest.Want{Action: "reject", Reply: "550 5.1.1 r@example.org after ['a@example.org', 'b@example.org'] by client.example.net"}))
	asked.Recipient = "r@example.org"
	slow := of("sleep", hello, sdktest.Want{Error: "DeadlineExceeded"})
	slow.Timeout = 500 * time.Millisecond
	sdktest.RunProgram(t, command(t, "testdata/everything.py"),
		look,
		of("read", "\nabcdefgh", sdktest.Want{Reason: "8 b'abcd' b'efgh'"}),
		of("read", "\n"+strings.Repeat("0123456\n", 1<<17), sdktest.Want{Reason: "1048576 b'0123' b'456\\n'"}),
		of("none", hello, sdktest.Want{}),
		of("true", hello, sdktest.Want{Error: "returned True, which is no verdict"}),
		of("accept", hello, sdktest.Want{Action: "accept"}),
		of("reject", hello, sdktest.Want{Action: "reject"}),
		of("words", hello, sdktest.Want{Action: "reject", Reply: "554 5.7.0 no RCPT", Reason: "a b"}),
		of("contradiction", hello, sdktest.Want{Error: "'4.7.0' is none of 5.x.x"}),
		of("discard", hello, sdktest.Want{Action: "discard"}),
		of("head", hello, sdktest.Want{Message: "X-A: 1\nSubject: x\nX-B: 2\n\nHello, world!\n"}),
		of("break out", hello, sdktest.Want{Error: "does not begin with a blank"}),
		of("no name", hello, sdktest.Want{Error: "'X A' is no name of a field"}),
		of("body", hello, sdktest.Want{Message: "From: alice@example.net\nSubject: hello\n\nnew\n"}),
		of("large", hello, sdktest.Want{Message: "From: alice@example.net\nSubject: hello\n\n" + strings.Repeat("0123456\n", 1<<17)}),
		of("lines", hello, sdktest.Want{Error: "lines end in LF alone"}),
		of("both", hello, sdktest.Want{Action: "reject", Check: fates("reject", "quarantine")}),
		of("rest", hello, sdktest.Want{Action: "discard", Check: fates("discard", "accept")}),
		of("nobody", hello, sdktest.Want{Error: "is none of the recipients"}),
		of("envelope", hello, sdktest.Want{Check: envelope}),
		of("findings", hello, sdktest.Want{Symbols: []string{"PY"}, Check: findings}),
		of("odd symbol", hello, sdktest.Want{Error: "no name of a symbol"}),
		of("fail", hello, sdktest.Want{Error: "RuntimeError: as it was told"}),
		of("flood", hello, sdktest.Want{}),
		of("refused", hello, sdktest.Want{Problem: "what: not that"}),
		slow,
		at(sdk.AtConnect, of("", "", sdktest.Want{Action: "defer", Reply: "451 4.7.1 busy, 192.0.2.1"})),
		at(sdk.AtHelo, of("", "", sdktest.Want{Error: "may not answer quarantine at the stage helo"})),
		at(sdk.AtSender, of("", "", sdktest.Want{Action: "reject", Reply: "550 5.1.8 no s@example.net"})),
		asked,
		at(sdk.AtDelivery, of("", hello, sdktest.Want{Message: "X-Out: 1\n" + hello})),
		sdktest.Case{Name: "unknown", Options: map[string]any{"wat": 1}, Want: sdktest.Want{Problem: "wat: there is no such option"}},
	)
}

func fates(first, second string) func(testing.TB, sdktest.Got) {
	return func(t testing.TB, got sdktest.Got) {
		if got.Fates["a@example.org"].Action != first || got.Fates["b@example.org"].Action != second {
			t.Errorf("%+v", got.Fates)
		}
	}
}

func envelope(t testing.TB, got sdktest.Got) {
	if got.Sender != "" || strings.Join(got.Recipients, " ") != "new@example.org more@example.org" {
		t.Errorf("the envelope is %q %q", got.Sender, got.Recipients)
	}
	if len(got.Copies) != 1 || got.Copies[0].Sender != "tap@example.org" || !strings.HasPrefix(got.Copies[0].Head, "X-Tap: 1\nFrom:") {
		t.Errorf("the copies are %+v", got.Copies)
	}
}

func findings(t testing.TB, got sdktest.Got) {
	want := "[{PY 1.5 x}] [{dkim pass  [{header.d example.net}]}]"
	if s := fmt.Sprint(got.Symbols, got.Results); s != want {
		t.Errorf("%s, want %s", s, want)
	}
}

// Calls come at once: each of sixteen waits for the others.
func TestConcurrency(t *testing.T) {
	c := sdktest.Start(t, command(t, "testdata/everything.py")...)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := c.Configure(ctx, &wire.ConfigureRequest{Handle: 1, OptionsJson: []byte(`{"what": "meet"}`)}); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for range 16 {
		wait.Go(func() {
			q := &wire.JudgeRequest{Handle: 1, Stage: wire.Stage_STAGE_MESSAGE, Session: new(wire.Session), Transaction: new(wire.Transaction), Message: new(wire.Message)}
			if r, err := c.Judge(ctx, q); err != nil || len(r.GetVerdicts()) != 0 {
				t.Errorf("%v, %v", r, err)
			}
		})
	}
	wait.Wait()
}

// The committed module is that of the protocol as it is.
func TestGenerated(t *testing.T) {
	argv := command(t, "-c", "import sys; from postern_plugin import plugin_pb2 as pb; sys.stdout.buffer.write(pb.DESCRIPTOR.serialized_pb)")
	var stderr bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	ours := protodesc.ToFileDescriptorProto(wire.File_plugin_proto)
	theirs := new(descriptorpb.FileDescriptorProto)
	if err := proto.Unmarshal(out, theirs); err != nil {
		t.Fatal(err)
	}
	// What protoc gives to the one it does not give to the other.
	for _, m := range ours.GetMessageType() {
		for _, f := range m.GetField() {
			f.JsonName = nil
		}
	}
	if !proto.Equal(ours, theirs) {
		t.Error("postern_plugin/plugin_pb2.py is not made of plugin.proto as it is: run go generate ./plugins/wire")
	}
}
