package smtp

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

// spoken is a connection on which the client has said all it has to say, in
// pieces, and has closed its half.
type spoken struct {
	pieces [][]byte
	said   bytes.Buffer // by the server
	closed bool
}

func (s *spoken) Read(p []byte) (int, error) {
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	k := copy(p, s.pieces[0])
	if s.pieces[0] = s.pieces[0][k:]; len(s.pieces[0]) == 0 {
		s.pieces = s.pieces[1:]
	}
	return k, nil
}

func (s *spoken) Write(p []byte) (int, error) { return s.said.Write(p) }

func (s *spoken) Close() error {
	s.closed = true
	return nil
}

func (s *spoken) LocalAddr() net.Addr { return &net.TCPAddr{} }
func (s *spoken) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:4321"))
}
func (s *spoken) SetDeadline(time.Time) error      { return nil }
func (s *spoken) SetReadDeadline(time.Time) error  { return nil }
func (s *spoken) SetWriteDeadline(time.Time) error { return nil }

// start is a server, and what a client has said when the fuzzed words begin.
type startState struct {
	service      Service
	repair, auth bool
	words        string
}

const (
	inMail = "EHLO client.example\r\nMAIL FROM:<a@client.example> SMTPUTF8\r\n"
	inRcpt = inMail + "RCPT TO:<b@example.org>\r\n"
)

// startStates is the table of them.
func startStates() []startState {
	return []startState{
		{},
		{words: "EHLO client.example\r\n"},
		{words: "HELO client.example\r\n"},
		{words: inMail},
		{words: inRcpt},
		{words: inRcpt + "DATA\r\n"},
		{words: inRcpt + "DATA\r\n", repair: true},
		{words: inRcpt + "BDAT 6\r\nA: b\r\n"},
		{words: inRcpt + "BDAT 6\r\nA: b\r\n", repair: true},
		{words: inRcpt, repair: true},
		{service: LMTP, words: strings.ReplaceAll(inRcpt, "EHLO", "LHLO") + "RCPT TO:<c@example.org>\r\n"},
		{service: LMTP, repair: true},
		{auth: true, words: "EHLO client.example\r\n"},
		{auth: true, words: "EHLO client.example\r\nAUTH PLAIN AGpvZQBzZWNyZXQ=\r\n"},
	}
}

// chains is one configuration without filters, for every server of a fuzzer.
type chains struct{ g *pipeline.Generations }

func (c chains) Acquire() *pipeline.Generation { return c.g.Acquire() }

const many = 1 << 30

// serveOnce has a server read a session that comes in pieces.
func serveOnce(t *testing.T, at startState, gs *pipeline.Generations, pieces [][]byte) (said string, taken []stored) {
	t.Helper()
	sink := new(fakeSink)
	o := Options{
		Listener: newPipeListener(), Hostname: "mx.example.org", Chains: chains{gs}, Sink: sink, Service: at.service,
		Log: slog.New(slog.DiscardHandler), Ident: func() string { return "fuzz" }, Ours: func(string) bool { return true },
		Limits: Limits{Recipients: many, Messages: many, BadCommands: many, Idle: many, Unknown: many, Logins: many},
	}
	if at.repair {
		lines := message.Repair
		o.Lines = &lines
	}
	if at.auth {
		o.Auth, o.AuthPlain = fakeAuth{}, true
	}
	server, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	conn := &spoken{pieces: pieces}
	n := newSession(server, conn)
	if why := server.enter(n); why != "" {
		t.Fatal(why)
	}
	n.run()
	server.leave(n)
	if !conn.closed || n.large != nil || n.tx != nil || n.out != nil || n.generation != nil || server.Sessions() != 0 {
		t.Fatalf("something is left of the session: %+v", n)
	}
	if n.ended == "panic" {
		t.Fatal("the server panicked")
	}
	server.cancel(errStopped)
	return conn.said.String(), sink.taken()
}

// cuts are the pieces of a text, in sizes that a seed gives; 0 is one piece, 1
// is byte by byte.
func cuts(text string, seed uint64) [][]byte {
	var all [][]byte
	for len(text) > 0 {
		k := len(text)
		if seed > 0 {
			k = 1 + int(seed*0x9e3779b97f4a7c15>>40%37)
			if seed == 1 {
				k = 1
			} else {
				seed = seed*6364136223846793005 + 1442695040888963407
			}
		}
		k = min(k, len(text))
		all = append(all, []byte(text[:k]))
		text = text[k:]
	}
	return all
}

var replyLine = regexp.MustCompile(`^([2-5][0-9]{2})([ -])[ -~]*$`)

// digits are the first digits of all replies; bad says what is no reply.
func digits(said string) (all []byte, bad string) {
	text, ended := strings.CutSuffix(said, "\r\n")
	if !ended {
		return nil, "the last line has no end"
	}
	code := ""
	for line := range strings.SplitSeq(text, "\r\n") {
		m := replyLine.FindStringSubmatch(line)
		if m == nil || len(line) > 510 || code != "" && code != m[1] {
			return nil, line
		}
		if code = m[1]; m[2] == " " {
			all, code = append(all, m[1][0]), ""
		}
	}
	if code != "" {
		return nil, "a reply that does not end"
	}
	return all, ""
}

var ourReceived = regexp.MustCompile(`(?m)^Received: from [^;]*\n?[^;]*\tby mx\.example\.org with [A-Z0-9]+ id fuzz\.\d+(?:\n\tfor <[!-~]+>)?(?:\n\ttls [A-Z0-9_]+)?; \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d [-+]\d{4}\n`)

// sameContent compares what was taken, without our Received, with what was
// said: a blank line may have come between head and body, and a last line its
// end.
func sameContent(taken, said string) bool {
	at := ourReceived.FindStringIndex(taken)
	if at == nil {
		return false
	}
	taken = taken[:at[0]] + taken[at[1]:]
	if taken == said {
		return true
	}
	k := 0
	for k < len(taken) && k < len(said) && taken[k] == said[k] {
		k++
	}
	return len(taken) == len(said)+1 && taken == said[:k]+"\n"+said[k:]
}

// compare compares what the server made of a session with what the reference
// did.
func compare(t *testing.T, want *reading, said string, taken []stored) {
	t.Helper()
	got, bad := digits(said)
	if bad != "" {
		t.Fatalf("%q is no reply, in %q", bad, said)
	}
	if !bytes.Equal(got, want.answers) {
		t.Fatalf("answers are %s, want %s:\n%s", got, want.answers, said)
	}
	if len(taken) != len(want.messages) {
		t.Fatalf("%d messages were taken, want %d", len(taken), len(want.messages))
	}
	for i, m := range want.messages {
		e := taken[i].envelope
		if e.Sender != m.sender || !slices.Equal(e.Addresses(), m.rcpts) || !sameContent(taken[i].text, m.content) {
			t.Fatalf("message %d:\n%+v\nwant\n%+v", i, taken[i], m)
		}
	}
}

// FuzzServer has the server and the reference read the same words, from several
// states on: in one segment, byte by byte and cut anywhere. They must give the
// same answers and take the same messages, and nothing of the session may be
// left.
func FuzzServer(f *testing.F) {
	states := startStates()
	hidden := "MAIL FROM:<evil@client.example>\r\nRCPT TO:<victim@example.org>\r\nDATA\r\nevil\r\n.\r\nQUIT\r\n"
	for i, form := range falseEnds {
		for s := range states {
			f.Add(uint8(s), uint64(i), []byte("Subject: x\r\n\r\nfirst"+form+hidden))
		}
	}
	for s := range states {
		for _, words := range serverSeeds {
			f.Add(uint8(s), uint64(2), []byte(words))
		}
	}
	gs := generations(f, pipeline.ChainOptions{})
	f.Cleanup(func() { gs.Swap(nil) }) //nolint:errcheck // there is no filter
	idle := runtime.NumGoroutine()
	f.Fuzz(func(t *testing.T, state uint8, seed uint64, words []byte) {
		if len(words) > 16<<10 {
			return
		}
		at := states[int(state)%len(states)]
		text := at.words + string(words)
		if low := strings.ToLower(text); strings.Count(low, "received")+strings.Count(low, "delivered-to") >= MaxHops {
			return // a loop, for which the reference has no eyes
		}
		want := &reading{lmtp: at.service == LMTP, repair: at.repair, auth: at.auth}
		want.readSession(text)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		whole, taken := serveOnce(t, at, gs, cuts(text, 0))
		runtime.ReadMemStats(&after)
		compare(t, want, whole, taken)
		for _, s := range []uint64{1, seed + 2} {
			said, taken := serveOnce(t, at, gs, cuts(text, s))
			if said != whole {
				t.Fatalf("in pieces the answers are\n%s\nand in one\n%s", said, whole)
			}
			compare(t, want, said, taken)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20+64*uint64(len(text)) {
			t.Fatalf("%d bytes of memory for %d of a session", used, len(text))
		}
		if k := runtime.NumGoroutine(); k > idle+20 {
			t.Fatalf("%d goroutines, %d before", k, idle)
		}
	})
}

// serverSeeds are sessions to begin with.
var serverSeeds = []string{
	"QUIT\r\n", "NOOP\r\nRSET\r\nVRFY x\r\nHELP\r\nEXPN y\r\nXYZZY\r\n", "EHLO a b\r\nHELO \x80\r\nLHLO c\r\n\r\n",
	"MAIL FROM:<> SIZE=10 BODY=8BITMIME RET=HDRS ENVID=a+2Bb\r\nRCPT TO:<postmaster> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+20b\r\nDATA\r\nA: b\r\n\r\n..c\r\n.\r\n",
	"MAIL FROM:<\"a\\\" b\"@[192.0.2.1]> AUTH=<>\r\nRCPT TO:<@x,@y.z:c@d.>\r\nBDAT 3\r\nabcBDAT 2 LAST\r\n\r\nQUIT\r\n",
	"MAIL FROM:<ö@ü.example> SMTPUTF8\r\nRCPT TO:<ä@example.org>\r\nBDAT 0 LAST\r\n",
	"BDAT 5\r\nMAIL\r\nNOOP\r\nBDAT 6\r\nNOOP\r\nBDAT 1 LAST\r\nxRSET\r\n", "BDAT 99999999999999999999 LAST\r\nQUIT\r\n", "BDAT -1\r\n", "BDAT 100\r\nx",
	"RCPT TO:<c@example.org>\r\nRCPT TO:<d@example.org>\r\nDATA\r\n folded\r\nX: y\r\n.\r\nNOOP\r\n", "From a@b\r\nA: b\r\n.\r\nQUIT\r\n", "DATA\r\n.\r\nDATA\r\n.\r\n",
	"AUTH PLAIN AGpvZQBzZWNyZXQ=\r\nAUTH LOGIN\r\n", "AUTH LOGIN\r\nam9l\r\nc2VjcmV0\r\nMAIL FROM:<a@b>\r\n", "AUTH PLAIN\r\n*\r\nAUTH PLAIN =\r\nAUTH LOGIN am9l\r\n\r\nAUTH PLAIN AHRyb3VibGUAeA==\r\n",
	"STARTTLS\r\nMAIL FROM:<a@b>\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\x16\x03\x01\x02\x00", "SSH-2.0-x\r\n", "NOOP" + strings.Repeat("x", 2100) + "\r\nNOOP\r\n", "MAIL FROM:<a\x00@b>\r\nMAIL FROM:<a@b\nT c>\r\nBDAT 1\x00\r\n",
	"BDAT 4\r\na\r\n.BDAT 6 LAST\r\n\r\n.\r\n\x00QUIT\r\n", "BDAT 2\r\na\rBDAT 1 LAST\r\n\n", "BDAT 2 LAST\r\na\r", "BDAT 1\r\n\rRSET\r\nMAIL FROM:<a@b>\r\n", "EHLO x\r\nMAIL FROM:<a@b>\r\nDATA\r\nRCPT TO:<>\r\n",
}

// The reference alone, on sessions of which it is plain what they are.
func TestReference(t *testing.T) {
	for _, c := range []struct {
		at             startState
		words, answers string
		messages       int
	}{
		{words: "EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n", answers: "2222322", messages: 1},
		{words: "EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nx\n.\nMAIL FROM:<e@f>\r\n.\r\nQUIT\r\n", answers: "2222352", messages: 0},
		{at: startState{repair: true}, words: inRcpt + "DATA\r\nx\r.\r\n\r\n.\r\n", answers: "222232", messages: 1},
		{words: inRcpt + "BDAT 3\r\nx\r\nBDAT 3 LAST\r\n.\r\nQUIT\r\n", answers: "2222222", messages: 1},
		{at: startState{service: LMTP}, words: strings.ReplaceAll(inRcpt, "EHLO", "LHLO") + "RCPT TO:<c@d>\r\nDATA\r\n.\r\n", answers: "22222322", messages: 1},
		{words: "GET /\r\nQUIT\r\n", answers: "25"},
	} {
		r := &reading{lmtp: c.at.service == LMTP, repair: c.at.repair}
		r.readSession(c.words)
		if string(r.answers) != c.answers || len(r.messages) != c.messages {
			t.Errorf("%q: %s, %d messages", c.words, r.answers, len(r.messages))
		}
		// Two messages in place of one would be seen.
		gs := generations(t, pipeline.ChainOptions{})
		said, taken := serveOnce(t, c.at, gs, cuts(c.words, 0))
		compare(t, r, said, taken)
		gs.Swap(nil) //nolint:errcheck // there is no filter
	}
	if sameContent("Received: from x (local)\n\tby mx.example.org with SMTP id fuzz.1; Mon, 02 Jan 2006 15:04:05 +0000\nab\n", "ac\n") {
		t.Error("other content is the same")
	}
	if fmt.Sprint(cuts("abc", 1)) != "[[97] [98] [99]]" {
		t.Error("not byte by byte")
	}
}
