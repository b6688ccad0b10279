package rspamd

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/servers/serverstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// read reads a question; /ping it answers by itself.
func read(c *serverstest.Conn) (r *http.Request, body string, ok bool) {
	r, err := http.ReadRequest(c.R)
	if err != nil {
		return nil, "", false
	}
	if r.URL.Path == "/ping" {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\npong\r\n")
		return r, "", false
	}
	b, err := io.ReadAll(r.Body)
	return r, string(b), err == nil && r.Method == "POST" && r.URL.Path == "/checkv2"
}

func asked(c *serverstest.Conn) bool {
	_, _, ok := read(c)
	return ok
}

// says is an answer with that body.
func says(json string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nConnection: close\r\nServer: rspamd/3.4\r\nContent-Length: %d\r\nContent-Type: application/json\r\n\r\n%s", len(json), json)
}

// judged is what rspamd says of an action; more goes into the object.
func judged(action string, score float64, more string) string {
	return says(fmt.Sprintf(`{"is_skipped":false,"score":%v,"required_score":15.0,"action":%q,"symbols":{"A":{"name":"A","score":%v,"options":["x"]},"B":{"name":"B","score":-0.5}},"messages":{},"time_real":0.1%s}`, score, action, score+0.5, more))
}

// honest does what the subject says: "action|more".
func honest(c *serverstest.Conn) {
	_, body, ok := read(c)
	if !ok {
		return
	}
	_, rest, _ := strings.Cut(body, "Do: ")
	line, _, _ := strings.Cut(rest, "\n")
	action, more, _ := strings.Cut(line, "|")
	if action == "" {
		action = "no action"
	}
	c.Say(judged(action, 7, more))
}

func saying(text string) func(*serverstest.Conn) {
	return func(c *serverstest.Conn) {
		if asked(c) {
			c.Say(text)
		}
	}
}

func newFilter(t testing.TB, config string, addresses ...string) *Filter {
	t.Helper()
	env := pipeline.Env{Log: slog.New(slog.DiscardHandler), Host: "mx.example.org"}
	f, err := Kind().New(env, filtertest.Decode("address = [\""+strings.Join(addresses, `", "`)+"\"]\n"+config))
	if err != nil {
		t.Fatal(err)
	}
	return f.(*Filter)
}

func transaction(to ...string) *pipeline.Transaction {
	if len(to) == 0 {
		to = []string{"r@example.org"}
	}
	tx := &pipeline.Transaction{ID: "T1", Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", to...)}
	for i := range to {
		tx.Active = append(tx.Active, i)
	}
	return tx
}

// judge has a filter judge a message to some recipients.
func judge(f *Filter, text string, within time.Duration, to ...string) (pipeline.Verdict, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return f.Message(ctx, transaction(to...), message.FromString(text))
}

func must(t testing.TB, f *Filter, text string, to ...string) pipeline.Verdict {
	t.Helper()
	v, err := judge(f, text, 20*time.Second, to...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// large is longer than what a socket holds.
var large = "Subject: large\n\n" + strings.Repeat(strings.Repeat("x", 70)+"\n", 7000)

var good = judged("reject", 20, "")

// own are faults of this protocol.
func own() (all []serverstest.Fault) {
	deep := strings.Repeat(`{"a":`, 30) + "1" + strings.Repeat("}", 30)
	many := strings.Repeat(`"S%d":{"score":1},`, 1)
	var symbols strings.Builder
	for i := range 501 {
		fmt.Fprintf(&symbols, many, i)
	}
	length := func(n int) string {
		return strings.Replace(good, "Content-Length: ", fmt.Sprintf("X-Was: 1\r\nContent-Length: %d\r\nX-Was: ", n), 1)
	}
	for name, text := range map[string]string{
		"a length too small": length(20), "a length too large": length(5000), "a length that is none": length(-1), "a length too large by far": length(1 << 40),
		"two lengths": strings.Replace(good, "Content-Type:", "Content-Length: 1\r\nContent-Type:", 1), "no length": strings.Replace(good, "Content-Length", "X-Length", 1),
		"chunks":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"redirection": "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "403": "HTTP/1.1 403 no\x1b[2J\r\nContent-Length: 0\r\n\r\n",
		"500": "HTTP/1.1 500 trouble\r\nContent-Length: 0\r\n\r\n", "100": "HTTP/1.1 100 Continue\r\n\r\n", "204": "HTTP/1.1 204 No Content\r\n\r\n",
		"no JSON": says("hello"), "an array": says("[]"), "null": says("null"), "empty": says(""), "no action": says(`{"score":1}`), "no score": says(`{"action":"reject"}`), "an error": says(`{"error":"trouble"}`),
		"two objects": says(`{"score":1,"action":"reject"}{"score":1,"action":"reject"}`), "two actions": says(`{"score":1,"action":"reject","action":"no action"}`), "cut off": says(`{"score":1,"action":"reject"`),
		"NaN": says(`{"score":NaN,"action":"reject"}`), "a text for a score": says(`{"score":"nan","action":"reject"}`), "infinite": says(`{"score":1e999,"action":"reject"}`), "huge": says(`{"score":1e300,"action":"reject"}`),
		"a huge level": says(`{"score":1,"required_score":-1e300,"action":"reject"}`), "a huge symbol": says(`{"score":1,"action":"reject","symbols":{"A":{"score":1e300}}}`),
		"deep": says(`{"score":1,"action":"reject","x":` + deep + `}`), "deep without end": says(strings.Repeat("[", 500_000)), "many symbols": says(`{"score":1,"action":"reject","symbols":{` + strings.TrimSuffix(symbols.String(), ",") + `}}`),
		"control bytes in a symbol": says(`{"score":1,"action":"reject","symbols":{"A\u001b[2J":{"score":1}}}`), "a line in a symbol": says(`{"score":1,"action":"reject","symbols":{"A\r\nX-Injected: b":{"score":1}}}`),
		"not UTF-8": says("{\"score\":1,\"action\":\"reject\",\"symbols\":{\"A\xff\":{\"score\":1}}}"), "an unknown action": judged("format the disk", 1, ""), "an odd action": judged("reject\x1b", 1, ""),
		"symbols that are none": says(`{"score":1,"action":"reject","symbols":[1]}`), "a long answer": says(`{"score":1,"action":"reject","x":"` + strings.Repeat("x", maxAnswer) + `"}`),
		"a field that is none": judged("reject", 1, `,"milter":{"add_headers":{"X Y":"z"}}`), "many fields": judged("reject", 1, `,"milter":{"add_headers":{"X":[`+strings.Repeat(`"a",`, 60)+`"a"]}}`),
		"a field without a value": judged("reject", 1, `,"milter":{"add_headers":{"X":{"order":1}}}`), "a long field": judged("reject", 1, `,"milter":{"add_headers":{"X":"`+strings.Repeat("x", 9000)+`"}}`),
	} {
		all = append(all, serverstest.Fault{Name: name, Play: saying(text)})
	}
	return all
}

// Whatever a rspamd does wrong, the filter fails in time and decides nothing;
// with another rspamd beside it, that one judges.
func TestFaults(t *testing.T) {
	for _, fault := range append(serverstest.Faults(asked, good), own()...) {
		t.Run(fault.Name, func(t *testing.T) {
			t.Parallel()
			bad := serverstest.Start(t, "unix", fault.Play)
			f := newFilter(t, "milter = true", bad.Address)
			within := 20 * time.Second
			if fault.Slow {
				within = time.Second
			}
			v, err := judge(f, large, within)
			if err == nil || v.Action != pipeline.Continue || v.Edits != nil || v.Symbols != nil || !strings.Contains(err.Error(), bad.Address) {
				t.Fatalf("%+v, %v", v, err)
			}
			if strings.ContainsFunc(err.Error(), func(c rune) bool { return c < ' ' || c > '~' }) {
				t.Errorf("%q", err)
			}
			fine := serverstest.Start(t, "unix", honest)
			f = newFilter(t, "", bad.Address, fine.Address)
			if fault.Slow {
				within = 4 * time.Second // of which each has a half
			}
			for range 2 { // so that both come first once
				if v, err = judge(f, large, within); err != nil || v.Symbols[0].Score != 7 {
					t.Errorf("beside one that works: %v, %v", v, err)
				}
			}
		})
	}
}

// Nothing is there.
func TestAbsent(t *testing.T) {
	gone := serverstest.Start(t, "tcp", honest)
	gone.Stop()
	f := newFilter(t, "", gone.Address, "unix:/nonexistent/rspamd")
	for range 4 {
		if _, err := judge(f, large, 10*time.Second); err == nil || !strings.Contains(err.Error(), "not judged: ") || !strings.Contains(err.Error(), gone.Address) || !strings.Contains(err.Error(), "/nonexistent") {
			t.Fatal(err)
		}
	}
}

// The end of the context ends a call that waits, and is nobody's fault.
func TestCancel(t *testing.T) {
	began := make(chan struct{}, 1)
	s := serverstest.Start(t, "tcp", func(c *serverstest.Conn) {
		began <- struct{}{}
		c.Hang()
	})
	f := newFilter(t, "", s.Address)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-began
		cancel()
	}()
	if _, err := f.Message(ctx, transaction(), message.FromString(large)); err == nil || f.rspamds.Failing() != nil {
		t.Error(err, f.rspamds.Failing())
	}
}

// After many faults there are as many descriptors as before; goroutines are
// counted at the end of all tests.
func TestLeaks(t *testing.T) {
	s := serverstest.Start(t, "unix", honest)
	must(t, newFilter(t, "", s.Address), large)
	serverstest.Leaks(t, s, append(serverstest.Faults(asked, good), own()...), func() error {
		_, err := judge(newFilter(t, "milter = true", s.Address), large, 20*time.Second)
		return err
	})
}
