package spamassassin

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/servers"
	"github.com/postern-mta/postern/pipeline/servers/serverstest"
)

const ownRules = `
use_bayes 0
use_auto_welcomelist 0
skip_rbl_checks 1
dns_available no
required_score 5
body OWN_PILLS /cheap pills/
score OWN_PILLS 6.5
header OWN_FROM EnvelopeFrom =~ /^known\@example\.net$/
score OWN_FROM -2
body GTUBE /XJS\*C4JDBQADN1\.NSBN3\*2IDNEN\*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL\*C\.34X/
score GTUBE 1000
`

// newReal is Debian's spamd with rules of our own, and no network.
func newReal(t testing.TB) *serverstest.Program {
	t.Helper()
	r := serverstest.NewProgram(t, "spamd", map[string]string{
		"rules/own.cf": ownRules, "site/site.pre": "loadplugin Mail::SpamAssassin::Plugin::Check\nloadplugin Mail::SpamAssassin::Plugin::BodyEval\n",
		"users/joe@example.org/user_prefs": "required_score 9\nscore OWN_PILLS 8\n", "users/jim@example.org/user_prefs": "",
	})
	r.Command = []string{
		"spamd", "--socketpath=" + r.Socket, "--socketmode=0666", "--configpath=" + r.Dir + "/rules", "--siteconfigpath=" + r.Dir + "/site", "--nouser-config", "--virtual-config-dir=" + r.Dir + "/users/%u",
		"--local", "--max-children=2", "--min-children=2", "--helper-home-dir=" + r.Dir, "--syslog=" + r.Dir + "/log", "--pidfile=" + r.Dir + "/pid",
	}
	if os.Getuid() == 0 {
		r.Command = append(r.Command, "--username=nobody") // as root it scores nothing
	}
	r.Ready = func(ctx context.Context) error {
		_, err := ping(ctx, &servers.Server{Network: "unix", Address: r.Socket})
		return err
	}
	r.Start()
	return r
}

const gtube = "Subject: x\nDate: Thu, 1 Jan 2026 00:00:00 +0000\n\nXJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\n"

// The real spamd finds GTUBE, lets a clean message be, hears of the sender, and
// scores by the preferences of the recipient; killed and started while mail
// comes in, the filter fails and comes back.
func TestSpamd(t *testing.T) {
	r := newReal(t)
	f := newFilter(t, "refuse = 100\nuser = \"recipient\"", "unix:"+r.Socket)
	if v := filtertest.Must(t, f, gtube); v.Action != pipeline.Reject || v.Symbols[0].Score < 900 || !has(v, "SA_GTUBE") {
		t.Errorf("GTUBE: %+v", v)
	}
	if v := filtertest.Must(t, f, "Subject: hello\n\nhow are you\n"); v.Action != pipeline.Continue || v.Symbols[0].Score > 1 || v.Edits != nil {
		t.Errorf("clean: %+v", v)
	}
	const pills = "Subject: x\n\nbuy cheap pills\n"
	for to, want := range map[string]string{"jim@example.org": "score 6.5, spam from 5: OWN_PILLS", "joe@example.org": "score 8, below 9: OWN_PILLS"} {
		if v := filtertest.Must(t, f, pills, to); v.Reason != want {
			t.Errorf("%s: %s, want %s", to, v.Reason, want)
		}
	}
	if v := filtertest.Must(t, f, serverstest.Long()); v.Reason != "score 0, below 5" {
		t.Errorf("large: %s", v.Reason)
	}
	serverstest.UnderLoad(t, func() (bool, error) {
		v, err := filtertest.Judge(f, gtube, 5*time.Second)
		switch {
		case err != nil && v.Action == pipeline.Continue && v.Edits == nil:
			return false, nil
		case err == nil && v.Action == pipeline.Reject:
			return true, nil
		}
		return false, fmt.Errorf("%+v, %w", v, err)
	}, r.Stop, r.Start)
}

func has(v pipeline.Verdict, name string) bool {
	for _, s := range v.Symbols {
		if s.Name == name {
			return true
		}
	}
	return false
}
