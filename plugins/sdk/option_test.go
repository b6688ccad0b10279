package sdk

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/postern-mta/postern/plugins/wire"
)

// all is a struct of options of every type.
type all struct {
	Text    string            `key:"text" default:"a, b" doc:"a text"`
	Flag    bool              `key:"flag" default:"true"`
	Whole   int               `key:"whole" default:"-7"`
	Small   uint8             `key:"small"`
	Number  float64           `key:"number" default:"2.5"`
	Wait    time.Duration     `key:"wait" default:"90s"`
	Size    Size              `key:"size" default:"10MB"`
	List    []string          `key:"list" default:"a, b"`
	Table   map[string]string `key:"table" default:"{\"a\": \"b\"}"`
	Net     netip.Prefix      `key:"net" default:"192.0.2.0/24"`
	Pattern *regexp.Regexp    `key:"pattern"`
	Must    string            `key:"must" required:"true"`
	Ready   chan int
}

func TestOptions(t *testing.T) {
	s, err := schemaOf(new(all))
	if err != nil {
		t.Fatal(err)
	}
	defaults := all{
		Text: "a, b", Flag: true, Whole: -7, Number: 2.5, Wait: 90 * time.Second, Size: 10 << 20, List: []string{"a", "b"},
		Table: map[string]string{"a": "b"}, Net: netip.MustParsePrefix("192.0.2.0/24"), Must: "x",
	}
	with := func(change func(*all)) all {
		a := defaults
		change(&a)
		return a
	}
	for _, c := range []struct {
		json  string
		want  all
		wrong []string
	}{
		{`{"must": "x"}`, defaults, nil},
		{`{"must": "x", "flag": null}`, defaults, nil},
		{
			`{"must": "x", "text": "y", "flag": false, "whole": 3, "small": 255, "number": 1, "wait": 1000000000, "size": 5, "list": [], "table": {}, "net": "::/0", "pattern": "^a"}`,
			with(func(a *all) {
				a.Text, a.Flag, a.Whole, a.Small, a.Number, a.Wait, a.Size, a.List, a.Table = "y", false, 3, 255, 1, time.Second, 5, []string{}, map[string]string{}
				a.Net, a.Pattern = netip.MustParsePrefix("::/0"), regexp.MustCompile("^a")
			}), nil,
		},
		{`{}`, all{}, []string{"must: it is missing"}},
		{`{"must": "x", "tag": 1}`, all{}, []string{"tag: there is no such option"}},
		{`{"must": "x", "small": 256, "whole": 1.5, "list": "a"}`, all{}, []string{
			"list: it must be a list of texts", "small: it must be a whole number", "whole: it must be a whole number",
		}},
		{`{"must": "x", "net": "a", "pattern": "("}`, all{}, []string{"net: netip.ParsePrefix(\"a\"): no '/'", "pattern: error parsing regexp: missing closing ): `(`"}},
		{`[]`, all{}, []string{": the options cannot be read: json: cannot unmarshal array into Go value of type map[string]json.RawMessage"}},
		{`{"text": "` + strings.Repeat("x", maxOptionsJSON) + `"}`, all{}, []string{": the options have 1048588 bytes, more than 1048576"}},
	} {
		var got all
		var wrong []string
		for _, p := range s.decode([]byte(c.json), &got) {
			wrong = append(wrong, p.GetOption()+": "+p.GetText())
		}
		slices.Sort(wrong)
		if !slices.Equal(wrong, c.wrong) {
			t.Errorf("%.100s: %q, want %q", c.json, wrong, c.wrong)
		}
		if c.wrong == nil && !reflect.DeepEqual(got, c.want) {
			t.Errorf("%.100s: %+v, want %+v", c.json, got, c.want)
		}
	}
}

// What is declared of options is what the tags say.
func TestDeclaration(t *testing.T) {
	s, err := Plugin[all]{
		Name: "n", Version: "v", Doc: "d", Needs: NeedsBody, Edits: EditsHead | EditsEnvelope, Advises: true, StrangersOnly: true,
		Message: func(context.Context, *all, *Message) (Verdict, error) { return Continue(), nil },
		Helo:    func(context.Context, *all, *Session) (Verdict, error) { return Continue(), nil },
	}.Server()
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Declare(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	options := d.GetOptions()
	d.Options = nil
	want := &wire.Declaration{
		Name: "n", Version: "v", Doc: "d", Stages: []wire.Stage{wire.Stage_STAGE_HELO, wire.Stage_STAGE_MESSAGE}, Needs: wire.Needs_NEEDS_BODY,
		EditsHead: true, EditsEnvelope: true, Advises: true, StrangersOnly: true,
	}
	if !proto.Equal(d, want) {
		t.Errorf("%v, want %v", d, want)
	}
	for i, o := range []*wire.Option{
		{Name: "text", Type: wire.OptionType_OPTION_TYPE_STRING, Doc: "a text", DefaultJson: `"a, b"`},
		{Name: "flag", Type: wire.OptionType_OPTION_TYPE_BOOL, DefaultJson: "true"},
		{Name: "whole", Type: wire.OptionType_OPTION_TYPE_INT, DefaultJson: "-7"},
		{Name: "small", Type: wire.OptionType_OPTION_TYPE_INT},
		{Name: "number", Type: wire.OptionType_OPTION_TYPE_FLOAT, DefaultJson: "2.5"},
		{Name: "wait", Type: wire.OptionType_OPTION_TYPE_DURATION, DefaultJson: "90000000000"},
		{Name: "size", Type: wire.OptionType_OPTION_TYPE_SIZE, DefaultJson: "10485760"},
		{Name: "list", Type: wire.OptionType_OPTION_TYPE_STRINGS, DefaultJson: `["a","b"]`},
		{Name: "table", Type: wire.OptionType_OPTION_TYPE_TABLE, DefaultJson: `{"a":"b"}`},
		{Name: "net", Type: wire.OptionType_OPTION_TYPE_STRING, DefaultJson: `"192.0.2.0/24"`},
		{Name: "pattern", Type: wire.OptionType_OPTION_TYPE_STRING},
		{Name: "must", Type: wire.OptionType_OPTION_TYPE_STRING, Required: true},
	} {
		if i >= len(options) || !proto.Equal(options[i], o) {
			t.Fatalf("option %d is not %v: %v", i, o, options)
		}
	}
}

// A mistake in the author's own words ends the program before it begins.
func TestMistakes(t *testing.T) {
	refuse := func(want string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	message := func(context.Context, *None, *Message) (Verdict, error) { return Continue(), nil }
	_, err := Plugin[None]{Message: message}.Server()
	refuse("Name must have", err)
	_, err = Plugin[None]{Name: strings.Repeat("x", 65), Message: message}.Server()
	refuse("Name must have", err)
	_, err = Plugin[None]{Name: "x", Version: strings.Repeat("x", 65), Message: message}.Server()
	refuse("Version has more", err)
	_, err = Plugin[None]{Name: "x", Needs: 9, Message: message}.Server()
	refuse("Needs is 9", err)
	_, err = Plugin[None]{Name: "x"}.Server()
	refuse("it has no stage", err)
	_, err = Plugin[int]{Name: "x"}.Server()
	refuse("they must be a struct", err)
	for want, options := range map[string]any{
		"a key has small letters": new(struct {
			A string `key:"A"`
		}),
		"a letter first": new(struct {
			A string `key:"_a"`
		}),
		"every filter has": new(struct {
			A string `key:"when"`
		}),
		"there are two": new(struct {
			A string `key:"a"`
			B string `key:"a"`
		}),
		"can have the type chan int": new(struct {
			A chan int `key:"a"`
		}),
		"its default: it must be a whole number": new(struct {
			A int `key:"a" default:"x"`
		}),
		"its default: \"1XB\"": new(struct {
			A Size `key:"a" default:"1XB"`
		}),
		"its default: time": new(struct {
			A time.Duration `key:"a" default:"x"`
		}),
		"required has no default": new(struct {
			A int `key:"a" default:"1" required:"true"`
		}),
		"capital": new(struct {
			a string `key:"a"`
		}),
	} {
		_, err := schemaOf(options)
		refuse(want, err)
	}
}

// What a Configure function says goes to the options that it names.
func TestProblems(t *testing.T) {
	err := errors.Join(Wrong("a", "no %d", 1), errors.New("all\nof it"), errors.Join(Wrong("b", "x")))
	var got []string
	for _, p := range problems(err) {
		got = append(got, p.GetOption()+"|"+p.GetText())
	}
	if want := []string{"a|no 1", "|all of it", "b|x"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "7": 7, "7B": 7, "3 KB": 3 << 10, "10MB": 10 << 20, "2GB": 2 << 30, "1TB": 1 << 40} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "MB", "-1", "1.5MB", "1 M B", "1XB", "9223372036854775807KB", "99999999999999999999"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
}
