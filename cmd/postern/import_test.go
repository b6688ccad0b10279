package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/postern-mta/postern/cmd/postern/move"
)

// TestReadmeImport holds the README's examples of postern import, before and
// after, against what it makes.
func TestReadmeImport(t *testing.T) {
	text := readme(t)
	const qmail = "/var/qmail/control/"
	dir := t.TempDir() + "/"
	shown := 0
	for _, f := range move.Formats() {
		if !strings.Contains(text, "| `"+f.Name+"` |") {
			t.Errorf("README.md does not list %s", f.Name)
		}
		for _, m := range regexp.MustCompile("(?s)```"+f.Name+"\n(.*?)```\n\nbecomes\n\n```toml\n(.*?)```").FindAllStringSubmatch(text, -1) {
			shown++
			path := filepath.Join(dir, f.Name)
			if err := os.WriteFile(path, []byte(m[1]), 0o644); err != nil {
				t.Fatal(err)
			}
			var stdout, stderr bytes.Buffer
			if code := run([]string{"import", f.Name, path}, &stdout, &stderr); code != 0 {
				t.Fatalf("%s: %s", f.Name, stderr.String())
			}
			_, got, _ := strings.Cut(stdout.String(), "\n[chain]\n")
			if got = "[chain]\n" + strings.ReplaceAll(got, dir, qmail); got != m[2] {
				t.Errorf("%s becomes\n%s\nand README.md has\n%s", f.Name, got, m[2])
			}
		}
	}
	if shown != 3 || shown != strings.Count(text, "\nbecomes\n\n```toml") {
		t.Errorf("%d examples are looked at, of %d", shown, strings.Count(text, "\nbecomes\n\n```toml"))
	}
}

const importSMTP = `
[listen.mx]
address = "$AT_MX"
next = "queue"
tarpit = "0s"
[mailbox]
"joe@example.org" = "$RUN/mail/joe"
"archive@example.org" = "$RUN/mail/archive"
`

// TestImportBySMTP has the SMTP server do what a patched qmail-smtpd did: ask
// programs of qmail-spp and of RCPTCHECK, and copy what is tapped.
func TestImportBySMTP(t *testing.T) {
	g := newGateway(t)
	programs := map[string]string{
		"bin/greet": "echo HX-Plugin: $TCPREMOTEIP",
		"bin/who":   `case $SMTPRCPTTO in nobody@*) echo "E550 5.1.1 nobody by that name";; esac`,
		"bin/check": `case $RECIPIENT in gone@*) exit 100;; esac`,
	}
	for name, text := range programs {
		path := filepath.Join(g.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	control := filepath.Join(g.dir, "control")
	if err := os.Mkdir(control, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"smtpplugins": "[connection]\nbin/greet\n[rcpt]\nbin/who\n[mail]\n:test \"$SMTPMAILFROM\" != bad@example.net || echo E553 5.7.1 not you\n",
		"rcptchecks":  "bin/check\n",
		"taps":        "T:joe@example.org:archive@example.org\n",
	} {
		if err := os.WriteFile(filepath.Join(control, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	made := filepath.Join(g.dir, "imported.toml")
	var stderr bytes.Buffer
	if code := run([]string{"import", "smtpplugins", "rcptchecks", "taps", "--control", control, "--into", made}, &stderr, &stderr); code != 0 {
		t.Fatal(stderr.String())
	}
	imported, err := os.ReadFile(made)
	if err != nil {
		t.Fatal(err)
	}
	g.env["SMTPMAILFROM"] = "$SMTPMAILFROM" // start puts in what $NAME stands for
	g.start(t, importSMTP+strings.ReplaceAll(string(imported), "# control =", "#"))
	c := g.hello(t, "mx", "")
	c.want("MAIL FROM:<bad@example.net>", "553 5.7.1 not you")
	c.want("MAIL FROM:<a@example.net>", "250 ")
	c.want("RCPT TO:<nobody@example.org>", "550 5.1.1 nobody by that name")
	c.want("RCPT TO:<gone@example.org>", "550 5.1.1 ")
	c.want("RCPT TO:<joe@example.org>", "250 ")
	c.data("Subject: x\r\n\r\nx\r\n", "250 ")
	c.want("QUIT", "221 ")
	for _, box := range []string{"joe", "archive"} {
		if text := g.arrived(t, box, 1)[0]; !strings.Contains(text, "X-Plugin: 127.0.0.1\n") {
			t.Errorf("%s has\n%s", box, text)
		}
	}
}
