// Package sdktest runs a plugin of Postern on saved messages, in the test's own
// process or as a program, and looks at what it says:
//
//	func TestTagger(t *testing.T) {
//		sdktest.Run(t, plugin,
//			sdktest.Case{Name: "plain", File: "testdata/hello.eml", Want: sdktest.Want{Fields: []string{"Subject: [list] hello"}}},
//		)
//	}
//
// Both ways go over gRPC, and bodies of more than 16 KiB by a file, as in Postern;
// an answer is checked as Postern does it. RunProgram starts the program by its
// path, whatever language it is written in, with an empty environment but for PATH.
package sdktest

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/plugins/sdk"
	"github.com/postern-mta/postern/plugins/wire"
)

// Case is one call of a plugin: at the stage message, unless Stage says otherwise.
type Case struct {
	Name string
	// Text is the message, or File one that has it. Lines may end in CR LF, as in
	// most saved messages; the plugin gets them ending in LF.
	Text, File string
	// From and To are the envelope; nil To is recipient@example.org, and From ""
	// the null sender.
	From string
	To   []string
	// Options are the filter's, as in the configuration: "30s" and "10MB" are texts.
	Options map[string]any
	// Session is who calls; if it has no ID, it is a stranger at 192.0.2.1 by SMTP.
	Session sdk.Session
	Stage   sdk.Stage
	// Recipient is who is asked about at the stage recipient.
	Recipient string
	// Symbols and Results are what filters before have found.
	Symbols []sdk.Symbol
	Results []sdk.AuthResult
	// Timeout is the call's; 0 means ten seconds.
	Timeout time.Duration

	Want Want
}

// Want is what a plugin must say. The zero Want is that it lets the message pass
// as it is.
type Want struct {
	// Action is the verdict's word, "reject"; "" means "continue".
	Action string
	// Reply is what the peer hears, "554 5.7.1 no lotteries here", and Reason what
	// the log says. They are not looked at if they are "".
	Reply, Reason string
	// Fields are fields that the head must have after all edits, "Subject: hello",
	// and Without the names of those that it must not have.
	Fields, Without []string
	// Message is the whole message after all edits, if it is not "". If there is
	// nothing here of head and body, nor a Check, they must be as they were.
	Message string
	// Symbols are the names of what was found.
	Symbols []string
	// Error is part of the error that the call must end with; Problem is one of
	// "option: text", by which the options must be refused.
	Error, Problem string
	// Check looks at the rest; it may be nil.
	Check func(testing.TB, Got)
}

// Got is what a plugin said.
type Got struct {
	// Fate is that of the first recipient; Fates are all, by address.
	Fate
	Fates map[string]Fate
	// Err is the call's error, Problems what is wrong with the options.
	Err      error
	Problems []string

	before string // the message as it was
}

// Fate is what is to become of the message for one recipient.
type Fate struct {
	// Action is the verdict's word; Reply is "" where there is only the generic one.
	Action, Reply, Reason string
	// Head and Body are the message's after all edits.
	Head, Body string
	// Sender and Recipients are the envelope's, for this recipient.
	Sender     string
	Recipients []string
	// Copies are further messages.
	Copies  []Copy
	Symbols []sdk.Symbol
	Results []sdk.AuthResult
}

// Copy is a further message.
type Copy struct {
	Sender     string
	Recipients []string
	Head       string
}

// Run runs the cases in the test's process, over gRPC.
func Run[O any](t *testing.T, p sdk.Plugin[O], cases ...Case) {
	t.Helper()
	s, err := p.Server()
	if err != nil {
		t.Fatal(err)
	}
	run(t, serve(t, s), cases)
}

// RunProgram runs the cases with a program that is started as Postern does it.
func RunProgram(t *testing.T, command []string, cases ...Case) {
	t.Helper()
	run(t, Start(t, command...), cases)
}

func run(t *testing.T, c wire.PluginClient, cases []Case) {
	t.Helper()
	d, err := c.Declare(t.Context(), &wire.DeclareRequest{Postern: "sdktest"})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{client: c, declared: d}
	for _, one := range cases {
		t.Run(one.Name, func(t *testing.T) { one.Want.check(t, b.judge(t, one)) })
	}
}

// Judge runs one case in the test's process and gives what the plugin said.
func Judge[O any](t testing.TB, p sdk.Plugin[O], c Case) Got {
	t.Helper()
	s, err := p.Server()
	if err != nil {
		t.Fatal(err)
	}
	client := serve(t, s)
	d, err := client.Declare(t.Context(), &wire.DeclareRequest{Postern: "sdktest"})
	if err != nil {
		t.Fatal(err)
	}
	return (&bench{client: client, declared: d}).judge(t, c)
}

// bench is a plugin that is asked.
type bench struct {
	client   wire.PluginClient
	declared *wire.Declaration
	handle   uint64
}

const defaultTimeout = 10 * time.Second

// judge asks it once, with a filter of the case's options.
func (b *bench) judge(t testing.TB, c Case) Got {
	t.Helper()
	ctx, cancel := withTimeout(t.Context(), c.Timeout)
	defer cancel()
	b.handle++
	state := t.TempDir()
	options, err := b.options(c.Options)
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.client.Configure(ctx, &wire.ConfigureRequest{Filter: "test", Handle: b.handle, OptionsJson: options, Host: "mx.example.org", StateDir: state})
	if err != nil {
		return Got{Err: err}
	}
	if len(r.GetProblems()) > 0 {
		var got Got
		for _, p := range r.GetProblems() {
			got.Problems = append(got.Problems, strings.TrimPrefix(p.GetOption()+": "+p.GetText(), ": "))
		}
		return got
	}
	defer func() {
		if _, err := b.client.Forget(t.Context(), &wire.ForgetRequest{Handle: b.handle}); err != nil {
			t.Errorf("Forget: %v", err)
		}
	}()
	q, m := b.request(t, c)
	answer, err := b.client.Judge(ctx, q)
	if err != nil {
		return Got{Err: err}
	}
	return (&reading{declared: b.declared, request: q, message: m, dirs: []string{m.dir, state}}).read(t, answer)
}

// options are the options as JSON, with those that are not written.
func (b *bench) options(given map[string]any) ([]byte, error) {
	all := map[string]any{}
	for _, o := range b.declared.GetOptions() {
		if o.GetDefaultJson() != "" {
			all[o.GetName()] = json.RawMessage(o.GetDefaultJson())
		}
	}
	for name, v := range given {
		i := slices.IndexFunc(b.declared.GetOptions(), func(o *wire.Option) bool { return o.GetName() == name })
		if text, ok := v.(string); ok && i >= 0 {
			var err error
			if v, err = scalar(b.declared.GetOptions()[i].GetType(), text); err != nil {
				return nil, fmt.Errorf("the option %s: %w", name, err)
			}
		}
		all[name] = v
	}
	return json.Marshal(all)
}

// scalar is a text of the configuration as the plugin is given it.
func scalar(t wire.OptionType, text string) (any, error) {
	switch t {
	case wire.OptionType_OPTION_TYPE_DURATION:
		d, err := time.ParseDuration(text)
		return int64(d), err
	case wire.OptionType_OPTION_TYPE_SIZE:
		return sdk.ParseSize(text)
	}
	return text, nil
}

// saved is a message as it is given to a plugin.
type saved struct {
	head, body string
	dir        string
}

func (b *bench) request(t testing.TB, c Case) (*wire.JudgeRequest, saved) {
	t.Helper()
	at := c.Stage
	if at == 0 {
		at = sdk.AtMessage
	}
	q := &wire.JudgeRequest{Handle: b.handle, Stage: wire.Stage(at), Session: session(c.Session)}
	if at >= sdk.AtSender {
		q.Transaction = b.transaction(c, at)
	}
	if at == sdk.AtRecipient {
		q.Recipient = []byte(c.Recipient)
	}
	m := saved{dir: t.TempDir()}
	if at < sdk.AtMessage {
		return q, m
	}
	text := c.Text
	if c.File != "" {
		content, err := os.ReadFile(c.File)
		if err != nil {
			t.Fatal(err)
		}
		text = string(content)
	}
	m.head, m.body = split(strings.ReplaceAll(text, "\r\n", "\n"))
	needs := b.declared.GetNeeds()
	w := &wire.Message{HeadSize: int64(len(m.head)), BodySize: int64(len(m.body))}
	if needs >= wire.Needs_NEEDS_HEAD {
		w.Head = []byte(m.head)
	}
	switch {
	case needs < wire.Needs_NEEDS_BODY:
	case len(m.body) <= wire.InlineBody:
		w.Body = &wire.Message_Inline{Inline: []byte(m.body)}
	default:
		path := m.dir + "/message"
		if err := os.WriteFile(path, []byte(m.body), 0o600); err != nil {
			t.Fatal(err)
		}
		w.Body = &wire.Message_File{File: &wire.File{Path: path, Size: int64(len(m.body))}}
	}
	q.Message = w
	return q, m
}

// split divides a message into its head and its body, as Postern does: the head
// ends at an empty line, or before a line that is no field.
func split(text string) (head, body string) {
	at := 0
	for line := range strings.Lines(text) {
		switch {
		case line == "\n":
			return text[:at], text[at+1:]
		case line[0] == ' ', line[0] == '\t', nameOf(line) != "":
		case at == 0 && (strings.HasPrefix(line, "From ") || strings.HasPrefix(line, ">From ")):
		default:
			return text[:at], text[at:]
		}
		at += len(line)
	}
	return text, ""
}

// nameOf is the name of a field, "" for a line that is none.
func nameOf(field string) string {
	name, _, found := strings.Cut(field, ":")
	name = strings.TrimRight(name, " \t")
	if !found || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return ""
	}
	return name
}

func session(s sdk.Session) *wire.Session {
	if s.ID == "" {
		s = sdk.Session{
			ID: "session", Protocol: "smtp", Entrance: "mx", Remote: netip.MustParseAddrPort("192.0.2.1:40000"),
			Local: netip.MustParseAddrPort("192.0.2.25:25"), Helo: "client.example.net", UID: -1,
		}
	}
	w := &wire.Session{
		Id: s.ID, Protocol: s.Protocol, Entrance: s.Entrance, RemoteName: s.RemoteName, Helo: []byte(s.Helo), Tls: s.TLS, User: []byte(s.User),
		Relay: s.Relay, Local: s.LocalHost, Uid: s.UID,
	}
	if s.Remote.IsValid() {
		w.RemoteIp, w.RemotePort = s.Remote.Addr().String(), uint32(s.Remote.Port())
	}
	if s.Local.IsValid() {
		w.LocalIp, w.LocalPort = s.Local.Addr().String(), uint32(s.Local.Port())
	}
	return w
}

func (b *bench) transaction(c Case, at sdk.Stage) *wire.Transaction {
	w := &wire.Transaction{Id: "transaction", Chain: "inbound"}
	if at < sdk.AtMessage || b.declared.GetNeeds() >= wire.Needs_NEEDS_ENVELOPE {
		w.Sender = []byte(c.From)
	}
	to := c.To
	if to == nil && at >= sdk.AtMessage {
		to = []string{"recipient@example.org"}
	}
	for i, r := range to {
		if at < sdk.AtMessage || b.declared.GetNeeds() >= wire.Needs_NEEDS_ENVELOPE {
			w.Recipients = append(w.Recipients, []byte(r))
		}
		w.Active = append(w.Active, uint32(i))
	}
	for _, s := range c.Symbols {
		w.Symbols = append(w.Symbols, &wire.Symbol{Name: s.Name, Score: s.Score, Detail: s.Detail})
	}
	for _, r := range c.Results {
		result := &wire.AuthResult{Method: r.Method, Result: r.Result, Reason: r.Reason}
		for _, p := range r.Properties {
			result.Properties = append(result.Properties, &wire.Property{Name: p.Name, Value: p.Value})
		}
		w.Results = append(w.Results, result)
	}
	return w
}
