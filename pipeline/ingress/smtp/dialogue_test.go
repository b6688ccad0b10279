package smtp

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-mta/postern/pipeline"
)

// dialogue is one case of testdata/dialogue; its README has the format.
type dialogue struct {
	name    string
	where   string
	options []setting
	steps   []step
}

type setting struct{ key, value string }

type step struct {
	where, verb, text string
	times             int
}

func TestDialogues(t *testing.T) {
	files, err := filepath.Glob("testdata/dialogue/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no dialogues", err)
	}
	count := 0
	for _, file := range files {
		for _, d := range readDialogues(t, file) {
			count++
			name := strings.TrimSuffix(filepath.Base(file), ".txt") + "/" + d.name
			t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { d.run(t, false) }) })
			if !d.has("whole") {
				t.Run(name+"/bytewise", func(t *testing.T) { synctest.Test(t, func(t *testing.T) { d.run(t, true) }) })
			}
		}
	}
	_, cells := readMatrix(t)
	t.Logf("%d dialogues, %d commands in states", count, len(cells))
	if all := count + len(cells); all < minCases {
		t.Errorf("%d cases, want at least %d", all, minCases)
	}
}

var stepLine = regexp.MustCompile(`^(C|C-|S|S\+|EOF|CLOSE|WAIT|TLS|STORED|FROM|TO|BODY|HEAD|ORIGIN|HOLD|WRITES|LOG|NOLOG|TRANSCRIPT|NOTRANSCRIPT|STOP|RESETS|AT|ENVELOPE)(?:\*(\d+))?(?::(?: (.*))?)?$`)

func readDialogues(t *testing.T, file string) []*dialogue {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []*dialogue
	var d *dialogue
	for i, line := range strings.Split(string(content), "\n") {
		where := fmt.Sprintf("%s:%d", filepath.Base(file), i+1)
		if name, ok := strings.CutPrefix(line, "== "); ok {
			d = &dialogue{name: name, where: where}
			all = append(all, d)
			continue
		}
		m := stepLine.FindStringSubmatch(line)
		switch key, value, isOption := strings.Cut(line, ": "); {
		case line == "" || strings.HasPrefix(line, "#"):
		case d == nil:
			t.Fatalf("%s: a case begins with == and its name", where)
		case m != nil:
			times := 1
			if m[2] != "" {
				times, _ = strconv.Atoi(m[2]) //nolint:errcheck // they are digits
			}
			d.add(t, step{where, m[1], m[3], times})
		case len(d.steps) == 0 && (isOption || strings.TrimSpace(line) == line && !strings.Contains(line, " ")):
			d.options = append(d.options, setting{strings.TrimSuffix(key, ":"), value})
		default:
			t.Fatalf("%s: %q is no line of a dialogue", where, line)
		}
	}
	return all
}

// preambles bring a session from its beginning into a state.
var preambles = [...]struct {
	state string
	steps []step
}{
	{"fresh", []step{{verb: "S", text: "220 mx.example.org ..."}}},
	{"ready", []step{{verb: "C", text: "EHLO client.example"}, {verb: "S+", text: "250"}}},
	{"sender", []step{{verb: "C", text: "MAIL FROM:<a@client.example>"}, {verb: "S", text: "250 2.1.0 ok"}}},
	{"rcpts", []step{{verb: "C", text: "RCPT TO:<b@example.org>"}, {verb: "S", text: "250 2.1.5 ok"}}},
	{"data", []step{{verb: "C", text: "DATA"}, {verb: "S", text: "354 ..."}}},
	{"chunks", []step{{verb: "C", text: "BDAT 6"}, {verb: "C", text: "A: b"}, {verb: "S", text: "250 2.0.0 6 octets received"}}},
}

// add appends a step. AT stands for all that leads to a state.
func (d *dialogue) add(t *testing.T, s step) {
	if s.verb != "AT" {
		d.steps = append(d.steps, s)
		return
	}
	for _, p := range preambles {
		if p.state == "data" && s.text != "data" {
			continue
		}
		for _, n := range p.steps {
			n.where, n.times = s.where, 1
			for _, o := range d.options {
				if o == (setting{"service", "lmtp"}) {
					n.text = strings.Replace(n.text, "EHLO", "LHLO", 1)
				}
			}
			d.steps = append(d.steps, n)
		}
		if p.state == s.text {
			return
		}
	}
	t.Fatalf("%s: there is no state %q", s.where, s.text)
}

func (d *dialogue) has(key string) bool {
	for _, s := range d.options {
		if s.key == key {
			return true
		}
	}
	return false
}

// client is the dialogue's end of the connection.
type client struct {
	t        *testing.T
	conn     net.Conn
	bytewise bool
	lines    chan string
	mu       sync.Mutex
	writes   int
	rest     string // of a line that has not ended
	raw      net.Conn
}

// read gives the server's lines, until the connection ends or another reader
// takes over.
func (c *client) read(conn net.Conn, stop <-chan struct{}, done chan<- struct{}) {
	defer close(done)
	b := make([]byte, 64<<10)
	for {
		k, err := conn.Read(b)
		if k > 0 {
			c.mu.Lock()
			c.writes++
			c.mu.Unlock()
			c.rest += string(b[:k])
			for {
				line, rest, ok := strings.Cut(c.rest, "\r\n")
				if !ok {
					break
				}
				c.rest = rest
				c.lines <- line
			}
		}
		if err != nil {
			select {
			case <-stop:
			default:
				if c.rest != "" {
					c.lines <- "(cut off) " + c.rest
				}
				close(c.lines)
			}
			return
		}
	}
}

func (c *client) send(s string) {
	if !c.bytewise {
		c.conn.Write([]byte(s)) //nolint:errcheck // the server may have closed; what it says is compared
		return
	}
	for i := range len(s) {
		if _, err := c.conn.Write([]byte{s[i]}); err != nil {
			return
		}
	}
}

func (c *client) expect(where, want string) {
	c.t.Helper()
	line, ok := c.line()
	prefix, open := strings.CutSuffix(want, "...")
	switch {
	case !ok:
		c.t.Fatalf("%s: the server closed the connection, want %q", where, want)
	case open && strings.HasPrefix(line, prefix), line == want:
	default:
		c.t.Fatalf("%s: the server says\n\t%q, want\n\t%q", where, line, want)
	}
}

// line is the server's next line. It waits for up to a day of a clock that
// runs as fast as the test does.
func (c *client) line() (string, bool) {
	select {
	case line, ok := <-c.lines:
		return line, ok
	case <-time.After(24 * time.Hour):
		c.t.Error("the server says nothing")
		return "(nothing)", true
	}
}

// expectReply reads a whole reply: a code, and what its lines must be, or with
// an exclamation mark must not begin with.
func (c *client) expectReply(where, want string) {
	c.t.Helper()
	parts := strings.Split(want, " | ")
	code := parts[0]
	lines := map[string]bool{}
	for {
		line, ok := c.line()
		if !ok || !strings.HasPrefix(line, code) || len(line) < 4 {
			c.t.Fatalf("%s: the server says %q, want code %s", where, line, code)
		}
		lines[line[4:]] = true
		if line[3] == ' ' {
			break
		}
	}
	for _, p := range parts[1:] {
		if unwanted, not := strings.CutPrefix(p, "!"); not {
			for l := range lines {
				if strings.HasPrefix(l, unwanted) {
					c.t.Errorf("%s: the reply has %q", where, l)
				}
			}
		} else if !lines[p] {
			c.t.Errorf("%s: the reply lacks %q: %v", where, p, lines)
		}
	}
}

// unescape reads \r \n \t \0 \\ and \xNN.
func unescape(t *testing.T, where, s string) string {
	t.Helper()
	if !strings.Contains(s, `\`) {
		return s
	}
	s = strings.ReplaceAll(strings.ReplaceAll(s, `"`, `\"`), `\0`, `\x00`)
	out, err := strconv.Unquote(`"` + s + `"`)
	if err != nil {
		t.Fatalf("%s: %q: %v", where, s, err)
	}
	return out
}

func (d *dialogue) run(t *testing.T, bytewise bool) {
	st := newStage(t, d.options)
	server, err := New(st.o)
	if err != nil {
		t.Fatalf("%s: %v", d.where, err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background()) }()
	conn := st.listener.dial(t, st.peer)
	c := &client{t: t, conn: conn, raw: conn, bytewise: bytewise, lines: make(chan string, 10000)}
	stop, done := make(chan struct{}), make(chan struct{})
	if st.o.TLSMode == TLSImplicit && !d.has("plainclient") {
		c.conn = tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it is our own
	}
	go c.read(c.conn, stop, done)
	defer func() { // also after a fatal error
		c.raw.Close()
		for range c.lines {
		}
		d.end(t, st, server, served)
	}()
	for i := 0; i < len(d.steps); i++ {
		s := d.steps[i]
		if s.verb == "C" || s.verb == "C-" {
			// What the client says without waiting goes in one piece.
			var all strings.Builder
			for ; i < len(d.steps) && (d.steps[i].verb == "C" || d.steps[i].verb == "C-"); i++ {
				line := unescape(t, d.steps[i].where, d.steps[i].text)
				if d.steps[i].verb == "C" {
					line += "\r\n"
				}
				all.WriteString(strings.Repeat(line, d.steps[i].times))
			}
			i--
			c.send(all.String())
			continue
		}
		if s.verb == "TLS" {
			close(stop)
			c.raw.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // pipes have deadlines
			<-done
			c.raw.SetReadDeadline(time.Time{}) //nolint:errcheck // likewise
			stop, done = make(chan struct{}), make(chan struct{})
			c.conn = tls.Client(c.raw, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it is our own
			go c.read(c.conn, stop, done)
			continue
		}
		st.check(t, server, c, s)
	}
}

// end stops the server and looks at what can be looked at only then.
func (d *dialogue) end(t *testing.T, st *stage, server *Server, served <-chan error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := st.o.Chains.(*pipeline.Generations).Swap(nil); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		return
	}
	for _, s := range d.steps {
		st.checkLate(t, s)
	}
	if in, out := st.gate.in.count(), st.gate.out.count(); in != out {
		t.Errorf("%s: %d connections were counted in, %d out", d.where, in, out)
	}
}

// check does one step that is not the client's.
func (st *stage) check(t *testing.T, server *Server, c *client, s step) {
	t.Helper()
	last := stored{}
	if all := st.sink.taken(); len(all) > 0 {
		last = all[len(all)-1]
	}
	head, body, _ := strings.Cut(last.text, "\n\n")
	text := s.text
	switch s.verb {
	case "S", "S+", "FROM", "TO", "HOLD", "BODY":
		text = unescape(t, s.where, s.text)
	}
	same := func(got string) {
		t.Helper()
		if got != text {
			t.Errorf("%s: %s is %q, want %q", s.where, s.verb, got, text)
		}
	}
	switch s.verb {
	case "S":
		for range s.times {
			c.expect(s.where, text)
		}
	case "S+":
		for range s.times {
			c.expectReply(s.where, text)
		}
	case "EOF":
		if line, ok := c.line(); ok {
			t.Fatalf("%s: the server says %q, want it to close", s.where, line)
		}
	case "CLOSE":
		c.raw.Close()
		synctest.Wait()
	case "WAIT":
		var d time.Duration
		if err := duration(&d, text); err != nil {
			t.Fatal(err)
		}
		time.Sleep(d)
		synctest.Wait()
	case "STOP":
		go server.Shutdown(context.Background()) //nolint:errcheck // it is called again at the end
		synctest.Wait()
	case "STORED":
		same(strconv.Itoa(len(st.sink.taken())))
	case "FROM":
		same(last.envelope.Sender)
	case "TO":
		same(strings.Join(last.envelope.Addresses(), " "))
	case "HOLD":
		same(last.hold)
	case "BODY":
		same(body)
	case "HEAD":
		matches(t, s, head)
	case "ENVELOPE":
		for _, r := range last.envelope.Recipients {
			if r.DSN != nil {
				head += fmt.Sprintf("%+v", *r.DSN)
			}
		}
		matches(t, s, head+fmt.Sprintf("%+v", last.envelope))
	case "ORIGIN":
		matches(t, s, fmt.Sprintf("%+v", last.origin))
	case "WRITES":
		c.mu.Lock()
		if !c.bytewise {
			same(strconv.Itoa(c.writes))
		}
		c.writes = 0
		c.mu.Unlock()
	}
}

// checkLate does what can be looked at only when the session has ended.
func (st *stage) checkLate(t *testing.T, s step) {
	t.Helper()
	switch s.verb {
	case "LOG":
		matches(t, s, st.log.String())
	case "NOLOG":
		if regexp.MustCompile(s.text).MatchString(st.log.String()) {
			t.Errorf("%s: the log has %s:\n%s", s.where, s.text, st.log.String())
		}
	case "TRANSCRIPT":
		matches(t, s, st.script.String())
	case "NOTRANSCRIPT":
		if regexp.MustCompile(s.text).MatchString(st.script.String()) {
			t.Errorf("%s: the transcript has %s:\n%s", s.where, s.text, st.script.String())
		}
	case "RESETS":
		if got := strconv.Itoa(st.resets.count()); got != s.text {
			t.Errorf("%s: %s resets", s.where, got)
		}
	}
}

func matches(t *testing.T, s step, text string) {
	t.Helper()
	if !regexp.MustCompile(s.text).MatchString(text) {
		t.Errorf("%s: %s\n%s\ndoes not match %s", s.where, s.verb, text, s.text)
	}
}
