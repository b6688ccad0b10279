package config

import (
	"maps"
	"os/user"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
)

// runner is the options of a filter that runs programs.
type runner struct {
	User    string `toml:"user" runs:"user" doc:"who runs the program"`
	Program []struct {
		User string `toml:"user" runs:"user" doc:"who runs it"`
	} `toml:"program" doc:"programs"`
}

// The users of programs are known by the keys that name them, and looked up.
func TestRunsAs(t *testing.T) {
	o := Options{
		HasQueue: true, Hostname: func() (string, error) { return "mx.example.org", nil }, Control: "/nonexistent",
		LookupUser: func(name string) (uint32, error) {
			switch name {
			case "root":
				return 0, nil
			case "filter":
				return 1001, nil
			}
			return 0, user.UnknownUserError(name)
		},
		KnowsUID: func(uid uint32) error {
			if uid == 64011 || uid == 0 {
				return nil
			}
			return user.UnknownUserIdError(uid)
		},
		Kinds: []pipeline.Kind{{Name: "runs", New: func(_ pipeline.Env, decode pipeline.Decode) (pipeline.Filter, error) {
			if err := decode(&runner{}); err != nil {
				return nil, err
			}
			return &fake{closed: new(int)}, nil
		}}},
	}
	c, err := Parse("postern.toml", []byte(`user = "filter"
[filter.a]
kind = "runs"
user = "filter"
[filter.b]
kind = "runs"
user = ""
[[filter.b.program]]
[[filter.b.program]]
user = "64011"
[filter.runs]
`), o)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"filter.a.user": "filter", "filter.b.program[1].user": "64011"}
	if got := c.RunsAs(); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if err := c.Wrong("filter.a.user", "not now"); err.Error() != `postern.toml:4: filter.a.user = "filter": not now` {
		t.Error(err)
	}
	for name, want := range map[string]string{
		"filtre": `postern.toml:2: filter.runs.user: there is no user "filtre"`,
		"64012":  `postern.toml:2: filter.runs.user: there is no user "64012"`,
		"root":   `postern.toml:2: filter.runs.user: a program is never run as root`,
		"0":      `postern.toml:2: filter.runs.user: a program is never run as root`,
	} {
		if _, err := Parse("postern.toml", []byte("[filter.runs]\nuser = \""+name+"\"\n"), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
}
