package rspamd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/servers"
	"github.com/postern-mta/postern/pipeline/servers/serverstest"
)

// real is Debian's rspamd with a rule of our own, and no network.
type real struct {
	t       testing.TB
	dir     string
	address string
	cmd     *exec.Cmd
}

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

func newReal(t testing.TB) *real {
	t.Helper()
	if _, err := exec.LookPath("rspamd"); err != nil {
		t.Fatal("this test needs Debian's rspamd: make deps installs it")
	}
	dir, err := os.MkdirTemp("", "rspamd") // a short path, for its sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &real{t: t, dir: dir, address: "unix:" + filepath.Join(dir, "s")}
	for name, text := range map[string]string{"rspamd.conf": strings.ReplaceAll(realConfig, "$D", dir), "own.lua": realRule, "tld": "com\nnet\norg\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r.start()
	t.Cleanup(r.stop)
	return r
}

// start starts rspamd and waits until it answers.
func (r *real) start() {
	r.t.Helper()
	path := filepath.Join(r.dir, "s")
	os.Remove(path)
	r.cmd = exec.Command("rspamd", "--no-fork", "--insecure", "--config="+filepath.Join(r.dir, "rspamd.conf"))
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	out, err := os.Create(filepath.Join(r.dir, "out"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer out.Close()
	r.cmd.Stdout, r.cmd.Stderr = out, out
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	for range 1200 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := ping(ctx, &servers.Server{Network: "unix", Address: path})
		cancel()
		if err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	b, _ := os.ReadFile(out.Name())
	r.t.Fatalf("rspamd does not start: %s", b)
}

// stop kills rspamd with its workers.
func (r *real) stop() {
	if r.cmd != nil {
		syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL) //nolint:errcheck // it may have ended
		r.cmd.Wait()                                      //nolint:errcheck // it was killed
		r.cmd = nil
	}
}

const gtube = "Subject: x\nDate: Thu, 1 Jan 2026 00:00:00 +0000\n\nXJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\n"

// The real rspamd finds GTUBE, lets a clean message be, judges by recipient and
// changes the header; killed and started while mail comes in, the filter fails
// and comes back.
func TestRspamd(t *testing.T) {
	r := newReal(t)
	f := newFilter(t, "milter = true\nuser = \"recipient\"", r.address)
	if v := must(t, f, gtube); v.Action != pipeline.Reject || v.Symbols[0].Score < 15 || !strings.Contains(v.Reply.Text, "Gtube pattern") {
		t.Errorf("GTUBE: %+v", v)
	}
	if v := must(t, f, "Subject: hello\n\nhow are you\n"); v.Action != pipeline.Continue || v.Symbols[0].Score > 1 || v.Edits != nil {
		t.Errorf("clean: %+v", v)
	}
	const pills = "Subject: cheap pills\nX-Old: 1\n\nbuy\n"
	v := must(t, f, pills, "jim@example.org")
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
	if v := must(t, f, pills, "joe@example.org"); v.Reason != "no action, score 0.7: OWN_PILLS=0.7" {
		t.Errorf("joe: %s", v.Reason)
	}
	if v := must(t, f, large); v.Action != pipeline.Continue {
		t.Errorf("large: %+v", v)
	}
	serverstest.UnderLoad(t, func() (bool, error) {
		v, err := judge(f, gtube, 5*time.Second)
		switch {
		case err != nil && v.Action == pipeline.Continue && v.Edits == nil:
			return false, nil
		case err == nil && v.Action == pipeline.Reject:
			return true, nil
		}
		return false, fmt.Errorf("%+v, %w", v, err)
	}, r.stop, r.start)
}
