package handoff

import "testing"

// TestRemoteOtherLayout: arguments of indimail where qmail's are configured, and
// the other way round, bounce nothing: QQEH and the size are no recipients.
func TestRemoteOtherLayout(t *testing.T) {
	const want = "ZThe arguments are laid out otherwise than Postern is configured for. (#4.3.5)\n\x00"
	for name, row := range map[string]struct {
		indimail bool
		args     []string
	}{
		"indimail's for qmail":    {false, []string{"h", "s@h", "", "1234", "a@b"}},
		"with a header":           {false, []string{"h", "s@h", "X-A: b", "1234", "a@b", "c@d"}},
		"qmail's for indimail":    {true, []string{"h", "s@h", "a@b"}},
		"two for indimail":        {true, []string{"h", "s@h", "a@b", "c@d"}},
		"three for indimail":      {true, []string{"h", "s@h", "a@b", "c@d", "e@f"}},
		"no sender, for indimail": {true, []string{"h", "", "a@b"}},
	} {
		d, all := delivering(t, ok, func(o *Options) { o.Remote.Indimail = row.indimail })
		if r := d.leave(d.fed(mail), row.args...); r.report != want || all.len() > 0 {
			t.Errorf("%s: %q", name, r.report)
		}
		if !d.log.has("write argv = ") {
			t.Errorf("%s: the log does not say what to do", name)
		}
	}
	d, all := delivering(t, ok, nil)
	if r := d.leave(d.fed(mail), "h", "s@h", "a@b", "1234", "c@d"); r.report != ok || all.len() != 1 {
		t.Errorf("%q", r.report)
	}
}

// TestRemoteResults: calls are counted as qmail-rspawn takes their reports.
func TestRemoteResults(t *testing.T) {
	results := make(chan string, 1)
	counted := func(o *Options) {
		o.Remote.Observe = func(entrance, result string) {
			if entrance != "qmail-remote" {
				t.Error(entrance)
			}
			results <- result
		}
	}
	for report, want := range map[string]string{
		ok:                             "delivered",
		"r\x00Zlater\n\x00":            "deferred",
		"DI know no such host\n\x00":   "failed",
		"hno\n\x00DGiving up\n\x00":    "failed",
		"slater\n\x00DGiving up\n\x00": "deferred",
		"slater\n\x00r\x00Kfine\n\x00": "deferred",
		"r\x00":                        "failed",
	} {
		d, _ := delivering(t, report, counted)
		d.leave(d.fed(mail), "h", "a@b", "c@d")
		if got := <-results; got != want {
			t.Errorf("%q: %s", report, got)
		}
	}
	d, _ := delivering(t, ok, counted)
	if d.leave(d.fed(mail), "h"); <-results != "failed" {
		t.Error("improper")
	}
	_, w := d.pipe()
	if d.leave(w, "h", "a@b", "c@d"); <-results != "deferred" {
		t.Error("unreadable")
	}
	d = handing(t, counted)
	if r := d.leave(d.fed(mail), "h", "a@b", "c@d"); r.next == "" || <-results != "handed_on" {
		t.Error("handed on")
	}
	c := d.connect()
	c.conn.Close()
	if <-results != "none" {
		t.Error("gone")
	}
}
