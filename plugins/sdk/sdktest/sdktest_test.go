package sdktest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/plugins/sdk"
	"github.com/postern-mta/postern/plugins/wire"
)

// recorder is a test that may fail without failing this one.
type recorder struct {
	testing.TB
	said []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

type fatal struct{}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	panic(fatal{})
}

func (r *recorder) Fatal(args ...any) { r.Fatalf("%s", fmt.Sprint(args...)) }

// says runs f with a recorder, and gives what it complained of.
func says(t *testing.T, f func(testing.TB)) (all string) {
	t.Helper()
	r := &recorder{TB: t}
	defer func() {
		p := recover()
		if _, ok := p.(fatal); p != nil && !ok {
			panic(p)
		}
		all = strings.Join(r.said, "\n")
	}()
	f(r)
	return ""
}

const hello = "From: a@example.net\nSubject: hello\n\nbody\n"

func answering(v sdk.Verdict, err error) sdk.Plugin[sdk.None] {
	return sdk.Plugin[sdk.None]{
		Name: "answers", Edits: sdk.EditsHead,
		Message: func(context.Context, *sdk.None, *sdk.Message) (sdk.Verdict, error) { return v, err },
	}
}

// What a plugin says and a test does not want is told, each in its words; what it
// wants is not.
func TestWant(t *testing.T) {
	tagged := sdk.Reject("5.7.0", "no").AddField("X", "1").Because("odd").Symbol("S", 1, "")
	all := Want{Action: "reject", Reply: "554 5.7.0 no", Reason: "odd", Fields: []string{"X: 1"}, Without: []string{"Y"}, Message: "X: 1\n" + hello, Symbols: []string{"S"}}
	with := func(change func(*Want)) Want {
		w := all
		change(&w)
		return w
	}
	for _, c := range []struct {
		verdict  sdk.Verdict
		err      error
		want     Want
		complain string
	}{
		{tagged, nil, all, ""},
		{tagged, nil, with(func(w *Want) { w.Action = "" }), `the action is "reject", want "continue"`},
		{tagged, nil, with(func(w *Want) { w.Reply = "554 5.7.1 no" }), `the reply is "554 5.7.0 no", want "554 5.7.1 no"`},
		{tagged, nil, with(func(w *Want) { w.Reason = "x" }), `the reason is "odd", want "x"`},
		{tagged, nil, with(func(w *Want) { w.Fields = []string{"X: 2"} }), `the head lacks "X: 2"`},
		{tagged, nil, with(func(w *Want) { w.Without = []string{"subject"} }), `the head has a subject`},
		{tagged, nil, with(func(w *Want) { w.Message = hello }), `the message is:`},
		{tagged, nil, with(func(w *Want) { w.Symbols = []string{"T"} }), `there is no symbol T`},
		{tagged, nil, with(func(w *Want) { w.Error = "x" }), `the call's error is <nil>, want "x"`},
		{tagged, nil, with(func(w *Want) { w.Problem = "x" }), `the options' problems are [], want "x"`},
		{sdk.Continue(), nil, Want{}, ""},
		{sdk.Continue().AddField("X", "1"), nil, Want{}, `the message is:`},
		{sdk.Continue(), errors.New("broken"), Want{}, `the call failed: rpc error: code = Unknown desc = broken`},
		{sdk.Continue(), errors.New("broken"), Want{Error: "broken"}, ""},
		{sdk.Continue(), nil, Want{Check: func(t testing.TB, _ Got) { t.Errorf("checked") }}, "checked"},
	} {
		got := Judge(t, answering(c.verdict, c.err), Case{Text: hello})
		complaint := says(t, func(t testing.TB) { c.want.check(t, got) })
		if (complaint == "") != (c.complain == "") || !strings.Contains(complaint, c.complain) {
			t.Errorf("%+v: %q, want %q", c.want, complaint, c.complain)
		}
	}
	got := Judge(t, answering(sdk.Continue(), nil), Case{Options: map[string]any{"x": 1}})
	if complaint := says(t, func(t testing.TB) { (Want{}).check(t, got) }); !strings.Contains(complaint, "the options are refused") {
		t.Errorf("%q", complaint)
	}
}

// liar is a plugin that is not made with sdk, and answers what it likes.
type liar struct {
	wire.UnimplementedPluginServer
	reply *wire.JudgeReply
}

func (liar) Declare(context.Context, *wire.DeclareRequest) (*wire.Declaration, error) {
	return &wire.Declaration{Name: "liar", Stages: []wire.Stage{wire.Stage_STAGE_MESSAGE}, Needs: wire.Needs_NEEDS_BODY}, nil
}

func (liar) Configure(context.Context, *wire.ConfigureRequest) (*wire.ConfigureReply, error) {
	return new(wire.ConfigureReply), nil
}

func (liar) Forget(context.Context, *wire.ForgetRequest) (*wire.ForgetReply, error) {
	return new(wire.ForgetReply), nil
}

func (l liar) Judge(context.Context, *wire.JudgeRequest) (*wire.JudgeReply, error) {
	return l.reply, nil
}

// What Postern would not take fails the test, whatever the plugin is written in.
func TestLies(t *testing.T) {
	for want, v := range map[string]*wire.Verdict{
		"an edit of the head that was not declared":     {Edits: []*wire.Edit{{Edit: &wire.Edit_Remove{Remove: &wire.RemoveField{Name: "X"}}}}},
		"an edit of the envelope that was not declared": {Edits: []*wire.Edit{{Edit: &wire.Edit_Sender{}}}},
		"a new body that was not declared":              {Body: &wire.Verdict_Inline{}},
		"about whom it was not asked":                   {Recipients: []uint32{7}},
		"contradicts the action":                        {Action: wire.Action_ACTION_DEFER, Reply: &wire.Reply{Code: 554}},
		"the enhanced code 5.7.1 contradicts":           {Action: wire.Action_ACTION_DEFER, Reply: &wire.Reply{Code: 451, Enhanced: "5.7.1"}},
	} {
		client := serve(t, liar{reply: &wire.JudgeReply{Verdicts: []*wire.Verdict{v}}})
		complaint := says(t, func(r testing.TB) {
			d, err := client.Declare(t.Context(), new(wire.DeclareRequest))
			if err != nil {
				t.Fatal(err)
			}
			(&bench{client: client, declared: d}).judge(r, Case{Text: hello})
		})
		if !strings.Contains(complaint, "Postern would not take the answer") || !strings.Contains(complaint, want) {
			t.Errorf("%q, want %q", complaint, want)
		}
	}
}

func TestTimeout(t *testing.T) {
	p := sdk.Plugin[sdk.None]{Name: "slow", Message: func(ctx context.Context, _ *sdk.None, _ *sdk.Message) (sdk.Verdict, error) {
		<-ctx.Done()
		return sdk.Accept(), nil
	}}
	if got := Judge(t, p, Case{Text: hello, Timeout: 50 * time.Millisecond}); got.Err == nil {
		t.Errorf("%+v", got)
	}
}

// What edits make of a head is what Postern makes of it.
func TestEdits(t *testing.T) {
	fields := rapid.SampledFrom([]string{"A: 1\n", "a : 2\n", "B: x\n y\n", "A:\n\tz\n", "C: 3\n"})
	name := rapid.SampledFrom([]string{"A", "a", "b", "C", "D"})
	rapid.Check(t, func(t *rapid.T) {
		head := rapid.SampledFrom([]string{"Z: 1\n", "From a@example.net Mon\n", " folded\n", ""}).Draw(t, "first") + strings.Join(rapid.SliceOf(fields).Draw(t, "fields"), "")
		rest := rapid.SampledFrom([]string{"\nbody\n", "no field\n\nbody\n", "bad name: x\n", "\n", ""}).Draw(t, "rest")
		m := message.FromString(head + rest)
		ours, body := split(head + rest)
		theirs := m.Head()
		if content, _ := m.Body().Memory(); string(content) != body || bare(theirs) != ours {
			t.Fatalf("%q and %q, and Postern divides it into %q and %q", ours, body, theirs.String(), content)
		}
		for range rapid.IntRange(1, 5).Draw(t, "edits") {
			n, nth := name.Draw(t, "name"), rapid.IntRange(-4, 4).Draw(t, "nth")
			var w *wire.Edit
			var e message.FieldEdit
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0:
				w, e = &wire.Edit{Edit: &wire.Edit_Add{Add: &wire.AddField{Name: n, Value: []byte("v")}}}, message.FieldEdit{Op: message.Add, Name: n, Value: "v"}
			case 1:
				w, e = &wire.Edit{Edit: &wire.Edit_Add{Add: &wire.AddField{Name: n, Value: []byte("v"), Last: true}}}, message.FieldEdit{Op: message.Append, Name: n, Value: "v"}
			case 2:
				w, e = &wire.Edit{Edit: &wire.Edit_Change{Change: &wire.ChangeField{Name: n, Nth: int32(nth), Value: []byte("v\n w")}}}, message.FieldEdit{Op: message.Replace, Name: n, Nth: nth, Value: "v\n w"}
			case 3:
				w, e = &wire.Edit{Edit: &wire.Edit_Remove{Remove: &wire.RemoveField{Name: n, Nth: int32(nth)}}}, message.FieldEdit{Op: message.Remove, Name: n, Nth: nth}
			}
			var ok bool
			if ours, ok = editHead(ours, w); !ok {
				t.Fatalf("%v is no edit", w)
			}
			var err error
			if theirs, err = theirs.Edit(e); err != nil {
				t.Fatal(err)
			}
		}
		if got := bare(theirs); got != ours {
			t.Fatalf("%q, and Postern makes %q", ours, got)
		}
	})
}

// bare is a head without the empty line.
func bare(h message.Head) string {
	s := h.String()
	if s == "\n" || strings.HasSuffix(s, "\n\n") {
		return s[:len(s)-1]
	}
	return s
}
