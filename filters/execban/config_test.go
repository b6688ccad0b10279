package execban

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
)

// Every mistake is told with the key that it is about.
func TestMistakes(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "signatures")
	if err := os.WriteFile(bad, []byte("TVqQ\n***\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o         Options
		key, says string
	}{
		{Options{Refuse: []string{"script"}}, "refuse[0]", `did you mean "scripts"?`},
		{Options{Pass: []string{"xyz"}}, "pass[0]", "known are android, "},
		{Options{Refuse: []string{"java"}, Pass: []string{"java"}}, "pass[0]", "java is in refuse already"},
		{Options{Refuse: []string{"all"}, Defer: []string{"all"}}, "defer[0]", "all is in refuse already"},
		{Options{Unscannable: "reject"}, "unscannable", "write refuse, quarantine, defer or pass"},
		{Options{Strictness: "high"}, "strictness", "write never, contradiction, odd or notice"},
		{Options{Classes: []Class{{Name: "My Class", Extensions: []string{"x"}}}}, "class[0].name", "is no name of a class"},
		{Options{Classes: []Class{{Name: "mine"}}}, "class[0].extensions", "there is none"},
		{Options{Classes: []Class{{Name: "mine", Extensions: []string{"a.b"}}}}, "class[0].extensions[0]", "is no extension"},
		{Options{Classes: []Class{{Name: "mine", Extensions: []string{"x"}}, {Name: "yours", Extensions: []string{".X"}}}}, "class[1].extensions[0]", "is in the class mine already"},
		{Options{Except: []Exception{{When: "siez > 3", Classes: []string{"java"}}}}, "except[0].when", "siez"},
		{Options{Except: []Exception{{}}}, "except[0].classes", "there is none"},
		{Options{Except: []Exception{{Classes: []string{"jaba"}}}}, "except[0].classes[0]", `did you mean "java"?`},
		{Options{Text: "a\nb"}, "text", "one line"},
		{Options{Signatures: filepath.Join(dir, "none")}, "signatures", "no such file"},
		{Options{Signatures: bad}, "signatures", "line 2"},
		{Options{Depth: 31}, "depth", "from 1 to 30"},
		{Options{Members: -1}, "members", "from 1"},
		{Options{Time: -1}, "time", "from 1 to 10m"},
	} {
		_, err := New(pipeline.Env{}, c.o)
		var about interface{ Key() string }
		if !errors.As(err, &about) || about.Key() != c.key || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c.o, err)
		}
	}
	if _, err := New(pipeline.Env{}, Options{}); err != nil {
		t.Error(err)
	}
}

// The package's documentation says what each class does by default.
func TestDefaultActions(t *testing.T) {
	f, err := New(pipeline.Env{}, Options{Unscannable: "defer"})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("execban.go")
	if err != nil {
		t.Fatal(err)
	}
	for class, action := range f.policy.actions {
		want := pipeline.Reject
		switch class {
		case "office-embedded", "pdf-active":
			want = pipeline.Continue
		case ArchivesEncrypted, ArchivesNested, Unscannable:
			want = pipeline.Defer
		}
		if action != want {
			t.Errorf("%s: %v", class, action)
		}
		doc, _, _ := strings.Cut(string(text), "\npackage execban")
		if !strings.Contains(doc, class) {
			t.Errorf("the documentation does not name %s", class)
		}
	}
}

// The worst action counts.
func TestWorst(t *testing.T) {
	two := func(a, b string) string {
		return head + mixed("Content-Type: multipart/mixed; boundary=a\n", "a", "Content-Disposition: attachment; filename="+a+"\n\nx\n", "Content-Disposition: attachment; filename="+b+"\n\nx\n")
	}
	f := newFilter(t, "refuse = [\"java\"]\nquarantine = [\"scripts\"]\ndefer = [\"shortcuts\"]\npass = [\"all\"]")
	for _, c := range []struct {
		a, b string
		want pipeline.Action
	}{
		{"a.js", "a.jar", pipeline.Reject}, {"a.jar", "a.lnk", pipeline.Reject}, {"a.lnk", "a.js", pipeline.Quarantine}, {"a.exe", "a.lnk", pipeline.Defer}, {"a.exe", "a.iso", pipeline.Continue},
	} {
		if v := judge(t, f, two(c.a, c.b)); v.Action != c.want {
			t.Errorf("%s and %s: %v", c.a, c.b, v.Action)
		}
	}
}
