package config

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/plugins/host"
)

// asked are plugins that were asked what they are.
type asked struct {
	settings []host.Settings
	filter   string // that was made last
	err      error
}

// pluginOptions are those of every plugin here.
type pluginOptions struct {
	Tag string `toml:"tag" doc:"a tag"`
}

type keyMistake struct{}

func (keyMistake) Error() string { return "too long" }
func (keyMistake) Key() string   { return "tag" }

func (a *asked) Kind(s host.Settings) (pipeline.Kind, error) {
	a.settings = append(a.settings, s)
	return pipeline.Kind{Name: s.Name, New: func(e pipeline.Env, decode pipeline.Decode) (pipeline.Filter, error) {
		a.filter = e.Name
		var o pluginOptions
		if err := decode(&o); err != nil {
			return nil, err
		}
		if len(o.Tag) > 3 {
			return nil, keyMistake{}
		}
		return &tagging{}, nil
	}}, a.err
}

type tagging struct{ fake }

func (*tagging) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return nil, errors.New("only looked at")
}

func (*tagging) Message(context.Context, *pipeline.Transaction, message.Message) (pipeline.Verdict, error) {
	return pipeline.Verdict{}, nil
}

func (*tagging) Traits() pipeline.Traits {
	return pipeline.Traits{Stages: []pipeline.Stage{pipeline.AtMessage}}
}

const withPlugin = withNext + "[chain]\ninbound = [\"second\"]\n[plugin.tagger]\ncommand = [\"./plugin\", \"--quick\"]\n[filter.second]\nkind = \"tagger\"\n"

// TestPlugins makes kinds of plugins, and puts their mistakes in their places.
func TestPlugins(t *testing.T) {
	a := &asked{}
	use := func(o *Options) { o.Plugins = a }
	c, err := parse(t, withPlugin+"tag = \"abc\"\n", use)
	if err != nil {
		t.Fatal(err)
	}
	program, err := filepath.Abs("testdata/plugin")
	if err != nil {
		t.Fatal(err)
	}
	want := host.Settings{Name: "tagger", Command: []string{program, "--quick"}, Instances: 1, Concurrency: 16, Timeout: host.DefaultTimeout, Memory: host.DefaultMemory}
	if len(a.settings) != 1 || !reflect.DeepEqual(a.settings[0], want) {
		t.Errorf("asked %+v, want %+v", a.settings, want)
	}
	if a.filter != "second" {
		t.Errorf("the filter is called %q", a.filter)
	}
	found := false
	for _, s := range c.Effective() {
		found = found || s.Key == "filter.second.tag" && s.Value == `"abc"`
	}
	if !found {
		t.Error("the plugin's option is not in force")
	}
	for text, want := range map[string]string{
		withPlugin + "tag = \"long\"\n": "testdata/parsed.toml:9: filter.second.tag: too long",
		withPlugin + "tga = 1\n":        `testdata/parsed.toml:9: unknown key "tga" in [filter.second] (did you mean "tag"?)`,
	} {
		if _, err := parse(t, text, use); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	a.err = errors.New("it has ended: exit 1")
	if _, err := parse(t, withPlugin, use); err == nil || !strings.HasPrefix(err.Error(), "testdata/parsed.toml:6: [plugin.tagger]: the plugin ") || !strings.HasSuffix(err.Error(), "cannot be used: it has ended: exit 1") {
		t.Errorf("%v", err)
	}
	// Where plugins are not started, their filters can be looked at.
	if _, err := parse(t, withPlugin+"whatever = true\n", nil); err != nil {
		t.Error(err)
	}
}

// TestPluginPrograms looks for the programs of plugins.
func TestPluginPrograms(t *testing.T) {
	dir, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ plugin, want string }{
		{`command = ["./away"]`, dir + `/away": no such file or directory`},
		{`command = ["./control"]`, dir + `/control" is no file`},
		{`command = ["./plain"]`, dir + `/plain" cannot be executed: chmod +x it, or write its interpreter in front of it`},
		{"command = [\"sh\"]\ndir = \"away\"", dir + `/away": no such file or directory`},
		{"command = [\"sh\"]\ndir = \"plain\"", dir + `/plain": it is no directory`},
	} {
		_, err := parse(t, withNext+"[plugin.p]\n"+c.plugin+"\n", nil)
		if err == nil || !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.plugin, err, c.want)
		}
	}
	c, err := parse(t, withNext+"[plugin.p]\ncommand = [\"sh\", \"relative\"]\n", nil)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(c.Plugin["p"].Command[0]); err != nil || !info.Mode().IsRegular() || c.Plugin["p"].Command[1] != "relative" {
		t.Errorf("%q: %v", c.Plugin["p"].Command, err)
	}
	if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0].Error(), "is the kind of no filter") {
		t.Errorf("warnings %v", c.Warnings)
	}
}
