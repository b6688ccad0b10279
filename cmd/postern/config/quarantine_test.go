package config

import (
	"os/user"
	"strings"
	"testing"
	"time"
)

func TestQuarantine(t *testing.T) {
	o := Options{
		HasQueue: true, Hostname: func() (string, error) { return "mx.example.org", nil }, Control: "/nonexistent",
		LookupUser: func(name string) (uint32, error) {
			switch name {
			case "postern":
				return 1001, nil
			case "qmaild":
				return 64011, nil
			}
			return 0, user.UnknownUserError(name)
		},
	}
	for _, c := range []struct{ text, want string }{
		{"retention = \"0s\"", ""},
		{"retention = \"30\"", "postern.toml:2: quarantine.retention"},
		{"summary = \"postmaster\"", "postern.toml:2: quarantine.summary = \"postmaster\": write an address with a domain"},
		{"summary = \"pm@example.org\"\nsummary_hour = 24", "postern.toml:3: quarantine.summary_hour = 24: write an hour from 0 to 23"},
		{"summary = \"pm@example.org\"\nsummary_hour = -1", "postern.toml:3: quarantine.summary_hour"},
		{"user = \"qmaild\"", ""},
		{"user = \"64011\"", ""},
		{"user = \"nobody-here\"", "postern.toml:2: quarantine.user: there is no user \"nobody-here\""},
		{"retain = \"1d\"", "postern.toml:2: unknown key \"retain\""},
	} {
		conf, err := Parse("postern.toml", []byte("[quarantine]\n"+c.text+"\n"), o)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.text, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, not %q", c.text, err, c.want)
		case c.want == "" && strings.HasPrefix(c.text, "user"):
			if uid, ok := conf.Quarantine.RunsAs(); !ok || uid != 64011 {
				t.Errorf("%s: %d %v", c.text, uid, ok)
			}
		}
	}
	conf, err := Parse("postern.toml", nil, o)
	if err != nil || conf.Quarantine.Retention != 30*24*time.Hour || conf.Quarantine.Summary != "" {
		t.Errorf("%+v %v", conf, err)
	}
	if _, ok := conf.Quarantine.RunsAs(); ok {
		t.Error("somebody else runs the next program, without being named")
	}
	// A daemon that has given up root cannot become anybody.
	text := "user = \"postern\"\n[quarantine]\nuser = \"%\"\n"
	if _, err := Parse("postern.toml", []byte(strings.ReplaceAll(text, "%", "qmaild")), o); err == nil || !strings.Contains(err.Error(), "postern.toml:3: quarantine.user = \"qmaild\": the daemon becomes \"postern\"") {
		t.Error(err)
	}
	if _, err := Parse("postern.toml", []byte(strings.ReplaceAll(text, "%", "postern")), o); err != nil {
		t.Error(err)
	}
}
