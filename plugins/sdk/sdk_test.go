package sdk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-mta/postern/plugins/sdk"
	"github.com/postern-mta/postern/plugins/sdk/sdktest"
)

// says is a plugin that answers what a test wants of it, and may do everything.
func says(f func(context.Context, *sdk.Message) (sdk.Verdict, error)) sdk.Plugin[sdk.None] {
	return sdk.Plugin[sdk.None]{
		Name: "says", Needs: sdk.NeedsBody, Edits: sdk.EditsHead | sdk.EditsBody | sdk.EditsEnvelope,
		Message:  func(ctx context.Context, _ *sdk.None, m *sdk.Message) (sdk.Verdict, error) { return f(ctx, m) },
		Delivery: func(ctx context.Context, _ *sdk.None, m *sdk.Message) (sdk.Verdict, error) { return f(ctx, m) },
	}
}

const hello = "From: alice@example.net\nSubject: hello\n\nHello, world!\n"

// Every verdict and edit, as Postern takes it.
func TestVerdicts(t *testing.T) {
	two := []string{"a@example.org", "b@example.org"}
	large := strings.Repeat("0123456789abcdef0123456789abcde\n", 32<<10)
	for name, c := range map[string]struct {
		verdict sdk.Verdict
		want    sdktest.Want
		stage   sdk.Stage
	}{
		"zero":                  {sdk.Verdict{}, sdktest.Want{}, 0},
		"continue":              {sdk.Continue().Because("fine\r\n\x00"), sdktest.Want{Reason: "fine"}, 0},
		"accept":                {sdk.Accept(), sdktest.Want{Action: "accept"}, 0},
		"reject":                {sdk.Reject("", ""), sdktest.Want{Action: "reject"}, 0},
		"reject with words":     {sdk.Reject("5.7.0", "no\r\nRCPT"), sdktest.Want{Action: "reject", Reply: "554 5.7.0 no RCPT"}, 0},
		"reject with a code":    {sdk.Reject("5.1.1", ""), sdktest.Want{Action: "reject", Reply: "554 5.1.1"}, 0},
		"reject, temporary":     {sdk.Reject("4.7.1", "x"), sdktest.Want{Error: `"4.7.1" is none of 5.x.x`}, 0},
		"defer":                 {sdk.Defer("4.2.0", "later"), sdktest.Want{Action: "defer", Reply: "451 4.2.0 later"}, 0},
		"defer, for good":       {sdk.Defer("5.7.1", "x"), sdktest.Want{Error: `"5.7.1" is none of 4.x.x`}, 0},
		"no code":               {sdk.Defer("4.7", "x"), sdktest.Want{Error: `"4.7" is none`}, 0},
		"discard":               {sdk.Discard().Because("old"), sdktest.Want{Action: "discard", Reason: "old"}, 0},
		"discard what leaves":   {sdk.Discard(), sdktest.Want{Error: "may not answer discard at the stage delivery"}, sdk.AtDelivery},
		"quarantine":            {sdk.Quarantine("odd"), sdktest.Want{Action: "quarantine", Reason: "odd"}, 0},
		"add":                   {sdk.Continue().AddField("X-A", "1").AddField("X-B", "2"), sdktest.Want{Message: "X-B: 2\nX-A: 1\n" + hello}, 0},
		"append, replace":       {sdk.Continue().Append("X-A", "1").Replace("SUBJECT", "a\n b"), sdktest.Want{Message: "From: alice@example.net\nSUBJECT: a\n b\nX-A: 1\n\nHello, world!\n"}, 0},
		"remove":                {sdk.Continue().Remove("from").Edit(sdk.Remove("subject", -1)), sdktest.Want{Message: "\nHello, world!\n"}, 0},
		"what leaves":           {sdk.Continue().AddField("X-A", "1"), sdktest.Want{Message: "X-A: 1\n" + hello}, sdk.AtDelivery},
		"a name that is none":   {sdk.Continue().AddField("X A", "1"), sdktest.Want{Error: `"X A" is no name`}, 0},
		"no name":               {sdk.Continue().AddField("", "1"), sdktest.Want{Error: "a field has no name"}, 0},
		"a value that breaks":   {sdk.Continue().Append("X", "1\nBcc: x"), sdktest.Want{Error: "does not begin with a blank"}, 0},
		"a value that ends":     {sdk.Continue().Append("X", "1\n"), sdktest.Want{Error: "does not begin with a blank"}, 0},
		"a value with CR":       {sdk.Continue().Append("X", "1\r\n 2"), sdktest.Want{Error: "a NUL or CR"}, 0},
		"body":                  {sdk.Continue().SetBody([]byte("new\n")), sdktest.Want{Message: "From: alice@example.net\nSubject: hello\n\nnew\n"}, 0},
		"no body":               {sdk.Continue().SetBody(nil), sdktest.Want{Message: "From: alice@example.net\nSubject: hello\n\n"}, 0},
		"a large body":          {sdk.Continue().SetBody([]byte(large)), sdktest.Want{Message: "From: alice@example.net\nSubject: hello\n\n" + large}, 0},
		"a body with CR":        {sdk.Continue().SetBody([]byte("a\r\n")), sdktest.Want{Error: "lines end in LF alone"}, 0},
		"a body that is none":   {sdk.Continue().SetBodyFile("/nowhere/at/all"), sdktest.Want{Error: "is no file"}, 0},
		"symbol":                {sdk.Continue().Symbol("A", 1, "").Symbol("B", 2.5, "x"), sdktest.Want{Symbols: []string{"A", "B"}}, 0},
		"a symbol with a blank": {sdk.Continue().Symbol("a b", 1, ""), sdktest.Want{Error: `has the character ' '`}, 0},
		"no result":             {sdk.Continue().Result(sdk.AuthResult{Method: "dkim"}), sdktest.Want{Error: "a result has 1 to 128 bytes"}, 0},
		"nobody known":          {sdk.Reject("", "").For("c@example.org"), sdktest.Want{Error: `"c@example.org" is none of the recipients`}, 0},
		"for some who leave":    {sdk.Reject("", "").For("a@example.org"), sdktest.Want{Error: "only the stage message"}, sdk.AtDelivery},
		"envelope, leaving":     {sdk.Continue().SetSender(""), sdktest.Want{Error: "cannot be edited at the stage delivery"}, sdk.AtDelivery},
		"for nobody":            {sdk.Reject("", "").For(), sdktest.Want{}, 0},
	} {
		p := says(func(context.Context, *sdk.Message) (sdk.Verdict, error) { return c.verdict, nil })
		sdktest.Run(t, p, sdktest.Case{Name: name, Text: hello, To: two, Stage: c.stage, Want: c.want})
	}
}

func TestRecipients(t *testing.T) {
	to := []string{"a@example.org", "b@example.org", "c@example.org", "b@example.org"}
	ask := func(v sdk.Verdict) sdktest.Got {
		return sdktest.Judge(t, says(func(context.Context, *sdk.Message) (sdk.Verdict, error) { return v, nil }),
			sdktest.Case{Text: hello, From: "s@example.net", To: to})
	}
	actions := func(v sdk.Verdict) string {
		got := ask(v)
		if got.Err != nil {
			return got.Err.Error()
		}
		return got.Fates["a@example.org"].Action + " " + got.Fates["b@example.org"].Action + " " + got.Fates["c@example.org"].Action
	}
	for want, v := range map[string]sdk.Verdict{
		"reject reject reject":       sdk.Reject("", ""),
		"continue reject continue":   sdk.Reject("", "").For("b@example.org"),
		"reject reject continue":     sdk.Reject("", "").For("a@example.org").For("b@example.org"),
		"accept reject accept":       sdk.Reject("", "").For("b@example.org").And(sdk.Accept()),
		"discard quarantine discard": sdk.Discard().For("a@example.org", "c@example.org").And(sdk.Quarantine("").For("a@example.org", "b@example.org")),
		"accept accept defer":        sdk.Continue().For().And(sdk.Defer("", "").For("c@example.org").And(sdk.Accept())),
	} {
		if got := actions(v); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	got := ask(sdk.Continue().SetSender("").SetRecipient("new@example.org").AddRecipient("more@example.org").
		Copy("tap@example.org", []string{"archive@example.org"}, sdk.Add("X-Tap", "1"), sdk.Remove("Subject", 0)).
		Result(sdk.AuthResult{Method: "dkim", Result: "pass", Properties: []sdk.Property{{Name: "header.d", Value: "example.net"}}}))
	if got.Sender != "" || strings.Join(got.Recipients, " ") != "new@example.org more@example.org" {
		t.Errorf("the envelope is %q %q", got.Sender, got.Recipients)
	}
	if len(got.Copies) != 1 || got.Copies[0].Sender != "tap@example.org" || got.Copies[0].Recipients[0] != "archive@example.org" || got.Copies[0].Head != "X-Tap: 1\nFrom: alice@example.net\n" {
		t.Errorf("the copies are %+v", got.Copies)
	}
	if len(got.Results) != 1 || got.Results[0].Properties[0].Value != "example.net" {
		t.Errorf("the results are %+v", got.Results)
	}
	if got := ask(sdk.Continue().Copy("", []string{"x@example.org"}, sdk.Add("X:", ""))); got.Err == nil || !strings.Contains(got.Err.Error(), "is no name of a field") {
		t.Errorf("%v", got.Err)
	}
}

// Ten thousand recipients may each have a verdict of their own.
func TestManyRecipients(t *testing.T) {
	var to []string
	for i := range 10_000 {
		to = append(to, fmt.Sprintf("recipient%d@example.org", i))
	}
	got := sdktest.Judge(t, says(func(_ context.Context, m *sdk.Message) (sdk.Verdict, error) {
		v := sdk.Continue().For()
		for i, r := range m.Recipients {
			if i%2 == 0 {
				v = v.And(sdk.Reject("", r).For(r))
			} else {
				v = v.And(sdk.Continue().AddField("X", r).For(r))
			}
		}
		return v.And(sdk.Discard()), nil
	}), sdktest.Case{Text: hello, To: to})
	if got.Err != nil || len(got.Fates) != len(to) {
		t.Fatalf("%d, %v", len(got.Fates), got.Err)
	}
	for i, r := range to {
		if f := got.Fates[r]; i%2 == 0 && f.Reply != "554 5.7.1 "+r || i%2 == 1 && !strings.HasPrefix(f.Head, "X: "+r+"\n") {
			t.Fatalf("%s: %+v", r, f)
		}
	}
}

// A verdict is a value: what is made of it leaves it as it is.
func TestVerdictIsAValue(t *testing.T) {
	base := sdk.Continue().AddField("X-0", "0").Symbol("S", 1, "").For("a@example.org")
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			v := base.AddField(fmt.Sprint("X-", i), "x").Symbol("T", 1, "").For("b@example.org")
			got := sdktest.Judge(t, says(func(context.Context, *sdk.Message) (sdk.Verdict, error) { return v, nil }), sdktest.Case{Text: "\n", To: []string{"a@example.org", "b@example.org"}})
			if want := fmt.Sprintf("X-%d: x\nX-0: 0\n", i); got.Head != want || len(got.Symbols) != 2 || got.Err != nil {
				t.Errorf("%q, want %q (%v)", got.Head, want, got.Err)
			}
		})
	}
	wait.Wait()
}

// What was not declared is an error, and says what to declare.
func TestUndeclared(t *testing.T) {
	for want, v := range map[string]sdk.Verdict{
		"edits the head, and the plugin's Edits lack sdk.EditsHead":         sdk.Continue().AddField("X", "1"),
		"edits the body, and the plugin's Edits lack sdk.EditsBody":         sdk.Continue().SetBody(nil),
		"edits the envelope, and the plugin's Edits lack sdk.EditsEnvelope": sdk.Continue().AddRecipient("a@example.org"),
	} {
		p := says(func(context.Context, *sdk.Message) (sdk.Verdict, error) { return v, nil })
		p.Edits = 0
		if got := sdktest.Judge(t, p, sdktest.Case{Text: hello}); got.Err == nil || !strings.Contains(got.Err.Error(), want) {
			t.Errorf("%v, want %q", got.Err, want)
		}
	}
}

func TestMessage(t *testing.T) {
	text := "From a@example.net Mon\r\nReceived: a\r\n\tb\r\nSubject: =?utf-8?q?gr=C3=BC=C3=9Fe?= =?iso-8859-1?q?_=FC?=\r\nTo : x@example.org\r\nreceived:c\r\nX: =?koi8-r?q?=C1?=\r\n\r\nbody\r\n"
	p := says(func(_ context.Context, m *sdk.Message) (sdk.Verdict, error) {
		whole, err := io.ReadAll(m.Whole())
		if err != nil {
			return sdk.Verdict{}, err
		}
		if want := strings.ReplaceAll(text, "\r", ""); string(whole) != want || m.HeadSize+1+m.BodySize != int64(len(want)) {
			t.Errorf("%q, want %q (%d, %d)", whole, want, m.HeadSize, m.BodySize)
		}
		for what, pair := range map[string][2]string{
			"get":     {m.Get("RECEIVED"), "a\tb"},
			"values":  {strings.Join(m.Values("Received"), "|"), "a\tb|c"},
			"to":      {m.Get("to"), "x@example.org"},
			"subject": {m.Subject(), "grüße ü"},
			"charset": {m.Text("X"), "=?koi8-r?q?=C1?="},
			"none":    {m.Get("Bcc") + m.Text("Bcc") + strings.Join(m.Values("Bcc"), ""), ""},
			"fields":  {fmt.Sprintf("%d %q %q", len(m.Fields()), m.Fields()[0].Raw, m.Fields()[1].Raw), `6 "From a@example.net Mon\n" "Received: a\n\tb\n"`},
			"sender":  {m.Sender, "s@example.net"},
			"to whom": {fmt.Sprint(m.Recipients, m.All), "[a@example.org b@example.org] [a@example.org b@example.org]"},
			"client":  {m.Remote.String() + " " + m.Helo, "192.0.2.1:40000 client.example.net"},
			"ids":     {m.ID + " " + m.Session.ID, "transaction session"},
			"symbols": {fmt.Sprint(m.Symbols, m.Results), "[{A 1 x}] [{spf pass  [{smtp.mailfrom s@example.net}]}]"},
		} {
			if pair[0] != pair[1] {
				t.Errorf("%s: %q, want %q", what, pair[0], pair[1])
			}
		}
		return sdk.Continue(), nil
	})
	sdktest.Run(t, p, sdktest.Case{
		Name: "all of it", Text: text, From: "s@example.net", To: []string{"a@example.org", "b@example.org"}, Symbols: []sdk.Symbol{{Name: "A", Score: 1, Detail: "x"}},
		Results: []sdk.AuthResult{{Method: "spf", Result: "pass", Properties: []sdk.Property{{Name: "smtp.mailfrom", Value: "s@example.net"}}}},
	})
}

// A body is read the same whether it came in the call or as a file.
func TestBody(t *testing.T) {
	for _, size := range []int{0, 1, 16 << 10, 16<<10 + 1, 1 << 20} {
		body := bytes.Repeat([]byte("0123456\n"), size/8+1)[:size]
		var kept *sdk.Message
		got := sdktest.Judge(t, says(func(_ context.Context, m *sdk.Message) (sdk.Verdict, error) {
			kept = m
			all, err := io.ReadAll(m.Body())
			if err != nil || !bytes.Equal(all, body) {
				t.Errorf("%d: %d bytes, %v", size, len(all), err)
			}
			r, tail := m.Body(), make([]byte, 8)
			n, err := r.ReadAt(tail, int64(size/2))
			if !bytes.Equal(tail[:n], body[size/2:min(size/2+8, size)]) || n < 8 && !errors.Is(err, io.EOF) {
				t.Errorf("%d: %q, %v", size, tail[:n], err)
			}
			f, err := m.TempFile()
			if err != nil {
				return sdk.Verdict{}, err
			}
			if _, err := f.Write(bytes.ToUpper(all)); err != nil {
				return sdk.Verdict{}, err
			}
			return sdk.Continue().SetBodyFile(f.Name()), f.Close()
		}), sdktest.Case{Text: "\n" + string(body)})
		if got.Err != nil || got.Body != string(body) {
			t.Errorf("%d: %d bytes back, %v", size, len(got.Body), got.Err)
		}
		if size > 16<<10 {
			if _, err := io.ReadAll(kept.Body()); err == nil {
				t.Error("the body can be read when the call is over")
			}
			if _, err := kept.TempFile(); err == nil {
				t.Error("there is a new file when the call is over")
			}
		}
	}
}

// A file that is made and not answered is removed, and one that has become too
// short never passes for a body.
func TestFiles(t *testing.T) {
	large := "\n" + strings.Repeat("x\n", 16<<10)
	var name string
	got := sdktest.Judge(t, says(func(_ context.Context, m *sdk.Message) (sdk.Verdict, error) {
		f, err := m.TempFile()
		if err != nil {
			return sdk.Verdict{}, err
		}
		name = f.Name()
		return sdk.Continue().SetBody(bytes.Repeat([]byte("y\n"), 16<<10)).Symbol("a b", 0, ""), nil
	}), sdktest.Case{Text: large})
	if got.Err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left behind: %v", name, err)
	}
	got = sdktest.Judge(t, says(func(_ context.Context, m *sdk.Message) (sdk.Verdict, error) {
		if err := os.Truncate(sdk.BodyPath(m), 100); err != nil {
			return sdk.Verdict{}, err
		}
		_, err := io.Copy(io.Discard, m.Body())
		return sdk.Continue(), err
	}), sdktest.Case{Text: large})
	if got.Err == nil || !strings.Contains(got.Err.Error(), "unexpected EOF") {
		t.Errorf("%v", got.Err)
	}
}

// What a plugin does not need it is not given, and is told so.
func TestNeeds(t *testing.T) {
	for needs, want := range map[sdk.Needs]string{sdk.NeedsNothing: "", sdk.NeedsEnvelope: "s@example.net", sdk.NeedsHead: "s@example.net", sdk.NeedsBody: "s@example.net"} {
		p := says(func(_ context.Context, m *sdk.Message) (sdk.Verdict, error) {
			if m.Sender != want || (len(m.Recipients) == 1) != (want != "") || m.HeadSize != 39 || m.BodySize != 14 {
				t.Errorf("needs %d: %+v", needs, m)
			}
			if _, err := io.ReadAll(m.Body()); (err == nil) != (needs == sdk.NeedsBody) {
				t.Errorf("needs %d: the body: %v", needs, err)
			}
			return sdk.Continue().AddField("X-Subject", m.Subject()), nil
		})
		p.Needs = needs
		got := sdktest.Judge(t, p, sdktest.Case{Text: hello, From: "s@example.net"})
		if head := needs == sdk.NeedsHead || needs == sdk.NeedsBody; head != (got.Err == nil) {
			t.Errorf("needs %d: %v", needs, got.Err)
		} else if !head && !strings.Contains(got.Err.Error(), "panic: the plugin's Needs say that it needs no head") {
			t.Errorf("needs %d: %v", needs, got.Err)
		}
	}
}

// Errors and panics are errors of the call; the process answers the next one.
func TestFailures(t *testing.T) {
	for want, f := range map[string]func(context.Context) error{
		"Unknown desc = it is broken":                 func(context.Context) error { return errors.New("it is\nbroken") },
		"Internal desc = panic: runtime error: index": func(context.Context) error { return []error{}[len(os.Args)] },
		"Unknown desc = theirs: context deadline":     func(context.Context) error { return fmt.Errorf("theirs: %w", context.DeadlineExceeded) },
		"DeadlineExceeded":                            func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		var fail atomic.Bool // a call that is left behind may look at it later
		fail.Store(true)
		p := says(func(ctx context.Context, _ *sdk.Message) (sdk.Verdict, error) {
			if fail.Load() {
				return sdk.Reject("", ""), f(ctx)
			}
			return sdk.Accept(), nil
		})
		one := sdktest.Case{Text: hello}
		if want == "DeadlineExceeded" {
			one.Timeout = 200 * time.Millisecond
		}
		got := sdktest.Judge(t, p, one)
		if got.Err == nil || !strings.Contains(got.Err.Error(), want) || got.Action != "" {
			t.Errorf("%v, want %q", got.Err, want)
		}
		fail.Store(false)
		if got := sdktest.Judge(t, p, sdktest.Case{Text: hello}); got.Action != "accept" {
			t.Errorf("after %q: %+v", want, got)
		}
	}
}

// The stages before a message, each with what is known by then.
func TestStages(t *testing.T) {
	seen := func(s *sdk.Session) error {
		if s.Helo != "client.example.net" || s.UID != -1 || s.Local.Port() != 25 {
			return fmt.Errorf("the session is %+v", s)
		}
		return nil
	}
	p := sdk.Plugin[sdk.None]{
		Name: "stages",
		Connect: func(_ context.Context, _ *sdk.None, s *sdk.Session) (sdk.Verdict, error) {
			return sdk.Defer("", "busy"), seen(s)
		},
		Helo: func(_ context.Context, _ *sdk.None, s *sdk.Session) (sdk.Verdict, error) {
			return sdk.Accept(), seen(s)
		},
		Sender: func(_ context.Context, _ *sdk.None, tx *sdk.Transaction) (sdk.Verdict, error) {
			return sdk.Reject("5.1.8", "no "+tx.Sender), seen(tx.Session)
		},
		Recipient: func(_ context.Context, _ *sdk.None, tx *sdk.Transaction, recipient string) (sdk.Verdict, error) {
			return sdk.Reject("5.1.1", fmt.Sprint(recipient, tx.Recipients)), seen(tx.Session)
		},
		Delivery: func(_ context.Context, _ *sdk.None, m *sdk.Message) (sdk.Verdict, error) {
			return sdk.Continue().AddField("X", "1"), nil
		},
	}
	sdktest.Run(t, p,
		sdktest.Case{Name: "connect", Stage: sdk.AtConnect, Want: sdktest.Want{Action: "defer", Reply: "451 4.7.1 busy"}},
		sdktest.Case{Name: "helo", Stage: sdk.AtHelo, Want: sdktest.Want{Action: "accept"}},
		sdktest.Case{Name: "sender", Stage: sdk.AtSender, From: "a@example.net", Want: sdktest.Want{Action: "reject", Reply: "550 5.1.8 no a@example.net"}},
		sdktest.Case{
			Name: "recipient", Stage: sdk.AtRecipient, To: []string{"a@example.org"}, Recipient: "b@example.org",
			Want: sdktest.Want{Action: "reject", Reply: "550 5.1.1 b@example.org[a@example.org]"},
		},
		sdktest.Case{Name: "not the message", Text: hello, Want: sdktest.Want{Error: "not to be asked at the stage message"}},
		sdktest.Case{Name: "an edit that was not declared", Stage: sdk.AtDelivery, Text: hello, Want: sdktest.Want{Error: "Edits lack sdk.EditsHead"}},
	)
	p.Helo = func(context.Context, *sdk.None, *sdk.Session) (sdk.Verdict, error) { return sdk.Quarantine(""), nil }
	p.Connect = func(context.Context, *sdk.None, *sdk.Session) (sdk.Verdict, error) {
		return sdk.Continue().SetSender(""), nil
	}
	sdktest.Run(t, p,
		sdktest.Case{Name: "held too early", Stage: sdk.AtHelo, Want: sdktest.Want{Error: "may not answer quarantine at the stage helo"}},
		sdktest.Case{Name: "edited too early", Stage: sdk.AtConnect, Want: sdktest.Want{Error: "nothing to edit at the stage connect"}},
	)
}

// Calls come at once, for several filters, whose options are their own.
func TestConcurrentFilters(t *testing.T) {
	type options struct {
		Tag string `key:"tag"`

		name  string
		state string
	}
	var mu sync.Mutex
	forgotten := 0
	p := sdk.Plugin[options]{
		Name: "concurrent", Edits: sdk.EditsHead,
		Configure: func(_ context.Context, o *options, f sdk.Filter) error {
			o.name, o.state = f.Name+"@"+f.Host, f.StateDir
			if _, err := os.Stat(f.StateDir); err != nil {
				return err
			}
			return nil
		},
		Forget: func(*options) { mu.Lock(); forgotten++; mu.Unlock() },
		Message: func(_ context.Context, o *options, m *sdk.Message) (sdk.Verdict, error) {
			return sdk.Continue().AddField("X", o.Tag+" "+o.name+" "+m.Subject()), nil
		},
	}
	var wait sync.WaitGroup
	for i := range 16 {
		wait.Go(func() {
			got := sdktest.Judge(t, p, sdktest.Case{Text: fmt.Sprintf("Subject: %d\n\n", i), Options: map[string]any{"tag": fmt.Sprint("tag", i)}})
			if want := fmt.Sprintf("X: tag%d test@mx.example.org %[1]d\nSubject: %[1]d\n", i); got.Head != want {
				t.Errorf("%q, want %q", got.Head, want)
			}
		})
	}
	wait.Wait()
	if forgotten != 16 {
		t.Errorf("%d filters were forgotten", forgotten)
	}
}
