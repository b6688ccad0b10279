// Webhook is a plugin of Postern that asks an HTTP server about each message. It
// posts what is known of it as JSON,
//
//	{"id": "...", "chain": "inbound", "client": "192.0.2.1", "helo": "...", "user": "", "sender": "...",
//	 "recipients": ["..."], "size": 1234, "subject": "...", "fields": [["From", "..."], ...]}
//
// and does what the answer says, also JSON, of which only the action must be there:
//
//	{"action": "reject", "code": "5.7.1", "text": "what the peer hears", "reason": "what the log says",
//	 "add": [["X-Scanned", "yes"]], "score": 2.5}
//
// The actions are continue, accept, reject, defer, discard and quarantine. An
// answer that is late, too long, no such JSON, or has another status than 200 is
// an error, and what becomes of the message is the filter's on_error.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/postern-mta/postern/plugins/sdk"
)

type options struct {
	URL     string        `key:"url" required:"true" doc:"where the message is posted to, http:// or https://"`
	Token   string        `key:"token" doc:"what is sent as Authorization: Bearer"`
	Timeout time.Duration `key:"wait" default:"5s" doc:"how long the answer may take"`

	client *http.Client
}

var plugin = sdk.Plugin[options]{
	Name: "webhook", Version: "1.0", Doc: "Asks an HTTP server what to do with a message.",
	Needs: sdk.NeedsHead, Edits: sdk.EditsHead,
	Configure: configure, Forget: func(o *options) { o.client.CloseIdleConnections() },
	Message: ask,
}

func main() { sdk.Main(plugin) }

func configure(_ context.Context, o *options, _ sdk.Filter) error {
	u, err := url.Parse(o.URL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return sdk.Wrong("url", "%q is no URL like https://filter.example.org/ask", o.URL)
	case o.Timeout <= 0:
		return sdk.Wrong("wait", "it must be more than nothing")
	case strings.ContainsAny(o.Token, "\r\n\x00"):
		return sdk.Wrong("token", "it has more than one line")
	}
	o.client = &http.Client{
		Timeout:   o.Timeout,
		Transport: &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: maxAnswer},
		// A redirect would take the mail to somebody whom nobody has named.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return nil
}

// question is what is posted.
type question struct {
	ID         string      `json:"id"`
	Chain      string      `json:"chain"`
	Client     string      `json:"client"`
	Helo       string      `json:"helo"`
	User       string      `json:"user"`
	Sender     string      `json:"sender"`
	Recipients []string    `json:"recipients"`
	Size       int64       `json:"size"`
	Subject    string      `json:"subject"`
	Fields     [][2]string `json:"fields"`
}

// answer is what comes back.
type answer struct {
	Action string      `json:"action"`
	Code   string      `json:"code"`
	Text   string      `json:"text"`
	Reason string      `json:"reason"`
	Add    [][2]string `json:"add"`
	Score  float64     `json:"score"`
}

// maxAnswer bounds an answer in bytes, and its head.
const maxAnswer = 64 << 10

func ask(ctx context.Context, o *options, m *sdk.Message) (sdk.Verdict, error) {
	q := question{
		ID: m.ID, Chain: m.Chain, Helo: m.Helo, User: m.User, Sender: m.Sender, Recipients: m.Recipients,
		Size: m.HeadSize + 1 + m.BodySize, Subject: m.Subject(),
	}
	if m.Remote.IsValid() {
		q.Client = m.Remote.Addr().String()
	}
	for _, f := range m.Fields() {
		q.Fields = append(q.Fields, [2]string{f.Name, f.Value})
	}
	body, err := json.Marshal(q)
	if err != nil {
		return sdk.Verdict{}, err
	}
	a, err := o.post(ctx, body)
	if err != nil {
		return sdk.Verdict{}, fmt.Errorf("the server at %s: %w", o.URL, err)
	}
	return a.verdict()
}

func (o *options) post(ctx context.Context, body []byte) (a answer, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, o.URL, bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	r.Header.Set("Content-Type", "application/json")
	if o.Token != "" {
		r.Header.Set("Authorization", "Bearer "+o.Token)
	}
	response, err := o.client.Do(r)
	if err != nil {
		return a, errors.Unwrap(err) // without the URL, which is told already
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return a, fmt.Errorf("it answers %s", response.Status)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return a, err
	case len(text) > maxAnswer:
		return a, fmt.Errorf("its answer has more than %d bytes", maxAnswer)
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return a, fmt.Errorf("its answer cannot be read: %w", err)
	}
	return a, nil
}

// verdict is what an answer asks for.
func (a answer) verdict() (sdk.Verdict, error) {
	actions := map[string]func() sdk.Verdict{
		"continue": sdk.Continue, "accept": sdk.Accept, "discard": sdk.Discard,
		"reject":     func() sdk.Verdict { return sdk.Reject(a.Code, a.Text) },
		"defer":      func() sdk.Verdict { return sdk.Defer(a.Code, a.Text) },
		"quarantine": func() sdk.Verdict { return sdk.Quarantine(a.Reason) },
	}
	action, ok := actions[a.Action]
	if !ok {
		return sdk.Verdict{}, fmt.Errorf("the server's answer has the action %q, which there is not", a.Action)
	}
	v := action().Because(a.Reason)
	for _, f := range a.Add {
		v = v.AddField(f[0], f[1])
	}
	if a.Score != 0 {
		v = v.Symbol("WEBHOOK", a.Score, a.Reason)
	}
	return v, nil
}
