package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/ingress/handoff"
	origins "github.com/postern-mta/postern/pipeline/ingress/mark"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// buildRemotes builds the shims that stand in for qmail-remote.
func buildRemotes(t *testing.T, dir string) map[string]string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	paths := map[string]string{"c": filepath.Join(dir, "qmail-remote"), "go": filepath.Join(dir, "qmail-remote-go")}
	for _, b := range [][]string{
		{"cc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", paths["c"], filepath.Join(root, "cmd", "qmail-remote", "c", "qmail-remote.c")},
		{"go", "build", "-o", paths["go"], "./cmd/qmail-remote"},
	} {
		c := exec.Command(b[0], b[1:]...)
		c.Dir = root
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(b, " "), err, out)
		}
	}
	return paths
}

// leave calls qmail-remote as qmail-rspawn does: leave [flags] FILE ARGUMENT...
// It prints "exit N" and each report in quotes.
func leave(args []string) int {
	fs := flag.NewFlagSet("leave", flag.ContinueOnError)
	program := fs.String("program", os.Getenv("REMOTE"), "the shim")
	offset := fs.Int64("offset", 0, "the offset of the file")
	count := fs.Int("count", 0, "add so many recipients")
	uid := fs.Int("uid", 0, "the uid to call as, if not our own")
	wrap := fs.String("wrap", "", "a command that is to run the shim")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	f, err := os.Open(fs.Arg(0))
	if err == nil {
		_, err = f.Seek(*offset, io.SeekStart)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer f.Close()
	words := append(append(strings.Fields(*wrap), *program), fs.Args()[1:]...)
	for i := range *count {
		words = append(words, fmt.Sprintf("user%d@example.net", i))
	}
	c := exec.Command(words[0], words[1:]...)
	if *uid != 0 {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(*uid), Gid: uint32(*uid)}}
	}
	var out bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = f, &out, os.Stderr
	var failed *exec.ExitError
	if err := c.Run(); err != nil && !errors.As(err, &failed) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("exit %d\n", c.ProcessState.ExitCode())
	for _, r := range bytes.SplitAfter(out.Bytes(), []byte{0}) {
		if len(r) > 0 {
			fmt.Printf("%q\n", r)
		}
	}
	return 0
}

func TestQueuedBy(t *testing.T) {
	for value, want := range map[string]injector{
		"(qmail 12 invoked for bounce); 5 Mar 2026 14:07:09 -0000":          {true, -1},
		"(indimail-mta 12 invoked for bounce); Thu, 5 Mar 2026":             {true, -1},
		"(qmail 12 invoked by uid 501); 5 Mar 2026 14:07:09 -0000":          {false, 501},
		"(qmail 12 invoked from network); 5 Mar 2026 14:07:09 -0000":        {false, -1},
		"(qmail 12 invoked by uid -1); x":                                   {false, -1},
		"(qmail 12 invoked by uid 99999999999); x":                          {false, -1},
		"(qmail 12 invoked for bounce) and more; x":                         {false, -1},
		"(qmail x invoked for bounce); x":                                   {false, -1},
		"from x (HELO (qmail 12 invoked for bounce); x) (192.0.2.1) by mx;": {false, -1},
		"(qmail 12 invoked for bounce from network); x":                     {false, -1},
		"": {false, -1},
	} {
		m := message.FromString("Received: " + value + "\nReceived: (qmail 1 invoked for bounce); x\n\n")
		if got := queuedBy(m.Head()); got != want {
			t.Errorf("%q: %+v, want %+v", value, got, want)
		}
	}
	if got := queuedBy(message.FromString("Subject: x\nReceived: (qmail 1 invoked for bounce); x\n\n").Head()); got.bounce {
		t.Error("a line that is not on top counts")
	}
}

// TestRemoteDeliversForQmailAlone: our exit must not be a way past a firewall.
func TestRemoteDeliversForQmailAlone(t *testing.T) {
	var log strings.Builder
	w := &remoteWay{most: 10, leave: departure{log: slog.New(slog.NewTextHandler(&log, nil))}} // without an exit
	l := &handoff.Leaving{UID: os.Geteuid() + 1, Host: "example.net", Envelope: envelope.To("a@example.org", "b@example.net")}
	if report, err := w.deliver(t.Context(), l); report != nil || reply.Of(err).Class != reply.Temporary || !strings.Contains(log.String(), "add it to trusted") {
		t.Errorf("%q, %v, %s", report, err, log.String())
	}
}

// TestRemoteOrigin: whose a message is that leaves.
func TestRemoteOrigin(t *testing.T) {
	k, err := origins.New(bytes.Repeat([]byte("k"), origins.KeySize), origins.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ours, err := rules.Compile(pipeline.Facts(), `uid == 501 and sender endsWith "@example.org"`)
	if err != nil {
		t.Fatal(err)
	}
	const mail = "From: ann@example.org\nSubject: x\n\nbody\n"
	marked := func(standing string) string {
		m, err := k.Put(message.FromString(mail), pipeline.Origin{Standing: standing, User: "ann@example.org", UID: -1, Received: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		return string(m.Bytes())
	}
	top := func(by string) string { return "Received: (qmail 7 invoked " + by + "); 5 Mar 2026 14:07:09 -0000\n" }
	for name, row := range map[string]struct {
		trusted      bool
		text, sender string
		standing     string
		user         string
	}{
		"our user's":                 {true, top("from network") + marked("auth"), "ann@example.org", "auth", "ann@example.org"},
		"a stranger's":               {true, top("from network") + marked("external"), "ann@example.org", "external", "ann@example.org"},
		"a forwarded stranger's":     {true, top("by uid 501") + "Delivered-To: joe@example.org\n" + top("from network") + marked("external"), "ann@example.org", "external", "ann@example.org"},
		"a mark on another message":  {true, top("by uid 501") + strings.Replace(marked("auth"), "body", "buddy", 1), "ann@example.org", "external", ""},
		"a bounce":                   {true, top("for bounce") + mail, "", "local", ""},
		"a double bounce":            {true, top("for bounce") + mail, "#@[]", "local", ""},
		"a bounce with a sender":     {true, top("for bounce") + mail, "ann@example.org", "external", ""},
		"a stranger's bounce":        {true, top("from network") + mail, "", "external", ""},
		"a forwarded bounce":         {true, top("by alias") + top("for bounce") + mail, "", "external", ""},
		"by the rule":                {true, top("by uid 501") + mail, "ann@example.org", "local", ""},
		"by the rule, another uid":   {true, top("by uid 502") + mail, "ann@example.org", "external", ""},
		"by the rule, from network":  {true, top("from network") + mail, "ann@example.org", "external", ""},
		"by the rule, another user":  {true, top("by uid 501") + mail, "ann@example.com", "external", ""},
		"marked, by nobody we trust": {false, top("from network") + marked("auth"), "ann@example.org", "external", ""},
		"a bounce by such":           {false, top("for bounce") + mail, "", "external", ""},
		"the rule for such":          {false, top("by uid 501") + mail, "ann@example.org", "external", ""},
	} {
		w := &remoteWay{marks: k, ours: ours, entrance: "remote"}
		l := &handoff.Leaving{Trusted: row.trusted, Envelope: envelope.To(row.sender, "x@example.net"), Message: message.FromString(row.text)}
		m, o, err := w.origin(l)
		if err != nil || o.Standing != row.standing || o.User != row.user {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
		if strings.Contains(string(m.Bytes()), origins.FieldName) || !strings.HasSuffix(string(m.Bytes()), "ody\n") && !strings.HasSuffix(string(m.Bytes()), "buddy\n") {
			t.Errorf("%s: %q", name, m.Bytes())
		}
	}
}
