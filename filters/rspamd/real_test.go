package rspamd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/servers"
	"github.com/postern-mta/postern/pipeline/servers/serverstest"
)

const realConfig = `
options {
  pidfile = "$D/pid"; control_socket = "$D/ctl"; tempdir = "$D"; filters = ""; hs_cache_dir = "$D";
  url_tld = "$D/tld"; disable_hyperscan = true; lang_detection { languages = ["en"]; }
  dns { nameserver = ["127.0.0.1:9"]; timeout = 0.1s; retransmits = 1; }
  task_timeout = 5s;
}
logging { type = "file"; filename = "$D/log"; level = "info"; }
worker "normal" { bind_socket = "$D/s mode=0666"; count = 1; mime = true; }
actions { reject = 15; add_header = 6; greylist = 4; }
lua = "$D/own.lua";
`

// Joe likes pills more than others do.
const realRule = `
rspamd_config.OWN_PILLS = {
  score = 7.0,
  callback = function(task)
    if not (task:get_header('Subject') or ''):find('pills') then return false end
    task:set_milter_reply({ add_headers = { ['X-Pills'] = 'cheap' }, remove_headers = { ['X-Old'] = 0 } })
    if tostring(task:get_request_header('Deliver-To')) == 'joe@example.org' then return true, 0.1, 'joe' end
    return true, 1.0, tostring(task:get_request_header('Queue-Id'))
  end,
}
`

// newReal is Debian's rspamd with a rule of our own, and no network.
func newReal(t testing.TB) *serverstest.Program {
	t.Helper()
	r := serverstest.NewProgram(t, "rspamd", map[string]string{"own.lua": realRule, "tld": "com\nnet\norg\n"})
	config := filepath.Join(r.Dir, "rspamd.conf")
	if err := os.WriteFile(config, []byte(strings.ReplaceAll(realConfig, "$D", r.Dir)), 0o644); err != nil {
		t.Fatal(err)
	}
	r.Command = []string{"rspamd", "--no-fork", "--insecure", "--config=" + config}
	r.Ready = func(ctx context.Context) error {
		_, err := ping(ctx, &servers.Server{Network: "unix", Address: r.Socket})
		return err
	}
	r.Start()
	return r
}

const gtube = "Subject: x\nDate: Thu, 1 Jan 2026 00:00:00 +0000\n\nXJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\n"

// The real rspamd finds GTUBE, lets a clean message be, judges by recipient and
// changes the header; killed and started while mail comes in, the filter fails
// and comes back.
func TestRspamd(t *testing.T) {
	r := newReal(t)
	f := newFilter(t, "milter = true\nuser = \"recipient\"", "unix:"+r.Socket)
	if v := filtertest.Must(t, f, gtube); v.Action != pipeline.Reject || v.Symbols[0].Score < 15 || !strings.Contains(v.Reply.Text, "Gtube pattern") {
		t.Errorf("GTUBE: %+v", v)
	}
	if v := filtertest.Must(t, f, "Subject: hello\n\nhow are you\n"); v.Action != pipeline.Continue || v.Symbols[0].Score > 1 || v.Edits != nil {
		t.Errorf("clean: %+v", v)
	}
	const pills = "Subject: cheap pills\nX-Old: 1\n\nbuy\n"
	v := filtertest.Must(t, f, pills, "jim@example.org")
	if v.Action != pipeline.Continue || v.Reason != "add header, score 7: OWN_PILLS=7" || len(v.Symbols) != 2 || v.Symbols[1].Name != "RSPAMD_OWN_PILLS" {
		t.Errorf("jim: %+v", v)
	}
	var changes []string
	for _, e := range v.Edits {
		changes = append(changes, e.String())
	}
	if s := strings.Join(changes, "; "); s != "remove X-Old; add X-Pills: cheap; add X-Spam-Status: Yes, score=7 required=15 by=rspamd tests=OWN_PILLS=7; add X-Spam-Score: 7; add X-Spam-Flag: YES" {
		t.Error(s)
	}
	if v := filtertest.Must(t, f, pills, "joe@example.org"); v.Reason != "no action, score 0.7: OWN_PILLS=0.7" {
		t.Errorf("joe: %s", v.Reason)
	}
	if v := filtertest.Must(t, f, serverstest.Long()); v.Action != pipeline.Continue {
		t.Errorf("large: %+v", v)
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
