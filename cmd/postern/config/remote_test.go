package config

import (
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/message"
)

// TestRemote: what is not written for the shim of what leaves.
func TestRemote(t *testing.T) {
	var m makes
	c, got := load(t, "testdata/good-remote.toml", m.options())
	if c == nil {
		t.Fatal(got)
	}
	r, q := c.Listen["remote"], c.Listen["queue"]
	if !r.IsRemote() || r.Socket != DefaultRemoteSocket || r.Next != NextDeliver || r.Lines != message.Repair || r.Slow != 2*time.Minute+time.Hour || r.Marks() || r.OursRule() != nil || r.Indimail() || r.Mode() != 0o666 {
		t.Errorf("%+v", r)
	}
	if q.IsRemote() || !q.Marks() || q.Lines != message.Keep {
		t.Errorf("%+v", q)
	}
	c, got = load(t, "testdata/good-full.toml", m.options())
	if c == nil {
		t.Fatal(got)
	}
	if r = c.Listen["remote"]; !r.IsRemote() || !r.Indimail() || r.OursRule() == nil || r.Lines != message.Keep || r.Slow != 2*time.Minute+time.Minute {
		t.Errorf("%+v", r)
	}
}

// TestMarksAreOptional: nobody gets marks for nothing.
func TestMarksAreOptional(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, "mark = true\n": true, "[listen.remote]\nnext = \"deliver\"\n": true, "mark = false\n[listen.remote]\nnext = \"deliver\"\n": false,
	} {
		c, err := parse(t, "[listen.queue]\nnext = \"./next\"\n"+text, nil)
		if err != nil || c.Listen["queue"].Marks() != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}
