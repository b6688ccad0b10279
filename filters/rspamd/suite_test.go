package rspamd

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/servers/serverstest"
)

// The suite that every filter passes, with each action.
func TestSuite(t *testing.T) {
	s := serverstest.Start(t, "unix", honest)
	address := "address = [\"" + s.Address + "\"]\n"
	does := func(what string) string { return "Subject: x\nDo: " + what + "\n\nbody\n" }
	marks := func(what string) string {
		return "X-Spam-Flag: YES\nX-Spam-Score: 7\nX-Spam-Status: Yes, score=7 required=15 by=rspamd\n\ttests=A=7.5,B=-0.5\n" + what
	}
	const milter = `add header|,"milter":{"add_headers":{"X-One":"a","X-Two":{"value":"b\r\n\tc\u0007d","order":1},"X-Three":["e",{"value":"f"}]},"remove_headers":{"X-Old":0,"Received":0,"X-Nth":[1,3]}}`
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: address,
		Cases: []filtertest.Case{
			{Name: "no action", WantReason: "no action, score 7: A=7.5 B=-0.5"},
			{Name: "reject", Message: does("reject"), WantAction: pipeline.Reject, WantReply: "554 5.7.1 this message looks like spam", WantReason: "reject, score 7", WantEnvelopes: []string{}},
			{Name: "its words", Message: does(`reject|,"messages ":1,"x":{"smtp_message":"not this"}`), WantAction: pipeline.Reject, WantReply: "looks like spam", WantEnvelopes: []string{}},
			{Name: "our words", Config: address + "text = \"go away\"", Message: does("reject"), WantAction: pipeline.Reject, WantReply: "554 5.7.1 go away", WantEnvelopes: []string{}},
			{Name: "soft reject", Message: does("soft reject"), WantAction: pipeline.Defer, WantReply: "451 4.7.1 please try again later", WantEnvelopes: []string{}},
			{Name: "greylist", Message: does("greylist"), WantReason: "greylist, score 7"},
			{Name: "greylist, defer", Config: address + "[action]\ngreylist = \"defer\"", Message: does("greylist"), WantAction: pipeline.Defer, WantEnvelopes: []string{}},
			{Name: "add header", Message: does("add header"), WantMessage: marks(does("add header"))},
			{Name: "forged marks", Message: "X-Spam-Flag: NO\n" + does("no action"), WantMessage: does("no action")},
			{Name: "rewrite subject", Message: does("rewrite subject"), WantMessage: marks(strings.Replace(does("rewrite subject"), "x", "[SPAM] x", 1))},
			{Name: "its subject", Message: does(`rewrite subject|,"subject":"*** x"`), WantMessage: marks(strings.Replace(does(`rewrite subject|,"subject":"*** x"`), "Subject: x", "Subject: *** x", 1))},
			{Name: "an evil subject", Message: does(`rewrite subject|,"subject":"a\r\nX: b"`), WantMessage: marks(strings.Replace(does(`rewrite subject|,"subject":"a\r\nX: b"`), "Subject: x", "Subject: [SPAM] x", 1))},
			{Name: "quarantine", Config: address + "fields = \"none\"", Message: does("quarantine"), WantAction: pipeline.Quarantine},
			{Name: "discard is no loss", Config: address + "fields = \"none\"", Message: does("discard"), WantAction: pipeline.Quarantine},
			{Name: "discard", Config: address + "[action]\ndiscard = \"discard\"", Message: does("discard"), WantAction: pipeline.Discard, WantReply: "250", WantEnvelopes: []string{}},
			{Name: "custom", Config: address + "[custom]\nphish = \"refuse\"", Message: does("phish"), WantAction: pipeline.Reject, WantEnvelopes: []string{}},
			{Name: "unknown", Message: does("phish"), WantErr: "the action \"phish\""},
			{
				Name: "milter", Config: address + "milter = true\nfields = \"none\"", Message: "Received: 1\nX-Old: 1\nX-Nth: 1\nX-Nth: 2\nX-Nth: 3\nx-old: 2\n" + does(milter),
				WantMessage: "X-Two: b\n\tc?d\nX-Three: f\nX-Three: e\nX-One: a\nReceived: 1\nX-Nth: 2\n" + does(milter),
			},
			{Name: "milter not asked", Config: address + "fields = \"none\"", Message: does(milter)},
			{Name: "too large", Config: address + "max = 10", Message: "X-Spam-Flag: NO\n" + does("reject"), WantMessage: does("reject"), WantReason: "not judged: larger than 10 bytes"},
			{Name: "its beginning", Config: address + "max = 10\nlarge = \"prefix\"", Message: does("reject"), WantReason: "no action, score 7, of its first 10 bytes"},
			{Name: "no rspamd", Config: "address = [\"unix:/nonexistent/rspamd\"]", WantErr: "not judged: unix:/nonexistent/rspamd"},
		},
	})
}

// What rspamd has to say to the sender is said, clean.
func TestWords(t *testing.T) {
	s := serverstest.Start(t, "unix", serverstest.Saying(asked, says(`{"score":1,"action":"soft reject","messages":{"smtp_message":"greylisted\r\n250 ok\u001b","other":[1]}}`)))
	v := filtertest.Must(t, newFilter(t, "", s.Address), "Subject: x\n\n")
	if v.Action != pipeline.Defer || v.Reply.SMTP() != "451 4.7.1 greylisted 250 ok?" {
		t.Errorf("%v %s", v.Action, v.Reply.SMTP())
	}
	// One that leaves the connection open has answered all the same.
	s.Play(func(c *serverstest.Conn) {
		if asked(c) {
			c.Say(judged("reject", 1, ""))
			c.Hang()
		}
	})
	if v := filtertest.Must(t, newFilter(t, "", s.Address), "Subject: x\n\n"); v.Action != pipeline.Reject {
		t.Error(v)
	}
}

// What rspamd is told of client and envelope, clean and bounded.
func TestQuestion(t *testing.T) {
	got := make(chan *http.Request, 1)
	var body string
	s := serverstest.Start(t, "tcp", func(c *serverstest.Conn) {
		if r, b, ok := read(c); ok {
			body = b
			got <- r
			c.Say(judged("no action", 0, ""))
		}
	})
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("secret\nmore\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFilter(t, "user = \"recipient\"\nsettings = \"strict\"\npassword_file = \""+file+"\"", s.Address)
	tx := filtertest.Transaction("joe@example.org")
	tx.Session.Helo, tx.Session.User, tx.Session.PeerName = "evil\r\nX-Injected: 1", "sam", "mail.example.net"
	if _, err := f.Message(t.Context(), tx, message.FromString("Subject: x\n\nbody\n")); err != nil {
		t.Fatal(err)
	}
	r := <-got
	for name, want := range map[string]string{
		"Password": "secret", "Settings-Id": "strict", "Ip": tx.Session.Peer.Addr().String(), "Helo": "evil??X-Injected: 1", "Hostname": "mail.example.net", "User": "sam",
		"Mta-Name": "mx.example.org", "Queue-Id": "T1", "From": "<a@example.net>", "Rcpt": "<joe@example.org>", "Deliver-To": "joe@example.org", "X-Injected": "",
	} {
		if h := r.Header.Get(name); h != want {
			t.Errorf("%s: %q, want %q", name, h, want)
		}
	}
	if body != "Subject: x\n\nbody\n" {
		t.Errorf("%q", body)
	}
	many := make([]string, 5000)
	for i := range many {
		many[i] = "joe@example.org"
	}
	filtertest.Must(t, f, "Subject: x\n\n", many...)
	if r = <-got; len(r.Header["Rcpt"]) != maxRecipients || r.Header.Get("Deliver-To") != "" {
		t.Errorf("%d recipients, %v", len(r.Header["Rcpt"]), r.Header["Deliver-To"])
	}
}

// Each mistake in the configuration is told with its key.
func TestConfig(t *testing.T) {
	for config, want := range map[string]string{
		`address = ["/run/rspamd"]`:         "address[0]",
		`connections = 1001`:                "connections",
		`max = -1`:                          "max",
		`large = "some"`:                    "large",
		"user = \"a\\r\\nb\"":               "user",
		`settings = "a b"`:                  "settings",
		"text = \"a\\nb\"":                  "text",
		`password_file = "/nonexistent/pw"`: "password_file",
		`password_file = "/dev/null"`:       "password_file",
		"[action]\nreject = \"kill\"":       "action.reject",
		"[custom]\nphish = \"eat\"":         "custom.phish",
		"[custom]\nreject = \"pass\"":       "custom.reject",
		`fields = "x"`:                      "fields",
	} {
		_, err := Kind().New(filtertest.Env(t), filtertest.Decode(config))
		k, ok := err.(interface{ Key() string })
		if !ok || k.Key() != want {
			t.Errorf("%s: %v", config, err)
		}
	}
	if f, err := New(pipeline.Env{}, Options{}); err != nil || f.o.Max != defaultMax || f.does["reject"].action != pipeline.Reject {
		t.Error(err)
	}
}

// FuzzAnswer: what is not refused is within bounds, and clean.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"", `{"score":1,"action":"reject"}`, `{"score":1.5,"required_score":-3,"action":"add header","symbols":{"A":{"name":"A","score":2}},"messages":{"smtp_message":"x"},"subject":"s"}`,
		`{"score":1,"action":"x","milter":{"add_headers":{"X":"a","Y":{"value":"b\r\n c","order":1},"Z":["e",{"value":"f"}]},"remove_headers":{"X":0,"Received":[1,-1]}}}`,
		`{"score":1,"action":"reject","action":"no action"}`, `{"score":1e999,"action":"reject"}`, `[[[[[[[[[[[[[[[[[[[[`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b)
		if err != nil {
			if reply.Clean(err.Error(), 2000) != err.Error() {
				t.Errorf("%q", err)
			}
			return
		}
		if a.action == "" || !(a.score >= -1e6 && a.score <= 1e6) || len(a.symbols) > maxSymbols || len(a.edits) > maxFields || reply.Clean(a.subject, maxSubject) != a.subject || reply.Clean(a.message, maxWord) != a.message {
			t.Errorf("%q is %+v", b, a)
		}
		for _, e := range a.edits {
			if err := e.Check(); err != nil || strings.EqualFold(e.Name, "Received") && e.Op != 0 {
				t.Errorf("%q: %v, %v", b, e, err)
			}
		}
		for _, s := range a.symbols {
			if strings.Trim(s.name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") != "" {
				t.Errorf("symbol %q", s.name)
			}
		}
	})
}
