package config

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
)

func TestChains(t *testing.T) {
	var m makes
	c, err := Load("testdata/good-full.toml", m.options())
	if err != nil {
		t.Fatal(err)
	}
	m.made, m.closed = nil, 0
	chains, err := c.Chains(pipeline.NewModes(time.Now), 7)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"delivery": {"dkim-sign", "tagger"},
		"inbound":  {"greylist", "scan", "tap", "policy"},
		"local":    {"scan", "quick"},
	}
	if len(chains) != len(want) {
		t.Fatalf("%d chains", len(chains))
	}
	for _, chain := range chains {
		for i, step := range chain.Steps() {
			if want[chain.Name()][i] != step.Name {
				t.Errorf("%s[%d] = %s", chain.Name(), i, step.Name)
			}
			switch step.Name {
			case "scan":
				if step.Timeout != 30*time.Second || step.OnError != pipeline.ErrorContinues || step.Always || step.Mode != pipeline.Shadow || step.When.String() != "size < 50 * MB" {
					t.Errorf("scan: %+v", step)
				}
			case "quick": // its traits, and the defaults
				if step.Timeout != pipeline.DefaultTimeout || step.OnError != pipeline.ErrorDefers || !step.Always || step.Mode != pipeline.Enforce {
					t.Errorf("quick: %+v", step)
				}
			case "greylist":
				if step.OnError != pipeline.ErrorContinues {
					t.Errorf("greylist: %+v", step)
				}
			}
		}
	}
	if len(m.made) != 7 || m.closed != 0 {
		t.Errorf("%d filters made, %d closed", len(m.made), m.closed)
	}
	for _, chain := range chains {
		if err := chain.Close(); err != nil {
			t.Error(err)
		}
	}
	if m.closed != 7 {
		t.Errorf("%d closed", m.closed)
	}
}

func TestFilterOptions(t *testing.T) {
	var m makes
	if _, err := Load("testdata/good-full.toml", m.options()); err != nil {
		t.Fatal(err)
	}
	var scans []scanOptions
	for _, o := range m.made {
		if s, ok := o.(scanOptions); ok {
			scans = append(scans, s)
		}
	}
	if len(scans) != 2 {
		t.Fatalf("%d scans", len(scans))
	}
	quick, full := scans[0], scans[1]
	if quick.Word != "fast" || quick.Max != 50<<20 || quick.Wait != 3*time.Second {
		t.Errorf("defaults are lost: %+v", quick)
	}
	if full.Wait != 90*time.Second || full.Max != 3<<29 || len(full.Nets) != 2 || full.Weight != 2 || full.Level != 255 ||
		!strings.HasSuffix(full.Database, "/testdata/own.db") || full.Address != "tcp:192.0.2.1:3310" {
		t.Errorf("%+v", full)
	}
}

// TestChainsFailLater: a filter that can no longer be made leaves nothing open.
func TestChainsFailLater(t *testing.T) {
	var m makes
	broken := false
	o := m.options()
	o.Kinds = append(o.Kinds, pipeline.Kind{Name: "fickle", New: func(pipeline.Env, pipeline.Decode) (pipeline.Filter, error) {
		if broken {
			return nil, errors.New("its list has gone")
		}
		return &messager{m.base(pipeline.Traits{}, nil)}, nil
	}})
	c, err := Parse("testdata/fickle.toml", []byte("[chain]\ninbound = [\"scan\",\n  \"fickle\"]\nzoo = [\"scan\"]\n"+withNext), o)
	if err != nil {
		t.Fatal(err)
	}
	m.made, m.closed, broken = nil, 0, true
	chains, err := c.Chains(nil, 2)
	if chains != nil || err == nil || err.Error() != "testdata/fickle.toml:3: [filter.fickle]: its list has gone" {
		t.Errorf("%v, %v", chains, err)
	}
	if len(m.made) == 0 || m.closed != len(m.made) {
		t.Errorf("%d made, %d closed", len(m.made), m.closed)
	}
}

func TestEnv(t *testing.T) {
	var log bytes.Buffer
	var named []string
	var got pipeline.Env
	o := Options{
		Kinds: []pipeline.Kind{{Name: "probe", New: func(env pipeline.Env, _ pipeline.Decode) (pipeline.Filter, error) {
			got = env
			return &messager{}, nil
		}}},
		Env:      pipeline.Env{Log: slog.New(slog.NewTextHandler(&log, nil)), Secret: func(string) []byte { return []byte("k") }},
		State:    func(name string) pipeline.State { named = append(named, name); return nil },
		Hostname: func() (string, error) { return "a.example", nil },
		Control:  "testdata/missing",
	}
	if _, err := Parse("testdata/env.toml", []byte("chain.inbound = [\"one\"]\nfilter.one.kind = \"probe\"\n"+withNext), o); err != nil {
		t.Fatal(err)
	}
	got.Log.Info("hello")
	if !strings.Contains(log.String(), "filter=one") || len(named) != 1 || named[0] != "one" || got.Now == nil || string(got.Secret("")) != "k" {
		t.Errorf("log %q, state of %v, %+v", log.String(), named, got)
	}
}
