package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const attachmentsConfig = `
[listen.mx]
address = "$AT_MX"
next = "queue"
tarpit = "1ms"
chain = "inbound"
[chain]
inbound = ["execban"]
[filter.execban]
quarantine = ["disk-images"]
[mailbox]
"bob@example.org" = "$RUN/mail/bob"
`

// workersOf are the processes that a daemon has as workers.
func workersOf(t *testing.T, daemon int) (pids []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range stats {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		text := string(b)
		fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		if len(fields) > 1 && fields[1] == strconv.Itoa(daemon) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

func withFile(name, content string) string {
	return "Subject: a file\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n\r\nhello\r\n--a\r\nContent-Disposition: attachment; filename=\"" + name + "\"\r\n\r\n" + content + "\r\n--a--\r\n"
}

// TestSMTPAttachments has clients send attachments to the SMTP server, while its
// workers are killed: what runs is refused by name, what is ordinary arrives,
// and a worker's death is nobody's answer.
func TestSMTPAttachments(t *testing.T) {
	g := newGateway(t)
	g.start(t, attachmentsConfig)
	c := g.hello(t, "mx", "")
	c.mail("a@example.net", "bob@example.org", withFile("notes.txt", "plain words"), "250 ")
	if got := g.arrived(t, "bob", 1); !strings.Contains(got[0], "plain words") {
		t.Errorf("%q", got)
	}
	c.mail("a@example.net", "bob@example.org", withFile("a.pdf.exe", "text"), `554 5.7.1 attachment "a.pdf.exe" is called ".exe" behind two extensions (windows-executables)`)
	c.mail("a@example.net", "bob@example.org", withFile("notes.txt", "#!/bin/sh\r\nrm -rf /"), `554 5.7.1 attachment "notes.txt" looks like a script (scripts)`)
	c.mail("a@example.net", "bob@example.org", withFile("disk.iso", "text"), "250 ")
	if len(workersOf(t, g.daemon.Process.Pid)) == 0 {
		t.Fatal("the daemon has no workers")
	}

	const senders, each = 3, 20
	var flow sync.WaitGroup
	var mu sync.Mutex
	answers := map[string]int{}
	for i := range senders {
		c := g.hello(t, "mx", fmt.Sprintf("127.0.9.%d", i+1))
		flow.Add(1)
		go func() {
			defer flow.Done()
			for n := range each {
				name, want := "notes.txt", []string{"250", "451"}
				if n%2 == 1 { // one of which two workers die is held
					name, want = "a.exe", []string{"554", "451", "250"}
				}
				c.want("MAIL FROM:<a@example.net>", "250 ")
				c.want("RCPT TO:<bob@example.org>", "250 ")
				c.want("DATA", "354 ")
				w := c.DotWriter()
				if _, err := w.Write([]byte(withFile(name, "plain words"))); err != nil {
					t.Error(err)
					return
				}
				w.Close() //nolint:errcheck // the answer tells
				answer := c.read()
				if len(answer) < 3 || !slices.Contains(want, answer[:3]) {
					t.Errorf("%s: %q", name, answer)
					return
				}
				mu.Lock()
				answers[answer[:3]]++
				mu.Unlock()
			}
		}()
	}
	for range 10 {
		time.Sleep(10 * time.Millisecond)
		for _, pid := range workersOf(t, g.daemon.Process.Pid) {
			syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // it may have ended
		}
	}
	flow.Wait()
	died := g.logged(t, 1, "msg", "a worker process failed")
	t.Logf("answers: %v; %d workers died", answers, len(died))
	if answers["554"] == 0 || answers["250"] == 0 {
		t.Error("nothing was judged")
	}
	g.stop(t)
	names, err := filepath.Glob(filepath.Join(g.dir, "mail", "bob", "new", "*"))
	if err != nil || len(names) < 2 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "a.exe") {
			t.Errorf("a program arrived:\n%s", b)
		}
	}
}
