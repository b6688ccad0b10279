package sdktest

import (
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/plugins/sdk"
)

// check holds what a plugin said against what it must say.
func (w Want) check(t testing.TB, got Got) {
	t.Helper()
	if w.Problem != "" {
		if !slices.ContainsFunc(got.Problems, func(p string) bool { return strings.Contains(p, w.Problem) }) {
			t.Errorf("the options' problems are %q, want %q (error: %v)", got.Problems, w.Problem, got.Err)
		}
		return
	}
	if len(got.Problems) > 0 {
		t.Fatalf("the options are refused: %q", got.Problems)
	}
	if w.Error != "" {
		if got.Err == nil || !strings.Contains(got.Err.Error(), w.Error) {
			t.Errorf("the call's error is %v, want %q", got.Err, w.Error)
		}
		return
	}
	if got.Err != nil {
		t.Fatalf("the call failed: %v", got.Err)
	}
	action := w.Action
	if action == "" {
		action = "continue"
	}
	for _, f := range []struct{ what, got, want string }{{"action", got.Action, action}, {"reply", got.Reply, w.Reply}, {"reason", got.Reason, w.Reason}} {
		if f.got != f.want && (f.want != "" || f.what == "action") {
			t.Errorf("the %s is %q, want %q (reason: %s)", f.what, f.got, f.want, got.Reason)
		}
	}
	w.checkMessage(t, got)
	for _, name := range w.Symbols {
		if !slices.ContainsFunc(got.Symbols, func(s sdk.Symbol) bool { return s.Name == name }) {
			t.Errorf("there is no symbol %s among %v", name, got.Symbols)
		}
	}
	if w.Check != nil {
		w.Check(t, got)
	}
}

func (w Want) checkMessage(t testing.TB, got Got) {
	t.Helper()
	for _, want := range w.Fields {
		if !slices.ContainsFunc(fieldsOf(got.Head), func(f string) bool { return unfold(f) == want }) {
			t.Errorf("the head lacks %q:\n%s", want, got.Head)
		}
	}
	for _, name := range w.Without {
		if slices.ContainsFunc(fieldsOf(got.Head), func(f string) bool { return named(f, name) }) {
			t.Errorf("the head has a %s:\n%s", name, got.Head)
		}
	}
	message := got.Head + "\n" + got.Body
	want := w.Message
	if want == "" && w.Fields == nil && w.Without == nil && w.Check == nil {
		want = got.before
	}
	if want != "" && message != want {
		t.Errorf("the message is:\n%s\nwant:\n%s", message, want)
	}
}

// unfold is a field as one line.
func unfold(f string) string { return strings.TrimRight(strings.ReplaceAll(f, "\n", ""), " \t") }
