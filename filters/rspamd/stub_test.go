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

func newFilter(t testing.TB, config string, addresses ...string) *Filter {
	t.Helper()
	env := pipeline.Env{Log: slog.New(slog.DiscardHandler), Host: "mx.example.org"}
	f, err := Kind().New(env, filtertest.Decode("address = [\""+strings.Join(addresses, `", "`)+"\"]\n"+config))
	if err != nil {
		t.Fatal(err)
	}
	return f.(*Filter)
}

// asker has a filter judge: one that fails decides nothing.
func asker(t testing.TB, addresses ...string) func(context.Context) error {
	f := newFilter(t, "milter = true", addresses...)
	return func(ctx context.Context) error {
		v, err := f.Message(ctx, filtertest.Transaction(), message.FromString(serverstest.Long()))
		if err != nil && (v.Action != pipeline.Continue || v.Edits != nil || v.Symbols != nil) || err == nil && v.Symbols[0].Score != 7 {
			t.Errorf("%+v, %v", v, err)
		}
		return err
	}
}

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
		all = append(all, serverstest.Fault{Name: name, Play: serverstest.Saying(asked, text)})
	}
	return all
}

// Whatever a rspamd does wrong, the filter fails in time and decides nothing;
// with another rspamd beside it, that one judges.
func TestFaults(t *testing.T) {
	serverstest.Suffer(t, append(serverstest.Faults(asked, good), own()...), honest, asker)
}

// Nothing is there.
func TestAbsent(t *testing.T) { serverstest.Absent(t, "not judged: ", asker) }

// The end of the context ends a call that waits, and is nobody's fault.
func TestCancel(t *testing.T) {
	var f *Filter
	serverstest.Cancel(t, func(t testing.TB, addresses ...string) func(context.Context) error {
		f = newFilter(t, "", addresses...)
		return func(ctx context.Context) error {
			_, err := f.Message(ctx, filtertest.Transaction(), message.FromString(serverstest.Long()))
			return err
		}
	})
	if err := f.rspamds.Failing(); err != nil {
		t.Error(err)
	}
}

// After many faults there are as many descriptors as before; goroutines are
// counted at the end of all tests.
func TestLeaks(t *testing.T) {
	s := serverstest.Start(t, "unix", honest)
	filtertest.Must(t, newFilter(t, "", s.Address), serverstest.Long())
	serverstest.Leaks(t, s, append(serverstest.Faults(asked, good), own()...), func() error {
		_, err := filtertest.Judge(newFilter(t, "milter = true", s.Address), serverstest.Long(), 20*time.Second)
		return err
	})
}
