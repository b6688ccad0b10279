package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/plugins/sdk/sdktest"
)

const message = "From: alice@example.net\r\nSubject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n\r\nbody\r\n"

// served is a case with a server that does f.
func served(t *testing.T, name string, f http.HandlerFunc, want sdktest.Want) sdktest.Case {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return sdktest.Case{
		Name: name, Text: message, From: "alice@example.net", To: []string{"a@example.org", "b@example.org"},
		Options: map[string]any{"url": s.URL + "/ask?x=1", "token": "secret"}, Want: want,
	}
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(text)) } //nolint:errcheck // the client may be gone
}

func TestAnswers(t *testing.T) {
	bytes := "From: alice@example.net\nSubject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\n\nbody\n"
	sdktest.Run(t, plugin,
		served(t, "continue", says(`{"action": "continue", "unknown": [1]}`), sdktest.Want{Message: bytes}),
		served(t, "accept", says(`{"action": "accept", "reason": "known"}`), sdktest.Want{Action: "accept", Reason: "known"}),
		served(t, "reject", says(`{"action": "reject", "code": "5.7.0", "text": "no\r\nRCPT TO", "reason": "x"}`), sdktest.Want{Action: "reject", Reply: "554 5.7.0 no RCPT TO", Reason: "x"}),
		served(t, "defer", says(`{"action": "defer", "text": "later"}`), sdktest.Want{Action: "defer", Reply: "451 4.7.1 later"}),
		served(t, "discard", says(`{"action": "discard"}`), sdktest.Want{Action: "discard"}),
		served(t, "quarantine", says(`{"action": "quarantine", "reason": "odd"}`), sdktest.Want{Action: "quarantine", Reason: "odd"}),
		served(t, "fields, a score", says(`{"action": "continue", "add": [["X-A", "1"], ["X-B", "2"]], "score": 2.5}`), sdktest.Want{Message: "X-B: 2\nX-A: 1\n" + bytes, Symbols: []string{"WEBHOOK"}}),
	)
}

func TestQuestion(t *testing.T) {
	asked := func(w http.ResponseWriter, r *http.Request) {
		var q question
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Error(err)
		}
		got, _ := json.Marshal(q)
		want := `{"id":"transaction","chain":"inbound","client":"192.0.2.1","helo":"client.example.net","user":"","sender":"alice@example.net",` +
			`"recipients":["a@example.org","b@example.org"],"size":` + strconv.Itoa(len(strings.ReplaceAll(message, "\r", ""))) + `,"subject":"grüße","fields":[["From","alice@example.net"],["Subject","=?utf-8?q?gr=C3=BC=C3=9Fe?="]]}`
		if string(got) != want || r.Method != "POST" || r.URL.String() != "/ask?x=1" || r.Header.Get("Authorization") != "Bearer secret" {
			t.Errorf("%s %s %v: %s", r.Method, r.URL, r.Header, got)
		}
		says(`{"action": "accept"}`)(w, r)
	}
	sdktest.Run(t, plugin, served(t, "all of it", asked, sdktest.Want{Action: "accept"}))
}

// Whatever a server does wrong is an error: it never lets mail through, and never
// refuses it.
func TestFaults(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/accept")
			w.WriteHeader(code)
		}
	}
	cut := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.Write([]byte(`{"action": "accept"}`)) //nolint:errcheck // it is cut short
	}
	hangs := func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) //nolint:errcheck // only then does the server see that the client is gone
		<-r.Context().Done()
	}
	slow := func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte(`{"action":`)) //nolint:errcheck // the client goes away
		w.(http.Flusher).Flush()
		hangs(w, r)
	}
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	quick := func(c sdktest.Case) sdktest.Case {
		c.Options["wait"] = "200ms"
		return c
	}
	long := func(c sdktest.Case) sdktest.Case {
		c.Timeout = 200 * time.Millisecond
		return c
	}
	sdktest.Run(t, plugin,
		served(t, "500", status(500), sdktest.Want{Error: "it answers 500"}),
		served(t, "404", status(404), sdktest.Want{Error: "it answers 404"}),
		served(t, "204", status(204), sdktest.Want{Error: "it answers 204"}),
		served(t, "a redirect", status(302), sdktest.Want{Error: "it answers 302"}),
		served(t, "cut short", cut, sdktest.Want{Error: "unexpected EOF"}),
		served(t, "nothing", says(""), sdktest.Want{Error: "cannot be read"}),
		served(t, "no JSON", says("<html>accept</html>"), sdktest.Want{Error: "cannot be read"}),
		served(t, "another JSON", says(`["accept"]`), sdktest.Want{Error: "cannot be read"}),
		served(t, "two", says(`{"action": "accept"} {"action": "reject"}`), sdktest.Want{Error: "cannot be read"}),
		served(t, "no action", says(`{}`), sdktest.Want{Error: `the action "", which there is not`}),
		served(t, "another action", says(`{"action": "pass"}`), sdktest.Want{Error: `the action "pass", which there is not`}),
		served(t, "a code that contradicts", says(`{"action": "reject", "code": "4.7.1"}`), sdktest.Want{Error: "none of 5.x.x"}),
		served(t, "a field that breaks out", says(`{"action": "continue", "add": [["X", "1\nBcc: y"]]}`), sdktest.Want{Error: "does not begin with a blank"}),
		served(t, "too long", says(`{"action": "accept", "reason": "`+strings.Repeat("x", maxAnswer)+`"}`), sdktest.Want{Error: "more than 65536 bytes"}),
		quick(served(t, "hangs", hangs, sdktest.Want{Error: "exceeded"})),
		quick(served(t, "hangs in its answer", slow, sdktest.Want{Error: "exceeded"})),
		long(served(t, "longer than the call", hangs, sdktest.Want{Error: "DeadlineExceeded"})),
		sdktest.Case{Name: "nobody there", Text: message, Options: map[string]any{"url": "http://" + gone.Addr().String()}, Want: sdktest.Want{Error: "connection refused"}},
		sdktest.Case{Name: "no URL", Text: message, Want: sdktest.Want{Problem: "url: it is missing"}},
		sdktest.Case{Name: "another scheme", Text: message, Options: map[string]any{"url": "file:///etc/passwd"}, Want: sdktest.Want{Problem: "url: "}},
		sdktest.Case{Name: "no time", Text: message, Options: map[string]any{"url": "http://127.0.0.1/", "wait": "0s"}, Want: sdktest.Want{Problem: "wait: "}},
	)
}

func TestProgram(t *testing.T) {
	sdktest.RunProgram(t, []string{sdktest.Build(t, ".")}, served(t, "accept", says(`{"action": "accept"}`), sdktest.Want{Action: "accept"}))
}
