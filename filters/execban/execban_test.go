package execban

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/postern-mta/postern/filters/execban/archive/archivetest"
	"github.com/postern-mta/postern/pipeline"
)

// lines is base64 in lines of 76.
func lines(b []byte) string {
	s := base64.StdEncoding.EncodeToString(b)
	var out strings.Builder
	for len(s) > 76 {
		out.WriteString(s[:76] + "\n")
		s = s[76:]
	}
	return out.String() + s + "\n"
}

// attached is a message with a text and one attachment.
func attached(name string, content []byte) string {
	return "From: a@example.net\nSubject: hello\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"b1\"\n\n" +
		"--b1\nContent-Type: text/plain\n\nSee the attachment.\n" +
		"--b1\nContent-Type: application/octet-stream; name=\"" + name + "\"\nContent-Disposition: attachment; filename=\"" + name + "\"\nContent-Transfer-Encoding: base64\n\n" +
		lines(content) + "--b1--\n"
}

// tinyPE is the smallest thing that Windows takes for a program of its own.
func tinyPE() []byte {
	b := make([]byte, 512)
	copy(b, "MZ\x90\x00\x03")
	b[60] = 0x80
	copy(b[0x80:], "PE\x00\x00\x4c\x01\x01\x00")
	return b
}

func TestFilter(t *testing.T) {
	zip := archivetest.Zip("", archivetest.Member{Name: "invoice.pdf.exe", Content: tinyPE(), Method: archivetest.Deflated})
	for _, c := range []struct {
		name, config, text string
		action             pipeline.Action
		classes, told      string
	}{
		{"ordinary", "", "Subject: x\n\nhello\n", pipeline.Continue, "", ""},
		{"by name and content", "", attached("x.pdf.exe", tinyPE()), pipeline.Reject, "windows-executables", `554 5.7.1 attachment "x.pdf.exe" looks like a program for Windows or DOS (windows-executables)`},
		{"by name", "", attached("x.pdf.exe", []byte("text")), pipeline.Reject, "windows-executables", `554 5.7.1 attachment "x.pdf.exe" is called ".exe" behind two extensions (windows-executables)`},
		{"by content", "", attached("notes.txt", tinyPE()), pipeline.Reject, "windows-executables", `attachment "notes.txt" looks like a program for Windows or DOS (windows-executables)`},
		{"in a zip", "", attached("a.zip", zip), pipeline.Reject, "windows-executables", `attachment "a.zip/invoice.pdf.exe" looks like`},
		{"passes", `pass = ["windows-executables"]`, attached("x.exe", tinyPE()), pipeline.Continue, "windows-executables", ""},
		{"held", `quarantine = ["windows-executables"]`, attached("x.exe", tinyPE()), pipeline.Quarantine, "windows-executables", ""},
		{"put off", `defer = ["windows-executables"]`, attached("x.exe", tinyPE()), pipeline.Defer, "windows-executables", `451 4.7.1 attachment "x.exe"`},
		{"all others pass", "refuse = [\"scripts\"]\npass = [\"all\"]", attached("x.exe", tinyPE()), pipeline.Continue, "windows-executables", ""},
		{"own class", "[[class]]\nname = \"cad\"\nextensions = [\"lsp\"]", attached("x.LSP", []byte("x")), pipeline.Reject, "cad", `is called ".lsp" (cad)`},
		{"own class takes an extension", "pass = [\"registry\"]\n[[class]]\nname = \"registry\"\nextensions = [\"reg\"]", attached("x.reg", []byte("x")), pipeline.Continue, "registry", ""},
		{"more extensions", "[[class]]\nname = \"scripts\"\nextensions = [\".lsp\"]", attached("x.lsp", []byte("x")), pipeline.Reject, "scripts", ""},
		{"except", "[[except]]\nwhen = 'external'\nclasses = [\"windows-executables\"]", attached("x.exe", tinyPE()), pipeline.Continue, "windows-executables", ""},
		{"except others", "[[except]]\nwhen = 'auth'\nclasses = [\"all\"]", attached("x.exe", tinyPE()), pipeline.Reject, "windows-executables", ""},
		{"text", `text = "ask postmaster@example.org"`, attached("x.exe", tinyPE()), pipeline.Reject, "windows-executables", "(windows-executables); ask postmaster@example.org"},
		{"clean", "", attached("a\tb?=\x01\x80.exe", tinyPE()), pipeline.Reject, "windows-executables", `attachment "`},
		{"contradiction", "", "Content-Type: multipart/mixed; boundary=a\nContent-Type: multipart/mixed; boundary=b\n\n--a\n\nx\n--a--\n--b\n\ny\n--b--\n", pipeline.Reject, "unscannable", "cannot be checked: programs will disagree about it"},
		{"contradiction may pass", `strictness = "never"`, "Content-Type: multipart/mixed; boundary=a\nContent-Type: multipart/mixed; boundary=b\n\n--a\n\nx\n--a--\n--b\n\ny\n--b--\n", pipeline.Continue, "", ""},
		{"unscannable held", `unscannable = "quarantine"`, attached("a.zip", zip[:len(zip)-40]), pipeline.Reject, "windows-executables unscannable", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := judge(t, newFilter(t, c.config), c.text)
			if v.Action != c.action || found(v) != c.classes || !strings.Contains(v.Reply.SMTP(), c.told) {
				t.Errorf("%v, %q, %q\n%s", v.Action, found(v), v.Reply.SMTP(), v.Reason)
			}
			if c.action == pipeline.Reject && v.Reply.QueueExit() != 31 {
				t.Errorf("exit %d", v.Reply.QueueExit())
			}
		})
	}
}
