package dsn

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

var update = flag.Bool("update", false, "write the golden files")

func sample(kind Kind, format Format, original string) *Report {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	return &Report{
		Kind: kind, Format: format, Host: "mx.here.example", From: "MAILER-DAEMON@mx.here.example", To: "ann@here.example",
		Sender: "ann@here.example", EnvID: "QQ+3D1", Arrival: at.Add(-time.Hour), Now: at, GiveUp: at.Add(100 * time.Hour), ID: "3e6qgaz000000",
		Original: message.FromString(original),
		Recipients: []Recipient{
			{
				Address: "bob@far.example", ORcpt: "rfc822;Bob+2B1@far.example", Where: "mx.far.example [192.0.2.1]:25", Last: at.Add(-time.Minute),
				Reply: reply.Make(550, reply.Enhanced{Subject: 1, Detail: 1}, "no such user"),
			},
			{Address: "eve@far.example", Reply: reply.Make(451, reply.Enhanced{Subject: 4, Detail: 2}, "connection died"), Perhaps: true},
		},
	}
}

const plain = "From: ann@here.example\nSubject: hello\n\nHello there.\n"

func build(t testing.TB, r *Report) string {
	t.Helper()
	m, err := r.build("postern-BOUNDARY")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Body().Release()
	return string(m.Bytes())
}

func TestGolden(t *testing.T) {
	for kind := range Kind(Kinds) {
		for _, format := range []Format{MIME, QSBMF} {
			r := sample(kind, format, plain)
			if kind == Double {
				r.Sender, r.To, r.Note = "", "postmaster@here.example", "A note.\n"
			}
			got := build(t, r)
			name := filepath.Join("testdata", fmt.Sprintf("%s.%s", kind, format))
			if *update {
				if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(name)
			if err != nil || got != string(want) {
				t.Errorf("%s: %v\n%s", name, err, got)
			}
		}
	}
}

// hostile are originals that try to break a report.
var hostile = map[string]string{
	"plain":        plain,
	"empty":        "",
	"no head":      "\nbody only\n",
	"head only":    "Subject: x\n",
	"no newline":   "Subject: x\n\nlast line",
	"8 bit":        "Subject: x\n\n\xe4\xff\x80\n",
	"8 bit head":   "Subject: \xe4\xff\n\nx\n",
	"utf-8 head":   "Subject: gr\u00fc\u00df\n\nx\n",
	"boundary":     "Subject: x\n\n--postern-AAAA--\n\n--postern-AAAA\nContent-Type: text/plain\n\nx\n",
	"multipart":    "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nx\n--b--\n",
	"break":        "Subject: x\n\n--- Below this line is a copy of the message.\n\n<a@b>:\nno\n\n",
	"blank at end": "Subject: x\n\n\n\n\n",
	"1 MiB less":   "Subject: x\n\n" + strings.Repeat("0123456789abcde\n", 1<<16-2),
	"1 MiB more":   "Subject: x\n\n" + strings.Repeat("0123456789abcde\n", 1<<16),
}

// hostileWords are addresses and replies that try it.
var hostileWords = []string{
	"a>b@x", "a\nX-Evil: 1@x", "\"a b\"@x", "gr\u00fc\u00df@d\u00f6main.example", "\xe4@x", strings.Repeat("x", envelope.MaxAddress), "", "<>", "-@x", "a\u2028b@x", "a\u0085b@x",
}

// part is one part as a reader of MIME sees it.
type part struct {
	header textproto.MIMEHeader
	body   string
}

// parts reads a report back with the standard library.
func parts(t testing.TB, text string) (mail.Header, []part) {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v\n%.2000s", err, text)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatalf("%s %v %v", kind, params, err)
	}
	var all []part
	for r := multipart.NewReader(m.Body, params["boundary"]); ; {
		p, err := r.NextRawPart()
		if err == io.EOF {
			return m.Header, all
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, part{p.Header, string(body)})
	}
}

// check verifies what must hold of every report in MIME.
func check(t testing.TB, r *Report, text string) {
	t.Helper()
	head, all := parts(t, text)
	if len(all) != 3 {
		t.Fatalf("%d parts\n%.3000s", len(all), text)
	}
	if head.Get("X-Evil") != "" || head.Get("Auto-Submitted") != "auto-replied" {
		t.Errorf("%v", head)
	}
	for i, line := range strings.Split(text[:strings.Index(text, "message/")], "\n") {
		if len(line) > 998 {
			t.Errorf("line %d has %d bytes", i+1, len(line))
		}
	}
	original := all[2].body
	switch whole := r.Original.Size() <= DefaultMaxOriginal && r.Kind != Delay && !r.HeadersOnly; {
	case whole && original != string(r.Original.Bytes()):
		t.Errorf("the original is not itself: %.200q", original)
	case !whole && original != r.Original.HeadText():
		t.Errorf("the head is not itself: %.200q", original)
	}
	groups := strings.Split(strings.Trim(all[1].body, "\n"), "\n\n")
	if len(groups) != 1+len(r.Recipients) {
		t.Errorf("%d groups of fields for %d recipients:\n%s", len(groups), len(r.Recipients), all[1].body)
	}
	for i, g := range groups {
		h, err := textproto.NewReader(bufio.NewReader(strings.NewReader(g + "\n\n"))).ReadMIMEHeader()
		if err != nil || i > 0 && (h.Get("Final-Recipient") == "" || h.Get("Action") == "" || h.Get("Status") == "") || h.Get("X-Evil") != "" {
			t.Errorf("%v %v", h, err)
		}
	}
}

func TestHostile(t *testing.T) {
	for name, original := range hostile {
		for kind := range Kind(Kinds) {
			r := sample(kind, MIME, original)
			for _, w := range hostileWords {
				r.Recipients = append(r.Recipients, Recipient{Address: w, ORcpt: w, Where: w, Reply: reply.Reply{Class: reply.Permanent, Text: w}})
			}
			t.Run(name+" "+kind.String(), func(t *testing.T) {
				m, err := r.Build()
				if err != nil {
					t.Fatal(err)
				}
				check(t, r, string(m.Bytes()))
			})
		}
	}
	for _, w := range hostileWords {
		r := sample(Failure, MIME, plain)
		r.To, r.From, r.Sender, r.EnvID, r.Host = w, w, w, w, w
		m, err := r.Build()
		if err != nil {
			t.Fatalf("%q: %v", w, err)
		}
		check(t, r, string(m.Bytes()))
	}
}

// TestPython reads reports back with another reader of MIME.
func TestPython(t *testing.T) {
	const script = `
import email, email.policy, json, sys
m = email.message_from_binary_file(sys.stdin.buffer, policy=email.policy.default)
parts = list(m.iter_parts())
status = [[(str(k), str(v)) for k, v in g.items()] for g in parts[1].get_payload()] if parts[1].get_content_type() == "message/delivery-status" else None
print(json.dumps({
  "defects": [str(d) for p in m.walk() for d in p.defects if p is not m and p in parts or p is m],
  "type": m.get_content_type(), "report": m.get_param("report-type"), "parts": [p.get_content_type() for p in parts],
  "to": [a.addr_spec for a in m["To"].addresses], "subject": m["Subject"], "human": parts[0].get_content(), "status": status,
}))`
	for name, original := range hostile {
		r := sample(Failure, MIME, original)
		cmd := exec.Command("/usr/bin/python3", "-c", script)
		cmd.Stdin = strings.NewReader(build(t, r))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v %s", name, err, stderr.String())
		}
		var got struct {
			Defects, Parts, To           []string
			Type, Report, Subject, Human string
			Status                       [][][2]string
		}
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatal(err)
		}
		if len(got.Defects) > 0 || got.Type != "multipart/report" || got.Report != "delivery-status" || len(got.Parts) != 3 || got.Parts[0] != "text/plain" ||
			len(got.To) != 1 || got.To[0] != r.To || got.Subject != "failure notice" || !strings.HasPrefix(got.Human, "Hi. This is the Postern program at mx.here.example.\n") {
			t.Errorf("%s: %s", name, out)
		}
		if len(got.Status) != 3 || got.Status[1][1] != [2]string{"Final-Recipient", "rfc822; bob@far.example"} || got.Status[1][3][1] != "5.1.1" ||
			got.Status[0][1] != [2]string{"Original-Envelope-Id", "QQ=1"} || got.Status[1][0][1] != "rfc822; Bob+1@far.example" {
			t.Errorf("%s: %v", name, got.Status)
		}
	}
}

// qsbmf reads a report by the rules of qmail's bounce message format: the first
// paragraph begins with "Hi. This is the", those of recipients with <, the break
// with -, and the original follows the break.
func qsbmf(body string) (failed []string, original string, ok bool) {
	for i := 0; ; i++ {
		p, rest, found := strings.Cut(body, "\n\n")
		switch {
		case !found:
			return nil, "", false
		case i == 0:
			if !strings.HasPrefix(p, "Hi. This is the") {
				return nil, "", false
			}
		case p != "" && p[0] == '-':
			return failed, rest, true
		case p != "" && p[0] == '<':
			address, _, colon := strings.Cut(p[1:], ">:\n")
			if !colon {
				return nil, "", false
			}
			failed = append(failed, address)
		}
		body = rest
	}
}

func TestQSBMF(t *testing.T) {
	for name, text := range hostile {
		r := sample(Failure, QSBMF, text)
		for _, w := range hostileWords {
			r.Recipients = append(r.Recipients, Recipient{Address: w, Where: w, Reply: reply.Reply{Class: reply.Permanent, Text: w}})
		}
		_, body, _ := strings.Cut(build(t, r), "\n\n")
		failed, original, ok := qsbmf(body)
		if !ok || len(failed) != len(r.Recipients) || failed[0] != "bob@far.example" {
			t.Errorf("%s: %q %v", name, failed, ok)
		}
		want := string(r.Original.Bytes())
		if r.Original.Size() > DefaultMaxOriginal {
			want = r.Original.HeadText()
		}
		if original != "Return-Path: <ann@here.example>\n"+want {
			t.Errorf("%s: the original is %.200q", name, original)
		}
	}
}

func TestEnvelope(t *testing.T) {
	for kind, want := range map[Kind]string{Failure: "", Delay: "", Double: envelope.DoubleBounce, Held: envelope.DoubleBounce} {
		r := sample(kind, MIME, plain)
		if e := r.Envelope(); e.Sender != want || len(e.Recipients) != 1 || e.Recipients[0].Address != r.To {
			t.Errorf("%v: %+v", kind, e)
		}
	}
	for f := range Format(2) {
		if got, ok := ParseFormat(f.String()); !ok || got != f {
			t.Error(f)
		}
	}
	if _, ok := ParseFormat("x"); ok {
		t.Error("x is a format")
	}
}

// TestSpool keeps a large report out of memory, and leaves nothing behind when
// the disk is full.
func TestSpool(t *testing.T) {
	spool, err := message.OpenDirectory(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := sample(Failure, MIME, hostile["1 MiB less"])
	r.Spool = spool
	m, err := r.Build()
	if err != nil || m.Body().SpoolName() == "" {
		t.Fatal(err)
	}
	check(t, r, string(m.Bytes()))
	m.Body().Release()
	r.Spool = fullSpool{spool}
	if _, err := r.Build(); err == nil || reply.Of(err).Class != reply.Temporary {
		t.Error(err)
	}
	if left, err := os.ReadDir(spool.Path()); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}

type fullSpool struct{ *message.Directory }

type fullFile struct{ message.File }

func (s fullSpool) Create() (string, message.File, error) {
	name, f, err := s.Directory.Create()
	return name, fullFile{f}, err
}

func (fullFile) Write([]byte) (int, error) { return 0, fmt.Errorf("no space left on device") }

func FuzzReport(f *testing.F) {
	for _, original := range []string{plain, "", "\nx", "Subject: x\n\n--postern-\n", "a\xff: b\n\n\x80"} {
		f.Add(original, "bob@far.example", "550 no", uint8(0))
	}
	for i, w := range hostileWords {
		f.Add(plain, w, w, uint8(i))
	}
	f.Fuzz(func(t *testing.T, original, address, words string, kind uint8) {
		// The store's messages are canonical, and its addresses bounded.
		original = strings.NewReplacer("\r", "", "\x00", "").Replace(original)
		if len(address) > envelope.MaxAddress || strings.Contains(original, "postern-BOUNDARY") {
			return
		}
		r := sample(Kind(kind)%Kind(Kinds), MIME, original)
		r.To, r.EnvID = address, words
		r.Recipients = append(r.Recipients, Recipient{Address: address, ORcpt: words, Where: words, Reply: reply.Reply{Class: reply.Permanent, Text: words}})
		check(t, r, build(t, r))
		r.Format = QSBMF
		_, body, _ := strings.Cut(build(t, r), "\n\n")
		if failed, _, ok := qsbmf(body); !ok || len(failed) != len(r.Recipients) {
			t.Errorf("%q %v\n%s", failed, ok, body)
		}
	})
}
