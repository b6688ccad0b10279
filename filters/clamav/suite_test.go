package clamav

import (
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
)

// The suite that every filter passes, with each action.
func TestSuite(t *testing.T) {
	s := newStub(t, honest)
	env := func(t testing.TB) pipeline.Env {
		e := filtertest.Env(t)
		e.Workers = here{}
		return e
	}
	address := "address = [\"" + s.Address + "\"]\n"
	virus := "Subject: x\n\nEICAR\n"
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: address, Env: env,
		Cases: []filtertest.Case{
			{Name: "clean", WantReason: "nothing found in the message"},
			{Name: "virus", Message: virus, WantAction: pipeline.Reject, WantReply: "554 5.7.1 a virus was found in this message: Eicar-Test", WantReason: "Eicar-Test in the message"},
			{Name: "text", Config: address + "text = \"see https://example.org/virus\"", Message: virus, WantAction: pipeline.Reject, WantReply: "Eicar-Test; see https://example.org/virus"},
			{Name: "quarantine", Config: address + "action = \"quarantine\"", Message: virus, WantAction: pipeline.Quarantine, WantReason: "Eicar-Test"},
			{Name: "discard", Config: address + "action = \"discard\"", Message: virus, WantAction: pipeline.Discard, WantReason: "Eicar-Test"},
			{
				Name: "header", Config: address + "header = \"X-Virus-Scanned\"", Message: "Subject: x\nX-VIRUS-SCANNED: by me\n\nbody\n",
				WantMessage: "X-Virus-Scanned: clean, says clamd\nSubject: x\n\nbody\n",
			},
			{
				Name: "header of a message that passes unscanned", Config: address + "max = 10\nunscannable = \"pass\"\nheader = \"X-Virus-Scanned\"", Message: "X-Virus-Scanned: clean\nSubject: x\n\nbody\n",
				WantMessage: "X-Virus-Scanned: not scanned, larger than 10 bytes\nSubject: x\n\nbody\n", WantReason: "unscannable",
			},
			{Name: "hidden", Message: tricks([]byte("this is EICAR, but nobody should see it"))[1].text, WantAction: pipeline.Reject, WantReason: "in part 1."},
			{Name: "no clamd", Config: "address = [\"unix:/nonexistent/clamd.ctl\"]", WantAction: pipeline.Defer, WantErr: "not scanned: unix:/nonexistent/clamd.ctl"},
		},
	})
}

// Each mistake in the configuration is told with its key.
func TestConfig(t *testing.T) {
	for config, want := range map[string]string{
		`address = ["/run/clamav/clamd.ctl"]`:            "address[0]: \"/run/clamav/clamd.ctl\": write unix:/path/of/socket or tcp:host:port",
		`address = ["unix:/a", "tcp:1.2.3.4"]`:           "address[1]",
		`address = ["unix:/a", "unix:///a"]`:             "address[1]: \"unix:///a\": it stands there twice",
		`address = ["unix:relative"]`:                    "address[0]",
		`connections = 1001`:                             "connections",
		`max = 5_000_000_000`:                            "max",
		`decoded = -1`:                                   "decoded",
		`contents = 2000`:                                "contents: 2000: write a number from 1 to 1000",
		`action = "defer"`:                               "action: \"defer\": write refuse, quarantine, discard",
		`unscannable = "discard"`:                        "unscannable",
		`parts = "some"`:                                 "parts",
		`text = "a\nb"`:                                  "text",
		`header = "X Y"`:                                 "header",
		`address = [` + strings.Repeat(`"x",`, 17) + `]`: "address[16]: more than 16 clamds",
	} {
		_, err := Kind().New(filtertest.Env(t), filtertest.Decode(config))
		k, ok := err.(interface{ Key() string })
		if !ok || !strings.HasPrefix(k.Key()+": "+err.Error(), want) {
			t.Errorf("%s: %v", config, err)
		}
	}
	f, err := Kind().New(filtertest.Env(t), filtertest.Decode(""))
	if err != nil || f.(*Filter).max != 25<<20 {
		t.Error(err)
	}
}
