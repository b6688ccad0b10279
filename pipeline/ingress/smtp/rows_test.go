package smtp

import (
	"context"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// toRcpt is what a client says up to its recipient.
var toRcpt = [][2]string{
	{"220", "EHLO client.example\r\n"},
	{"250 ", "MAIL FROM:<a@client.example>\r\n"},
	{"250 ", "RCPT TO:<b@example.org>\r\n"},
}

// bothWays runs a test in a bubble of time, with what the client says in whole
// segments and byte by byte.
func bothWays(t *testing.T, name string, test func(t *testing.T, pieces bool)) {
	t.Helper()
	for _, pieces := range []bool{false, true} {
		t.Run(fmt.Sprintf("%s bytewise=%v", name, pieces), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, pieces) })
		})
	}
}

// What a message holds never ends it when our own client sends it on: the server
// at the other end takes one message, whose lines are as they were or repaired.
func TestNoFalseEndGoesOut(t *testing.T) {
	forms := append([]string{"\r\n.\r\n", "\n..\n", "\r\n..\r\n"}, falseEnds...)
	for _, form := range forms {
		t.Run(fmt.Sprintf("%q", form), func(t *testing.T) {
			addr, sink, end := socket(t, nil)
			defer end()
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			c := wire.NewClient(conn, wire.ClientOptions{Hello: "client.example"})
			defer c.Close()
			ctx := context.Background()
			if _, err := c.Greet(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Hello(ctx); err != nil {
				t.Fatal(err)
			}
			text := "Subject: x\n\nfirst" + form + strings.ReplaceAll(smuggled, "\r\n", "\n")
			out, err := c.Transaction(ctx, envelope.To("a@client.example", "b@example.org"), wire.Content{From: strings.NewReader(text)})
			if err != nil || !out.Accepted(0) {
				t.Fatalf("%+v, %v", out, err)
			}
			if err := c.Quit(ctx); err != nil {
				t.Error(err)
			}
			all := sink.taken()
			if len(all) != 1 || all[0].envelope.Sender != "a@client.example" {
				t.Fatalf("%d messages: %+v", len(all), all)
			}
			repaired := strings.NewReplacer("\r\n", "\n", "\r", "\n", "\x00", "").Replace(text)
			if _, got, _ := strings.Cut(all[0].text, "Subject: x\n"); "Subject: x\n"+got != repaired {
				t.Errorf("%q came of %q", all[0].text, repaired)
			}
		})
	}
}

// What comes before the handshake counts for nothing behind it (CVE-2011-0411).
func TestStartTLSInjection(t *testing.T) {
	for name, words := range map[string]string{
		"a transaction": "STARTTLS\r\nMAIL FROM:<evil@client.example>\r\nRCPT TO:<b@example.org>\r\nDATA\r\nevil\r\n.\r\n",
		"a name":        "STARTTLS\r\nEHLO evil.example\r\n",
		"a login":       "STARTTLS\r\nAUTH PLAIN AGpvZQBzZWNyZXQ=\r\n",
		"half a line":   "STARTTLS\r\nMAIL",
		"a TLS hello":   "STARTTLS\r\n\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
	} {
		bothWays(t, name, func(t *testing.T, pieces bool) {
			st := converse(t, []setting{{"tls", "offer"}, {"auth", ""}}, pieces, [2]string{"220", "EHLO client.example\r\n"}, [2]string{"250 ", words})
			log := st.log.String()
			if len(st.sink.taken()) != 0 || strings.Contains(log, "user=joe") || strings.Contains(log, "helo=evil") || strings.Contains(log, "msg=message") {
				t.Errorf("it counts:\n%s", log)
			}
			why := `ended="spoke after STARTTLS"`
			if pieces {
				why = `ended="TLS failed"`
			}
			if !strings.Contains(log, why) {
				t.Errorf("not %s:\n%s", why, log)
			}
		})
	}
}

// A chunk that does not come whole, has no size or no transaction is no message,
// and none of its bytes are a command.
func TestBadChunks(t *testing.T) {
	evil := "MAIL FROM:<evil@client.example>\r\n"
	for words, want := range map[string]string{
		"BDAT 10\r\n12345":                          "",
		"BDAT 10 LAST\r\n12345":                     "",
		"BDAT 5\r\n12345BDAT 9 LAST\r\n":            "250 2.0.0 5 octets received",
		"BDAT 99999999999999999999 LAST\r\n" + evil: "501",
		"BDAT 999999999999999999 LAST\r\n" + evil:   "",
		"BDAT -1\r\n" + evil:                        "501",
		"BDAT 0x10 LAST\r\n" + evil:                 "501",
		"BDAT 5\x0bLAST\r\n" + evil:                 "501",
		"BDAT 5\xc2\xa0LAST\r\n" + evil:             "501",
		"BDAT LAST\r\n" + evil:                      "501",
		"BDAT\r\n" + evil:                           "501",
		"BDAT 1 2\r\n" + evil:                       "501",
		"BDAT 5 LAST \x00\r\n" + evil:               "501",
		"BDAT 5\nLAST\r\n" + evil:                   "501",
		fmt.Sprintf("RSET\r\nBDAT %d LAST\r\n%sNOOP\r\n", len(evil), evil):                                 "503",
		fmt.Sprintf("RSET\r\nMAIL FROM:<c@client.example>\r\nBDAT %d LAST\r\n%sNOOP\r\n", len(evil), evil): "554",
		fmt.Sprintf("BDAT 2\r\n\r\nRSET\r\nBDAT %d LAST\r\n%sNOOP\r\n", len(evil), evil):                   "503",
		fmt.Sprintf("BDAT %d\r\n%sBDAT 0\r\n", len(evil)+1, "\x00"+evil):                                   "250 2.0.0 34 octets received",
		fmt.Sprintf("BDAT %d LAST\r\n%sNOOP\r\n", len(evil)+1, "\x00"+evil):                                "550 5.5.2",
	} {
		bothWays(t, fmt.Sprintf("%q", words), func(t *testing.T, pieces bool) {
			said := new(strings.Builder)
			turns := append(append([][2]string(nil), toRcpt...), [2]string{"250 ", words})
			st := converse(t, []setting{{"transcript", ""}}, pieces, turns...)
			said.WriteString(st.script.String())
			if len(st.sink.taken()) != 0 || strings.Contains(st.script.String(), "C: MAIL FROM:<evil") || strings.Contains(st.log.String(), "evil") {
				t.Errorf("%d messages:\n%s", len(st.sink.taken()), said)
			}
			if _, after, _ := strings.Cut(st.script.String(), "\nC: RCPT"); want != "" && !strings.Contains(after, "\nS: "+want) {
				t.Errorf("no %s:\n%s", want, said)
			}
		})
	}
}

// allocated is what one run of a function allocates, in bytes.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// endless is a conversation without network: what a client says again and again.
func endless(t *testing.T, limits Limits, first, again string, times int) (said string, n *session, grown int64) {
	t.Helper()
	gs := generations(t, pipeline.ChainOptions{})
	defer gs.Swap(nil) //nolint:errcheck // there is no filter
	server, err := New(Options{
		Listener: newPipeListener(), Hostname: "mx.example.org", Chains: gs, Sink: new(fakeSink), Log: slog.New(slog.DiscardHandler),
		Ident: func() string { return "x" }, Ours: func(string) bool { return true }, Limits: limits,
	})
	if err != nil {
		t.Fatal(err)
	}
	conn := &repeating{next: []byte(first), again: []byte(again), left: times, every: times/32 + 1}
	n = newSession(server, conn)
	n.run()
	server.cancel(errStopped)
	return string(conn.last), n, conn.most - conn.least
}

// repeating is a connection on which the client says the same for long. It keeps
// the last that was answered, and now and then looks at how much memory is in
// use.
type repeating struct {
	spoken
	next, again []byte
	left, every int
	last        []byte
	least, most int64 // bytes in use
}

func (r *repeating) Read(p []byte) (int, error) {
	if len(r.next) == 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		if r.left%r.every == 0 {
			r.look()
		}
		r.left--
		r.next = r.again
	}
	k := copy(p, r.next)
	r.next = r.next[k:]
	return k, nil
}

func (r *repeating) look() {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	used := int64(m.HeapAlloc)
	if r.least == 0 {
		r.least = used
	}
	r.most = max(r.most, used)
}

func (r *repeating) Write(p []byte) (int, error) {
	r.last = append(r.last[:0], p[max(0, len(p)-1024):]...)
	return len(p), nil
}

// Lines without an end, commands without an end: refused after a bounded number,
// in memory that does not grow with what comes.
func TestEndlessInput(t *testing.T) {
	wide := Limits{Idle: many, BadCommands: many, Messages: many, Unknown: many}
	for _, c := range []struct {
		name, first, again string
		times              int
		limits             Limits
		last               string // how the answers end
		most               int64  // bytes that may be read of it, 0 for all
	}{
		{"a line of a MiB", "", strings.Repeat("x", 1024), 1024, Limits{}, "500 5.5.2 line too long\r\n", 128 << 10},
		{"a MAIL of a MiB", "EHLO c\r\nMAIL FROM:<", strings.Repeat("a", 1024), 1024, Limits{}, "500 5.5.2 line too long\r\n", 128 << 10},
		{"a MiB of NULs", "EHLO c\r\n", strings.Repeat("\x00", 1024), 1024, Limits{}, "500 5.5.2 line too long\r\n", 128 << 10},
		{"a MiB of LFs", "EHLO c\r\n", strings.Repeat("\n", 1024), 1024, Limits{}, "500 5.5.2 line too long\r\n", 128 << 10},
		{"2^20 NOOPs", "", "NOOP\r\n", 1 << 20, Limits{}, "421 4.7.0 too many commands that lead nowhere, closing the connection\r\n", 16 << 10},
		{"2^20 NOOPs that may be", "", "NOOP\r\n", 1 << 20, wide, "250 2.0.0 ok\r\n", 0},
		{"2^20 RSETs that may be", "EHLO c\r\n", "RSET\r\n", 1 << 20, wide, "250 2.0.0 flushed\r\n", 0},
		{"2^18 unknown commands", "", "XYZZY\r\n", 1 << 18, Limits{}, "421 4.7.0 too many errors, closing the connection\r\n", 16 << 10},
		{"2^18 unknown commands that may be", "", "XYZZY\r\n", 1 << 18, wide, "500 5.5.1 command not recognized\r\n", 0},
		{"2^16 empty lines", "", "\r\n", 1 << 16, Limits{}, "421 4.7.0 too many errors, closing the connection\r\n", 16 << 10},
		{"EHLO of 10 kB", "EHLO ", strings.Repeat("a", 1000), 10, Limits{}, "500 5.5.2 line too long\r\n", 0},
		{"EHLOs of 10 kB", "", "EHLO " + strings.Repeat("a", 10_000) + "\r\n", 1000, wide, "500 5.5.2 line too long\r\n", 0},
		{"BDATs that nobody asked for", "EHLO c\r\n", "BDAT 6 LAST\r\nNOOP\r\n", 1 << 16, wide, "503 5.5.1 no message is being sent, chunk dropped\r\n", 0},
		{"a message that was refused and goes on", "EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n", "x\n" + strings.Repeat("y", 1022), 4 << 10, Limits{Message: 1 << 10}, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			said, n, grown := endless(t, c.limits, c.first, c.again, c.times)
			if !strings.HasSuffix(said, c.last) {
				t.Errorf("it ends with %q", said)
			}
			if c.most > 0 && n.rec.in > c.most {
				t.Errorf("%d bytes were read", n.rec.in)
			}
			if whole := len(c.first) + c.times*len(c.again); c.most == 0 && int(n.rec.in) < whole {
				t.Errorf("%d bytes were read of %d", n.rec.in, whole)
			}
			if grown > 128<<10 {
				t.Errorf("memory grew by %d bytes", grown)
			}
		})
	}
}

// hostileAddresses are local parts and domains that a shell, an option parser or
// a line-based file might take for more than text, and whether they are
// addresses at all.
var hostileAddresses = []struct {
	path string
	ok   bool
}{
	{"<;sleep 66;>", false},
	{"<;sleep@x>", false},
	{`<"|/bin/sh"@x>`, true},
	{"<|/bin/sh@x>", true},
	{"<-oQ/tmp@x>", true},
	{"<--help@x>", true},
	{"<$(id)@x>", false},
	{`<"$(id)"@x>`, true},
	{"<${IFS}id@x>", true},
	{"<`id`@x>", true},
	{`<"; rm -rf /;"@x>`, true},
	{"<a&b@x>", true},
	{"<a>b@x>", false},
	{`<"a>b"@x>`, true},
	{"<a@x;id>", false},
	{"<a@$(id)>", false},
	{"<a@`id`>", false},
	{"<a@-oQ>", true},
	{"<../../etc/passwd@x>", true},
	{"<%s%n@x>", true},
	{`<"\\x41"@x>`, true},
	{"<a'--@x>", true},
}

// An address is text: it is refused, or arrives as it was said, and nothing in
// this package could run it.
func TestAddressesAreOpaque(t *testing.T) {
	for _, h := range hostileAddresses {
		bothWays(t, h.path, func(t *testing.T, pieces bool) {
			turns := [][2]string{{"220", "EHLO c\r\n"}, {"250 ", "MAIL FROM:" + h.path + "\r\n"}}
			if h.ok {
				turns = append(turns, [2]string{"250 ", "RCPT TO:" + h.path + "\r\n"}, [2]string{"250 ", "DATA\r\n"}, [2]string{"354", "A: b\r\n.\r\nQUIT\r\n"})
			} else {
				turns = append(turns, [2]string{"501 ", "MAIL FROM:<a@client.example>\r\n"}, [2]string{"250 ", "RCPT TO:" + h.path + "\r\n"}, [2]string{"501 ", "DATA\r\n"}, [2]string{"554", "QUIT\r\n"})
			}
			st := converse(t, []setting{{"standing", "relay"}}, pieces, turns...)
			if !strings.Contains(st.log.String(), "ended=quit") {
				t.Errorf("another answer than was expected:\n%s", st.log.String())
			}
			all := st.sink.taken()
			if len(all) == 1 != h.ok {
				t.Fatalf("%d messages", len(all))
			}
			address := h.path[1 : len(h.path)-1]
			if h.ok && (all[0].envelope.Sender != address || all[0].envelope.Recipients[0].Address != address) {
				t.Errorf("%+v", all[0].envelope)
			}
		})
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if i.Path.Value == `"os/exec"` || i.Path.Value == `"plugin"` {
				t.Errorf("%s imports %s", name, i.Path.Value)
			}
		}
	}
}

// A line end or NUL in an address or a parameter, plain or encoded, is refused,
// and nothing of it gets into an envelope.
func TestNoLineEndInAnEnvelope(t *testing.T) {
	for _, words := range []string{
		"MAIL FROM:<a@b\nT root@c>", "MAIL FROM:<a@b\rT root@c>", "MAIL FROM:<a\x00@b>", "MAIL FROM:<\"a\nb\"@c>", "MAIL FROM:<\"a\\\nb\"@c>", "MAIL FROM:<\"a\\\x00b\"@c>", "MAIL FROM:<a\x01@b>", "MAIL FROM:<a@b\x7f>", "MAIL FROM:<@x\n:a@b>",
		"MAIL FROM:<a@b> ENVID=x\nT", "MAIL FROM:<a@b> ENVID=x+0AT", "MAIL FROM:<a@b> ENVID=x+0DT", "MAIL FROM:<a@b> ENVID=x+00", "MAIL FROM:<a@b> ENVID=x+7F", "MAIL FROM:<a@b> ENVID=x\x00",
		"MAIL FROM:<a@b> AUTH=x+0AT", "MAIL FROM:<a@b> AUTH=x+0D+0A", "MAIL FROM:<a@b> AUTH=x+00", "MAIL FROM:<a@b> AUTH=x\nT", "MAIL FROM:<a@b> RET=FULL\nT", "MAIL FROM:<a@b> SIZE=1\n2",
		"RCPT TO:<c@example.org\nT root@c>", "RCPT TO:<c\x00@example.org>", "RCPT TO:<c@example.org> ORCPT=rfc822;x\nT", "RCPT TO:<c@example.org> ORCPT=rfc822;x+0AT", "RCPT TO:<c@example.org> ORCPT=rfc822;x+0D+0A", "RCPT TO:<c@example.org> ORCPT=rfc822;x+00",
		"RCPT TO:<c@example.org> ORCPT=rfc\n822;x", "RCPT TO:<c@example.org> NOTIFY=NEVER\nx",
	} {
		bothWays(t, fmt.Sprintf("%q", words), func(t *testing.T, pieces bool) {
			turns := [][2]string{{"220", "EHLO c\r\n"}}
			last := "MAIL FROM:<good@client.example>\r\nRCPT TO:<good@example.org>\r\nDATA\r\nA: b\r\n.\r\nQUIT\r\n"
			if strings.HasPrefix(words, "RCPT") {
				turns = append(turns, [2]string{"250 ", "MAIL FROM:<good@client.example>\r\n"})
				_, last, _ = strings.Cut(last, "\r\n")
			}
			turns = append(turns, [2]string{"250 ", words + "\r\n"}, [2]string{"50", last})
			st := converse(t, []setting{{"authplain", ""}}, pieces, turns...)
			all := st.sink.taken()
			if len(all) != 1 || all[0].envelope.Sender != "good@client.example" || strings.Join(all[0].envelope.Addresses(), " ") != "good@example.org" {
				t.Fatalf("%+v", all)
			}
			if all[0].envelope.EnvID != "" || all[0].envelope.Recipients[0].DSN != nil {
				t.Errorf("%+v", all[0].envelope)
			}
			record, err := envelope.Append(nil, all[0].envelope)
			if back, err2 := envelope.Read(strings.NewReader(string(record)), envelope.Limits{}); err != nil || err2 != nil || len(back.Recipients) != 1 {
				t.Errorf("%q: %v, %v", record, err, err2)
			}
		})
	}
}
