package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/plugins/sdk"
	"github.com/postern-mta/postern/plugins/sdk/sdktest"
)

const hello = "From: alice@example.net\nSubject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\n\nbody\n"

// script is a case with a program of the shell.
func script(t *testing.T, name, text string, want sdktest.Want) sdktest.Case {
	t.Helper()
	path := filepath.Join(t.TempDir(), "check.sh")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return sdktest.Case{
		Name: name, Text: hello, From: "alice@example.net", To: []string{"a@example.org", "b@example.org"},
		Options: map[string]any{"command": []string{"/bin/sh", path}}, Want: want,
	}
}

func TestLines(t *testing.T) {
	var cases []sdktest.Case
	for text, want := range map[string]sdktest.Want{
		"exit 0":                                {},
		"echo continue":                         {},
		"echo accept":                           {Action: "accept"},
		"echo discard":                          {Action: "discard"},
		"echo quarantine odd, very":             {Action: "quarantine", Reason: "odd, very"},
		"echo reject":                           {Action: "reject"},
		"echo reject 5.1.1 no such user":        {Action: "reject", Reply: "554 5.1.1 no such user"},
		"echo reject no lotteries here":         {Action: "reject", Reply: "554 5.7.1 no lotteries here"},
		"echo '  defer 4.2.0  later '":          {Action: "defer", Reply: "451 4.2.0 later"},
		"echo accept; echo because known":       {Action: "accept", Reason: "known"},
		"echo symbol LOTTERY 2.5":               {Symbols: []string{"LOTTERY"}},
		"echo 'add X-A: 1'; echo accept":        {Action: "accept", Message: "X-A: 1\n" + hello},
		"echo 'append X-A: 1: 2'":               {Message: strings.Replace(hello, "\n\n", "\nX-A: 1: 2\n\n", 1)},
		"echo 'replace subject:x'":              {Message: "From: alice@example.net\nsubject: x\n\nbody\n"},
		"echo remove From":                      {Message: "Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\n\nbody\n"},
		"grep -q '^From: alice' && echo accept": {Action: "accept"},
		// What is wrong is an error.
		"exit 3":                   {Error: "exit status 3"},
		"echo accept; exit 1":      {Error: "exit status 1"},
		"kill -9 $$":               {Error: "signal: killed"},
		"echo pass":                {Error: `it printed "pass", which is no verdict`},
		"echo accept; echo reject": {Error: "two verdicts, accept and reject"},
		"echo reject 4.7.1 x":      {Error: "none of 5.x.x"},
		"echo add X":               {Error: "has no colon"},
		"echo 'add X Y: 1'":        {Error: `"X Y" is no name of a field`},
		"echo symbol X much":       {Error: "a name and a number"},
		"printf 'add X: \\000'":    {Error: "a NUL or CR"},
		"yes accept":               {Error: "it printed more than 65536 bytes"},
		"yes | head -c 1000000 >&2; echo discard": {Action: "discard"},
		"yes >&2": {Error: "it took more than 1s"},
	} {
		c := script(t, text, text, want)
		if text == "yes >&2" {
			c.Options["wait"] = "1s"
		}
		cases = append(cases, c)
	}
	sdktest.Run(t, plugin, cases...)
}

// What strangers say arrives as it is, and is run by nobody.
func TestEnvironment(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	c := script(t, "all of it", "env | sed -n 's/^POSTERN_/ /p; /^PATH/p' | sort >"+out+"; cat >>"+out, sdktest.Want{})
	c.Text = "Subject: $(touch " + out + ".never)\n ;x\n\nbody\n"
	c.From = "`id`;\"@example.net"
	sdktest.Run(t, plugin, c)
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	subject := "$(touch " + out + ".never)"
	want := " CLIENT=192.0.2.1\n COUNT=2\n HELO=client.example.net\n ID=transaction\n NAME=\n RECIPIENTS=a@example.org\n SENDER=" + c.From +
		"\n SIZE=" + fmt.Sprint(len(c.Text)) + "\n SUBJECT=" + subject + " ;x\n USER=\nPATH=/usr/local/bin:/usr/bin:/bin\nSubject: " + subject + "\n ;x\n"
	if string(got) != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if _, err := os.Stat(out + ".never"); err == nil {
		t.Error("the subject was run")
	}
	many := script(t, "too many recipients", `echo "because ${POSTERN_RECIPIENTS-none} of $POSTERN_COUNT"`, sdktest.Want{Reason: "none of 10000"})
	many.To = nil
	for i := range 10_000 {
		many.To = append(many.To, fmt.Sprintf("recipient%d@example.org", i))
	}
	large := script(t, "a large head", "echo because $(wc -c)", sdktest.Want{})
	large.Text = "Subject: x\n" + strings.Repeat("X: 3456789\n", 90909) + "\n"
	large.Want.Reason = fmt.Sprint(len(large.Text) - 1)
	unread := script(t, "a large head that nobody reads", "echo accept", sdktest.Want{Action: "accept"})
	unread.Text = large.Text
	sdktest.Run(t, plugin, many, large, unread)
}

// A program that hangs is killed with all that it has started, and one that
// leaves something behind leaves nothing.
func TestProcesses(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	quick := func(c sdktest.Case) sdktest.Case {
		c.Options["wait"] = "2s"
		return c
	}
	start := "echo $$ >>" + pids + "; sleep 300 & echo $! >>" + pids + "; "
	sdktest.Run(t, plugin,
		quick(script(t, "hangs", start+"sleep 300", sdktest.Want{Error: "it took more than 2s"})),
		quick(script(t, "hangs, deaf", start+"trap '' TERM INT HUP; while :; do sleep 300; done", sdktest.Want{Error: "it took more than 2s"})),
		script(t, "left with the output", start+"echo accept", sdktest.Want{Error: "left a process behind"}),
		script(t, "left without", "echo $$ >>"+pids+"; sleep 300 </dev/null >/dev/null 2>&1 & echo $! >>"+pids+"; echo accept", sdktest.Want{Action: "accept"}),
	)
	text, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Fields(string(text))
	if len(all) != 8 {
		t.Errorf("%d processes were started: %q", len(all), all)
	}
	for _, word := range all {
		var pid int
		fmt.Sscan(word, &pid)
		deadline := time.Now().Add(20 * time.Second)
		for alive(pid) {
			if time.Now().After(deadline) {
				t.Fatalf("the process %d is still there", pid)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// alive reports whether a process runs; one that waits to be reaped does not.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

func TestOptions(t *testing.T) {
	option := func(command ...string) map[string]any {
		return map[string]any{"command": append([]string{}, command...)}
	}
	sdktest.Run(t, plugin,
		sdktest.Case{Name: "none", Want: sdktest.Want{Problem: "command: it is missing"}},
		sdktest.Case{Name: "empty", Options: option(), Want: sdktest.Want{Problem: "command: write the program's absolute path"}},
		sdktest.Case{Name: "no path", Options: option("sh"), Want: sdktest.Want{Problem: "command: write the program's absolute path"}},
		sdktest.Case{Name: "not there", Options: option("/nowhere/at/all"), Want: sdktest.Want{Problem: "no such file"}},
		sdktest.Case{Name: "not to be run", Options: option("/etc/passwd"), Want: sdktest.Want{Problem: "permission denied"}},
		sdktest.Case{Name: "no time", Options: map[string]any{"command": []string{"/bin/true"}, "wait": "0s"}, Want: sdktest.Want{Problem: "wait: "}},
	)
}

func TestProgram(t *testing.T) {
	sdktest.RunProgram(t, []string{sdktest.Build(t, ".")}, script(t, "reject", "echo reject no", sdktest.Want{Action: "reject", Reply: "554 5.7.1 no"}))
}

// FuzzParse: what a program prints never is a verdict that Postern would not take
// without an error.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"accept\n", "reject 5.7.1 no\nadd X: 1\n", "symbol A NaN\nbecause \x00\n", "replace :\nremove\n", "\r\ndefer 4.\n"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := parse(text)
		if err != nil {
			return
		}
		got := sdktest.Judge(t, says(v), sdktest.Case{Text: hello})
		if got.Err == nil && strings.ContainsAny(got.Reply+got.Reason, "\r\n\x00") {
			t.Errorf("%q: %q %q", text, got.Reply, got.Reason)
		}
		if got.Err == nil && got.Body != "body\n" {
			t.Errorf("%q: the body is %q", text, got.Body)
		}
	})
}

// says is a plugin that gives one verdict.
func says(v sdk.Verdict) sdk.Plugin[sdk.None] {
	return sdk.Plugin[sdk.None]{
		Name: "says", Edits: sdk.EditsHead,
		Message: func(context.Context, *sdk.None, *sdk.Message) (sdk.Verdict, error) { return v, nil },
	}
}
