package execban

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/filters/execban/archive/archivetest"
	"github.com/postern-mta/postern/pipeline"
)

// refused checks that a message is refused for these classes, in any order with
// others.
func refused(t *testing.T, f *Filter, what, text string, classes ...string) pipeline.Verdict {
	t.Helper()
	v := judge(t, f, text)
	if v.Action != pipeline.Reject {
		t.Errorf("%s: %v, %s\n%s", what, v.Action, v.Reason, cut(text))
	}
	for _, class := range classes {
		if !strings.Contains(" "+found(v)+" ", " "+class+" ") {
			t.Errorf("%s: %q, not %s: %s", what, found(v), class, v.Reason)
		}
	}
	return v
}

// within fails if something takes longer than it may on a slow machine.
func within(t *testing.T, d time.Duration, what string, do func()) {
	t.Helper()
	start := time.Now()
	do()
	if took := time.Since(start); took > d {
		t.Errorf("%s took %v", what, took)
	}
}

func deepMultipart(n int) string {
	var b strings.Builder
	b.WriteString(head)
	for i := range n {
		fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n", i, i)
	}
	b.WriteString("Content-Type: application/octet-stream; name=a.exe\n\nx\n")
	return b.String()
}

// Heads without an end, and those that are none.
func TestOddHeads(t *testing.T) {
	f := newFilter(t, "time = 300_000_000_000") // a busy host makes no difference
	evil := "Content-Disposition: attachment; filename=a.exe\n\nx\n"
	within(t, time.Minute, "heads", func() {
		size, fields := 10<<20, 1_000_000
		if underRace {
			size, fields = size/sampled, fields/sampled
		}
		refused(t, f, "a head of 10 MB", "X: "+strings.Repeat("x", size)+"\n"+evil)
		refused(t, f, "a million fields", strings.Repeat("A: b\n", fields)+evil)
		refused(t, f, "a part's head of 10 MB", head+plainMixed("X: "+strings.Repeat("x", size)+"\n"+evil))
	})
	for what, odd := range map[string]string{"a field of JavaScript's": "__proto__: x\n", "a name with blanks": "X y: z\n", "8-bit": "X\xe4: z\n", "a control": "X\x01: z\n", "folded first": " folded\n", "a blank before the colon": "From : x\n"} {
		refused(t, f, what, odd+evil, "windows-executables")
	}
	for what, text := range map[string]string{"empty": "", "a head only": "Subject: x\n", "a body only": "\nhello\n", "no separator": "Subject: x", "a blank line": "\n"} {
		if v := judge(t, f, text); v.Action != pipeline.Continue {
			t.Errorf("%s: %s", what, v.Reason)
		}
	}
	if v := judge(t, f, "From: a@b\nFrom: c@d\nFrom: \"a@good.com\" <b@evil>, x: y;\n\nhello\n"); v.Action != pipeline.Continue {
		t.Error("two From fields are not this filter's business", v.Reason)
	}
}

// What takes other programs for ever.
func TestLinearNames(t *testing.T) {
	f := newFilter(t, "")
	within(t, time.Minute, "names", func() {
		for what, name := range map[string]string{
			"a domain literal": "a@[" + strings.Repeat("a", 262_144) + "]", "comments": strings.Repeat("(", 100_000), "encoded words": strings.Repeat("=?x?", 200_000), "percents": strings.Repeat("%41", 100_000),
			"marks": strings.Repeat("\u202e", 50_000), "dots": strings.Repeat(".", 100_000),
		} {
			refused(t, f, what, head+"Content-Disposition: attachment; filename=\""+name+"\"; filename=\"a.exe\"\n\nx\n")
		}
	})
}

// Multiparts that are too deep, too many, or have no boundary worth the name.
func TestTooMuchStructure(t *testing.T) {
	f := newFilter(t, "")
	within(t, time.Minute, "structure", func() {
		refused(t, f, "1,000 deep", deepMultipart(1000), Unscannable)
		refused(t, f, "100,000 parts", head+mixed("Content-Type: multipart/mixed; boundary=a\n", "a", strings.Split(strings.Repeat("\n|", 100_000), "|")...), Unscannable)
		long := strings.Repeat("b", 70<<10)
		refused(t, f, "a boundary of 70 kB", head+mixed("Content-Type: multipart/mixed; boundary="+long+"\n", long, "Content-Disposition: attachment; filename=a.exe\n\nx\n"))
		refused(t, f, "an empty boundary", head+"Content-Type: multipart/mixed; boundary=\"\"\n\n--\nContent-Disposition: attachment; filename=a.exe\n\nx\n----\n")
	})
}

// Messages in messages without end (CVE-2026-26312).
func TestNestedMessagesEnd(t *testing.T) {
	f := newFilter(t, "")
	within(t, time.Minute, "nested messages", func() {
		text := attached("a.exe", tinyPE())
		for range 30 {
			text = head + "Content-Type: message/rfc822\n\n" + text
		}
		refused(t, f, "30 deep", text, "windows-executables")
		for range 100 {
			text = head + "Content-Type: message/rfc822\n\n" + text
		}
		refused(t, f, "130 deep", text, Unscannable)
		text = attached("a.exe", tinyPE())
		for range 12 {
			text = head + "Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n" + lines([]byte(text))
		}
		refused(t, f, "in base64, 12 deep", text, "windows-executables")
		// A message that is its own attachment, as often as it is decoded.
		refused(t, f, "of its own shape", head+strings.Repeat("Content-Type: message/rfc822\n\nContent-Type: multipart/mixed; boundary=a\n\n--a\n", 5000))
	})
}

// Two encodings: both views.
func TestTwoEncodings(t *testing.T) {
	f := newFilter(t, `strictness = "never"`)
	for _, pair := range [][2]string{{"base64", "7bit"}, {"7bit", "base64"}, {"quoted-printable", "base64"}, {"base64", "quoted-printable"}} {
		refused(t, f, pair[0]+" then "+pair[1], head+plainMixed("Content-Type: application/octet-stream\nContent-Transfer-Encoding: "+pair[0]+"\nContent-Transfer-Encoding: "+pair[1]+"\n\n"+lines(tinyPE())), "windows-executables")
	}
	refused(t, f, "the plain view", head+plainMixed("Content-Transfer-Encoding: 7bit\nContent-Transfer-Encoding: base64\n\n#!/bin/sh\nrm -rf /\n"), "scripts")
}

// Base64 that no two decoders read alike.
func TestEicarInBase64(t *testing.T) {
	f := newFilter(t, `strictness = "never"`)
	eicar := payloads(t)[0].content
	s := base64.StdEncoding.EncodeToString(eicar)
	var fours strings.Builder
	for _, c := range eicar {
		fours.WriteString(base64.StdEncoding.EncodeToString([]byte{c}))
	}
	for what, body := range map[string]string{"padding every four": fours.String(), "junk": every(s, 7, "!*"), "odd lines": every(s, 5, "\n"), "long lines": s, "8-bit junk": every(s, 9, "\xff"), "blanks": every(s, 3, " \t")} {
		refused(t, f, what, head+plainMixed("Content-Transfer-Encoding: base64\n\n"+body+"\n"), "windows-executables")
	}
}

// Names in pieces, by which Exim's ban was walked around (CVE-2024-39929), and
// names that contradict each other.
func TestNamesInPieces(t *testing.T) {
	f := newFilter(t, `strictness = "never"`)
	for _, p := range []string{
		"filename*0=\"a.e\"; filename*1=\"xe\"", "filename*1=\"xe\"; filename*0=\"a.e\"", "filename*0*=us-ascii''a%2E; filename*1=exe", "filename*=utf-8''a.exe", "filename*=utf-8''a%2eexe", "filename*0=a;\n filename*1=\".e\";\n filename*2=xe",
		"filename=a.pdf; filename*=utf-8''a.exe", "filename=a.exe; filename*=utf-8''a.pdf", "filename*0=\"a.exe\"; filename=a.pdf", "filename*0*=\"utf-8''a.\"; filename*1*=\"%65xe\"",
	} {
		refused(t, f, p, head+plainMixed("Content-Type: application/pdf; name=a.pdf\nContent-Disposition: attachment; "+p+"\n\nx\n"), "windows-executables")
	}
	refused(t, f, "the type's name", head+plainMixed("Content-Type: application/pdf; name=a.exe\nContent-Disposition: attachment; filename=a.pdf\n\nx\n"), "windows-executables")
}

// Names that look like others.
func TestDisguisedNames(t *testing.T) {
	f := newFilter(t, "")
	for _, name := range []string{"invoice.pdf\u202eexe.", "a\u202ecod.exe", "a.exe ", "a.exe.", "a.exe. . .", "a.e\x00xe", "a.exe\x00.pdf", "a.EXE", "a.ｅｘｅ", "ａ．ｅｘｅ", "a.exe:x.pdf", "a.exe::$DATA", "a.pdf                                   .exe", "a.ex\u200be", "a.pdf.exe"} {
		refused(t, f, name, head+plainMixed("Content-Disposition: attachment; filename=\""+name+"\"\n\nx\n"), "windows-executables")
	}
}

// An attachment's name goes into an answer and into no shell (CVE-2016-1000282).
func TestNamesAreText(t *testing.T) {
	f := newFilter(t, "")
	for _, name := range []string{"$(touch pwned).exe", "`touch pwned`.exe", "a;touch pwned;.exe", "| touch pwned #.exe", "a\r\n250 ok\r\n.exe", "\x1b[2J.exe", "../../../../tmp/pwned.exe", "a'b.exe", `a\"b.exe`, "-rf.exe"} {
		v := refused(t, f, name, head+plainMixed("Content-Disposition: attachment; filename=\""+name+"\"\n\nx\n"), "windows-executables")
		for _, line := range []string{v.Reply.SMTP(), v.Reply.QueueText(255)} {
			for _, c := range []byte(line) {
				if c < ' ' || c > '~' {
					t.Errorf("%q: the answer is %q", name, line)
					break
				}
			}
		}
	}
	if files, err := filepath.Glob("pwned*"); err != nil || files != nil {
		t.Error(files, err)
	}
}

// What programs are, whatever they are called and wherever they lie.
func TestByMagic(t *testing.T) {
	f := newFilter(t, "")
	things := map[string][]byte{
		"windows-executables": tinyPE(), "unix-executables": []byte("\x7fELF\x02\x01\x01\x00" + strings.Repeat("\x00", 56)), "shortcuts": []byte("L\x00\x00\x00\x01\x14\x02\x00\x00\x00\x00\x00\xc0\x00\x00\x00\x00\x00\x00F" + strings.Repeat("\x00", 60)), "scripts": []byte("#!/usr/bin/perl\nunlink;\n"),
	}
	for class, content := range things {
		h := hidden{"notes.txt", content}
		refused(t, f, class+" as .txt", attached("a.txt", content), class)
		refused(t, f, class+" without a name", head+plainMixed("Content-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n\n"+lines(content)), class)
		refused(t, f, class+" in a zip", attached("a.zip", zipped(h)), class)
		refused(t, f, class+" in a zip in a zip", attached("a.zip", zipped(hidden{"b.zip", zipped(h)})), class)
		refused(t, f, class+" in a disk image", attached("a.dat", isoOf(t, nil, h)), class, "disk-images")
		refused(t, f, class+" in OneNote", attached("a.dat", archivetest.OneNote(content)), class)
		refused(t, f, class+" in a winmail.dat", attached("winmail.dat", archivetest.TNEF("a.txt", "a.txt", content, nil)), class)
		refused(t, f, class+" in a document", attached("a.doc", archivetest.OLE([2]string{"ObjectPool/\x01Ole10Native", archivetest.Package("a.txt", content)})), class)
	}
	installer := [16]byte{0x84, 0x10, 0x0c, 0, 0, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0x46}
	refused(t, f, "a package for Windows", attached("a.dat", archivetest.OLEOf(installer, [2]string{"x", strings.Repeat("x", 5000)})), "installers")
}

// Archives that hide, lie, climb or explode.
func TestHostileArchives(t *testing.T) {
	f := newFilter(t, "bytes = 100000000\nmember = 50000000")
	refused(t, f, "encrypted", attached("a.zip", fixture("encrypted.zip")(t, nil, hidden{})), ArchivesEncrypted)
	refused(t, f, "two directories", attached("a.zip", append(zipped(hidden{"a.txt", []byte("x")}), zipped(hidden{"b.txt", tinyPE()})...)), "windows-executables")
	refused(t, f, "climbs", attached("a.zip", zipped(hidden{"../../etc/x.exe", []byte("x")})), "windows-executables")
	if _, err := os.Stat("../../etc/x.exe"); err == nil {
		t.Error("a file was written outside")
	}
	within(t, 2*time.Minute, "bombs", func() {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		zeros := int64(500 << 20)
		if underRace {
			zeros = 120 << 20 // still more than may be unpacked
		}
		refused(t, f, "500 MB of zeros", attached("a.gz", zerosOf(t, zeros)), Unscannable)
		refused(t, f, "42.zip", bombs(t, 40<<20)["42.zip"], Unscannable)
		refused(t, f, "a nest", bombs(t, 1)["nest"], ArchivesNested)
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 256<<20 {
			t.Errorf("the heap grew by %d MiB", grown>>20)
		}
	})
}

func zerosOf(t *testing.T, n int64) []byte {
	t.Helper()
	var z bytes.Buffer
	w, _ := gzip.NewWriterLevel(&z, gzip.BestSpeed)
	if _, err := io.CopyN(w, endless{}, n); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return z.Bytes()
}

// What people put into texts, in answers too.
func TestEicarInText(t *testing.T) {
	f := newFilter(t, `strictness = "never"`)
	h := payloads(t)[0]
	for what, text := range map[string]string{"uuencode": uuFile(h), "uuencode in base64": uuBase64(h), "yEnc": yEncFile(h), "BinHex": binHexFile(h)} {
		refused(t, f, what, head+"Content-Type: text/plain\n\nHello,\n\n"+text+"\nBye\n", "windows-executables")
		if what != "yEnc" { // which a quote mark breaks
			refused(t, f, what+" in a reply", head+"Content-Type: text/plain\n\nYou wrote:\n> "+strings.ReplaceAll(text, "\n", "\n> ")+"\n", "windows-executables")
		}
	}
}

// A multipart that is cut off anywhere, or begins where it should have ended.
func TestCutOff(t *testing.T) {
	f := newFilter(t, `strictness = "never"`)
	text := attached("a.exe", tinyPE())
	for i := strings.Index(text, "filename=\"a.exe\"") + 17; i < len(text); i += 7 {
		refused(t, f, fmt.Sprintf("cut off at %d", i), text[:i], "windows-executables")
	}
	refused(t, f, "in the epilogue only", head+"Content-Type: multipart/mixed; boundary=a\n\nhello\n--a--\n\n--a\nContent-Disposition: attachment; filename=a.exe\n\nx\n--a--\n", "windows-executables")
}

// control/signatures as viruscan and qmail-ldap have it.
func TestSignatures(t *testing.T) {
	file := filepath.Join(t.TempDir(), "signatures")
	if err := os.WriteFile(file, []byte("# of programs\nTVqQAAMAA\nTVpQAAIAA\nUEsDBAo*AAA\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f := newFilter(t, fmt.Sprintf("signatures = %q\nrefuse = [\"signatures\"]\npass = [\"all\"]\nstrictness = \"never\"", file))
	for what, line := range map[string]string{"a prefix": "TVqQAAMAAAAEAAAA", "an asterisk": "UEsDBAoXAAAB"} {
		v := refused(t, f, what, head+plainMixed("Content-Transfer-Encoding: base64\n\n"+line+"\nmore\n"), SignatureClass)
		if !strings.Contains(v.Reply.SMTP(), "begins with what is banned here (signatures)") {
			t.Error(v.Reply.SMTP())
		}
		refused(t, f, what+" in the message itself", head+"Content-Transfer-Encoding: base64\n\n"+line+"\nmore\n", SignatureClass)
		refused(t, f, what+" in a bounce", "Subject: failure notice\n\nHi. This is the qmail-send program at x.\n\n--- Below this line is a copy of the message.\n\nReturn-Path: <x@y>\n"+head+plainMixed("\n"+line+"\n"), SignatureClass)
	}
	for what, line := range map[string]string{"case": "tvqqAAMAAAAEAAAA", "nothing behind it": "TVqQAAMAA", "second line": "x\nTVqQAAMAAAAEAAAA"} {
		if v := judge(t, f, head+plainMixed("\n"+line+"\n")); v.Action != pipeline.Continue {
			t.Errorf("%s: %s", what, v.Reason)
		}
	}
}

// TestTooManyNames: a name that is a hundred names has one that nobody looked at.
func TestTooManyNames(t *testing.T) {
	name := strings.Repeat("a%3a%2500%E2%80%AEb%EF%BC%9A%E2%81%A6", 8)
	text := head + "Content-Type: application/octet-stream\nContent-Disposition: attachment; filename*=utf-8''" + name + ".dat\n\nx\n"
	refused(t, newFilter(t, "time = 300_000_000_000"), "a hundred names", text, Unscannable)
}
