package host

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/plugins/wire"
)

// all may do everything.
func all() *declaration {
	return &declaration{name: "p", stages: []pipeline.Stage{pipeline.AtMessage}, editsHead: true, editsBody: true, editsEnvelope: true}
}

func add(name, value string) *wire.Edit {
	return &wire.Edit{Edit: &wire.Edit_Add{Add: &wire.AddField{Name: name, Value: []byte(value)}}}
}

// lies are answers that are errors, each with a word of the error.
var lies = []struct {
	name  string
	stage pipeline.Stage
	may   *declaration
	v     []*wire.Verdict
	want  string
}{
	{"a recipient that there is not", pipeline.AtMessage, all(), []*wire.Verdict{{Recipients: []uint32{7}}}, "recipient 7"},
	{"a recipient about whom it was not asked", pipeline.AtMessage, all(), []*wire.Verdict{{Recipients: []uint32{1}}}, "recipient 1"},
	{"a recipient twice", pipeline.AtMessage, all(), []*wire.Verdict{{Recipients: []uint32{0, 0}}}, "twice"},
	{"a huge index", pipeline.AtMessage, all(), []*wire.Verdict{{Recipients: []uint32{math.MaxUint32}}}, "recipient 4294967295"},
	{"recipients at connect", pipeline.AtConnect, all(), []*wire.Verdict{{Recipients: []uint32{0}}}, "some recipients"},
	{"two verdicts at helo", pipeline.AtHelo, all(), []*wire.Verdict{{}, {}}, "verdicts"},
	{"more verdicts than recipients", pipeline.AtMessage, all(), []*wire.Verdict{{}, {}, {}, {}}, "4 verdicts"},
	{"an action that there is not", pipeline.AtMessage, all(), []*wire.Verdict{{Action: 9}}, "action 9"},
	{"a negative action", pipeline.AtMessage, all(), []*wire.Verdict{{Action: -1}}, "action -1"},
	{"quarantine at connect", pipeline.AtConnect, all(), []*wire.Verdict{{Action: wire.Action_ACTION_QUARANTINE}}, "no answer at the connect stage"},
	{"discard at the exit", pipeline.AtDelivery, all(), []*wire.Verdict{{Action: wire.Action_ACTION_DISCARD}}, "no answer at the delivery stage"},
	{"a defer that says 550", pipeline.AtMessage, all(), []*wire.Verdict{{Action: wire.Action_ACTION_DEFER, Reply: &wire.Reply{Code: 550}}}, "contradicts"},
	{"a reject that says 250", pipeline.AtMessage, all(), []*wire.Verdict{{Action: wire.Action_ACTION_REJECT, Reply: &wire.Reply{Code: 250}}}, "contradicts"},
	{"an accept that says 354", pipeline.AtMessage, all(), []*wire.Verdict{{Action: wire.Action_ACTION_ACCEPT, Reply: &wire.Reply{Code: 354}}}, "contradicts"},
	{"an accept that says 221", pipeline.AtMessage, all(), []*wire.Verdict{{Action: wire.Action_ACTION_ACCEPT, Reply: &wire.Reply{Code: 221}}}, "contradicts"},
	{"a code of nine digits", pipeline.AtMessage, all(), []*wire.Verdict{{Action: wire.Action_ACTION_REJECT, Reply: &wire.Reply{Code: 550000000}}}, "contradicts"},
	{"another class", pipeline.AtMessage, all(), []*wire.Verdict{{Action: wire.Action_ACTION_REJECT, Reply: &wire.Reply{Code: 550, Enhanced: "4.7.1"}}}, "enhanced"},
	{"no enhanced code", pipeline.AtMessage, all(), []*wire.Verdict{{Action: wire.Action_ACTION_REJECT, Reply: &wire.Reply{Enhanced: "5.x.1"}}}, "enhanced"},
	{"a newline in a reply", pipeline.AtMessage, all(), []*wire.Verdict{{Action: wire.Action_ACTION_REJECT, Reply: &wire.Reply{Text: "no\r\n250 ok"}}}, "control"},
	{"an escape in a reason", pipeline.AtMessage, all(), []*wire.Verdict{{Reason: "\x1b[2J"}}, "control"},
	{"a long reason", pipeline.AtMessage, all(), []*wire.Verdict{{Reason: strings.Repeat("x", maxText+1)}}, "bytes"},
	{"an edit of the head", pipeline.AtMessage, &declaration{}, []*wire.Verdict{{Edits: []*wire.Edit{add("X", "1")}}}, "edits_head"},
	{"an edit of the envelope", pipeline.AtMessage, &declaration{editsHead: true}, []*wire.Verdict{{Edits: []*wire.Edit{{Edit: &wire.Edit_Sender{}}}}}, "edits_envelope"},
	{"a new body", pipeline.AtMessage, &declaration{editsHead: true}, []*wire.Verdict{{Body: &wire.Verdict_Inline{}}}, "edits_body"},
	{"an edit at connect", pipeline.AtConnect, all(), []*wire.Verdict{{Edits: []*wire.Edit{add("X", "1")}}}, "edits at the connect"},
	{"a body at helo", pipeline.AtHelo, all(), []*wire.Verdict{{Body: &wire.Verdict_Inline{}}}, "body at the helo"},
	{"an envelope's edit at the exit", pipeline.AtDelivery, all(), []*wire.Verdict{{Edits: []*wire.Edit{{Edit: &wire.Edit_Sender{}}}}}, "at the delivery stage"},
	{"an edit of nothing", pipeline.AtMessage, all(), []*wire.Verdict{{Edits: []*wire.Edit{{}}}}, "nothing"},
	{"a field without a name", pipeline.AtMessage, all(), []*wire.Verdict{{Edits: []*wire.Edit{add("", "1")}}}, "name"},
	{"a field that breaks out", pipeline.AtMessage, all(), []*wire.Verdict{{Edits: []*wire.Edit{add("X", "1\nBcc: x@y")}}}, "X"},
	{"a NUL in a field", pipeline.AtMessage, all(), []*wire.Verdict{{Edits: []*wire.Edit{add("X", "1\x00")}}}, "control"},
	{"a newline in a recipient", pipeline.AtMessage, all(), []*wire.Verdict{{Edits: []*wire.Edit{{Edit: &wire.Edit_AddRecipient{AddRecipient: []byte("a@b\nc")}}}}}, "control"},
	{"an empty recipient", pipeline.AtMessage, all(), []*wire.Verdict{{Edits: []*wire.Edit{{Edit: &wire.Edit_Recipient{}}}}}, "empty recipient"},
	{"a long sender", pipeline.AtMessage, all(), []*wire.Verdict{{Edits: []*wire.Edit{{Edit: &wire.Edit_Sender{Sender: make([]byte, envelope.MaxAddress+1)}}}}}, "bytes"},
	{"a copy for nobody", pipeline.AtMessage, all(), []*wire.Verdict{{Edits: []*wire.Edit{{Edit: &wire.Edit_Copy{}}}}}, "0 recipients"},
	{"a copy with a sender's edit", pipeline.AtMessage, all(), []*wire.Verdict{{Edits: []*wire.Edit{{Edit: &wire.Edit_Copy{Copy: &wire.Copy{Recipients: [][]byte{[]byte("a@b")}, Fields: []*wire.Edit{{Edit: &wire.Edit_Sender{}}}}}}}}}, "head"},
	{"a NUL in the body", pipeline.AtMessage, all(), []*wire.Verdict{{Body: &wire.Verdict_Inline{Inline: []byte("a\x00b\n")}}}, "NUL"},
	{"a bare CR in the body", pipeline.AtMessage, all(), []*wire.Verdict{{Body: &wire.Verdict_Inline{Inline: []byte("a\rb\n")}}}, "carriage return"},
	{"a score that is none", pipeline.AtMessage, all(), []*wire.Verdict{{Symbols: []*wire.Symbol{{Name: "X", Score: math.NaN()}}}}, "no number"},
	{"a symbol with a blank", pipeline.AtMessage, all(), []*wire.Verdict{{Symbols: []*wire.Symbol{{Name: "X Y"}}}}, "symbol"},
	{"a result with a semicolon", pipeline.AtMessage, all(), []*wire.Verdict{{Results: []*wire.AuthResult{{Method: "dkim", Result: "pass;spf=pass"}}}}, "result"},
	{"a second verdict that is wrong", pipeline.AtMessage, all(), []*wire.Verdict{{Recipients: []uint32{0}}, {Action: 9}}, "action 9"},
}

// TestLies has answers that are not to be believed refused as a whole.
func TestLies(t *testing.T) {
	for _, l := range lies {
		active := []int{0, 2}
		if l.stage != pipeline.AtMessage {
			active = nil
		}
		parts, err := readAnswer(&wire.JudgeReply{Verdicts: l.v}, &question{l.stage, active, l.may})
		if err == nil || !strings.Contains(err.Error(), l.want) || parts != nil {
			t.Errorf("%s: %v, %v, want an error with %q", l.name, parts, err, l.want)
		}
	}
}

// TestFirstVerdictCounts gives each recipient the first verdict that names it.
func TestFirstVerdictCounts(t *testing.T) {
	r := &wire.JudgeReply{Verdicts: []*wire.Verdict{
		{Action: wire.Action_ACTION_REJECT, Recipients: []uint32{2}},
		{Action: wire.Action_ACTION_DEFER, Recipients: []uint32{2, 5}},
		{Action: wire.Action_ACTION_ACCEPT},
		{Action: wire.Action_ACTION_DISCARD},
	}}
	parts, err := readAnswer(r, &question{pipeline.AtMessage, []int{1, 2, 5, 6}, all()})
	if err != nil {
		t.Fatal(err)
	}
	fates := map[int]pipeline.Action{}
	for _, p := range parts {
		for _, n := range p.verdict.Only {
			fates[n] = p.verdict.Action
		}
	}
	if len(fates) != 4 || fates[2] != pipeline.Reject || fates[5] != pipeline.Defer || fates[1] != pipeline.Accept || fates[6] != pipeline.Accept || len(parts) != 3 {
		t.Errorf("%d parts, %v", len(parts), fates)
	}
}

// FuzzJudgeReply reads whatever a plugin may answer.
func FuzzJudgeReply(f *testing.F) {
	for _, l := range lies {
		b, err := proto.Marshal(&wire.JudgeReply{Verdicts: l.v})
		if err != nil { // texts that are no UTF-8
			continue
		}
		f.Add(byte(l.stage), b)
	}
	f.Fuzz(func(t *testing.T, stage byte, b []byte) {
		var r wire.JudgeReply
		if proto.Unmarshal(b, &r) != nil {
			return
		}
		q := &question{stage: pipeline.Stage(stage % byte(pipeline.Stages)), may: all()}
		if q.stage == pipeline.AtMessage {
			q.active = []int{0, 2, 3}
		}
		parts, err := readAnswer(&r, q)
		if err != nil {
			if parts != nil || !utf8.ValidString(err.Error()) {
				t.Fatalf("%v with %v", parts, err)
			}
			return
		}
		named := map[int]bool{}
		for i, p := range parts {
			v := p.verdict
			if !pipeline.Legal(q.stage, v.Action) {
				t.Fatalf("%v at %v", v.Action, q.stage)
			}
			if v.Reply != (reply.Reply{}) && reply.For(v.Action, v.Reply) != v.Reply {
				t.Fatalf("%v says %v", v.Action, v.Reply)
			}
			if v.Only == nil && len(parts) > 1 {
				t.Fatalf("part %d names nobody", i)
			}
			for _, n := range v.Only {
				if named[n] || n != 0 && n != 2 && n != 3 {
					t.Fatalf("recipient %d", n)
				}
				named[n] = true
			}
			for _, e := range v.Edits {
				if e.Kind == pipeline.EditField && e.Field.Check() != nil {
					t.Fatal(e)
				}
			}
			if checkBody(p.inline) != nil || p.path != "" && !p.body {
				t.Fatal("a body that cannot be")
			}
		}
	})
}

// FuzzDeclaration reads whatever a plugin may say of itself.
func FuzzDeclaration(f *testing.F) {
	for _, d := range []*wire.Declaration{
		{},
		{Name: "a", Stages: []wire.Stage{1, 2, 5}},
		{Name: "a\n", Stages: []wire.Stage{5}},
		{Name: "a", Stages: []wire.Stage{5}, Options: []*wire.Option{{Name: "kind"}}},
		{Name: "a", Stages: []wire.Stage{5}, Options: []*wire.Option{{Name: "x", Type: 4, DefaultJson: `"1h"`}, {Name: "y", Type: 6, DefaultJson: `["a"]`, Doc: "a\n\"b` `"}}},
		{Name: "a", Stages: []wire.Stage{5}, Options: []*wire.Option{{Name: "x", Required: true, Type: 7}, {Name: "x"}}},
		{Name: "a", Stages: []wire.Stage{5}, Options: []*wire.Option{{Name: "n", Type: 2, DefaultJson: "1e9"}}},
	} {
		b, err := proto.Marshal(d)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var w wire.Declaration
		if proto.Unmarshal(b, &w) != nil {
			return
		}
		d, err := readDeclaration(&w)
		if err != nil {
			return
		}
		table := d.table()
		for i, o := range d.options {
			field := table.Elem().Type().Field(i)
			if field.Tag.Get("toml") != o.name || field.Tag.Get("doc") != o.doc {
				t.Fatalf("the tags %q of the option %s", field.Tag, o.name)
			}
		}
		if _, err := d.encode(table); err != nil {
			for _, o := range d.options {
				if o.required {
					return
				}
			}
			t.Fatal(err)
		}
	})
}

// TestAnswerFiles has a plugin name files as its new body that are none of its
// own.
func TestAnswerFiles(t *testing.T) {
	r := newRig(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := r.settings()
	s.User = users()[len(users())-1]
	f := r.filter(t, s, do("file", "STATE/good"))
	m := r.read(t, 100)
	state := filepath.Join(r.dir, "player", "s")
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(state, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if s.User != "" {
			if err := os.Chown(filepath.Join(state, name), 65534, -1); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("good", "a new body")
	if v, err := r.ask(t, f, m, 10*1e9); err != nil {
		t.Error(err)
	} else if got, _ := v.Body.Memory(); string(got) != "a new body\n" {
		t.Errorf("the body %q", got)
	}
	if err := os.Symlink(secret, filepath.Join(state, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(state, "dir"), 0o777); err != nil {
		t.Fatal(err)
	}
	write("dir/in", "x\n")
	write("cr", "a\r\nb\n")
	write("twice", "x\n")
	if err := os.Link(filepath.Join(state, "twice"), filepath.Join(state, "again")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"/etc/passwd": "neither", secret: "neither", "good": "neither", "STATE/../s/good": "neither", "STATE/link": "new body", "STATE/dir": "regular",
		"STATE/dir/in": "neither", "STATE/none": "no such file", "STATE/cr": "carriage return", "STATE/again": "another name", "STATE/": "neither", "": "is none",
	} {
		bad := r.filter(t, s, do("file", name))
		v, err := r.ask(t, bad, m, 10*1e9)
		if err == nil || !strings.Contains(err.Error(), want) || v.Body != nil {
			t.Errorf("%q: %v, want an error with %q", name, err, want)
		}
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "secret\n" {
		t.Error("somebody else's file is gone")
	}
	if _, err := os.Stat(filepath.Join(state, "cr")); err == nil {
		t.Error("a file of an answer that does not count is left")
	}
}
