package spamassassin

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

// real is Debian's spamd with rules of our own, and no network.
type real struct {
	t       testing.TB
	dir     string
	address string
	cmd     *exec.Cmd
}

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

func newReal(t testing.TB) *real {
	t.Helper()
	if _, err := exec.LookPath("spamd"); err != nil {
		t.Fatal("this test needs Debian's spamd: make deps installs it")
	}
	dir, err := os.MkdirTemp("", "spamd") // the test's own is closed to spamd's user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &real{t: t, dir: dir}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.address = "unix:" + filepath.Join(r.dir, "s")
	for name, text := range map[string]string{
		"rules/own.cf": ownRules, "site/site.pre": "loadplugin Mail::SpamAssassin::Plugin::Check\nloadplugin Mail::SpamAssassin::Plugin::BodyEval\n",
		"users/joe@example.org/user_prefs": "required_score 9\nscore OWN_PILLS 8\n", "users/jim@example.org/user_prefs": "",
	} {
		path := filepath.Join(r.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r.start()
	t.Cleanup(r.stop)
	return r
}

// start starts spamd and waits until it answers.
func (r *real) start() {
	r.t.Helper()
	_, path, _ := strings.Cut(r.address, ":")
	os.Remove(path)
	r.cmd = exec.Command("spamd", "--socketpath="+path, "--socketmode=0666", "--configpath="+r.dir+"/rules", "--siteconfigpath="+r.dir+"/site", "--nouser-config", "--virtual-config-dir="+r.dir+"/users/%u",
		"--local", "--max-children=2", "--min-children=2", "--helper-home-dir="+r.dir, "--syslog="+r.dir+"/log", "--pidfile="+r.dir+"/pid")
	if os.Getuid() == 0 {
		r.cmd.Args = append(r.cmd.Args, "--username=nobody") // as root it scores nothing
	}
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
	for range 600 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := ping(ctx, &servers.Server{Network: "unix", Address: path})
		cancel()
		if err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	b, _ := os.ReadFile(out.Name())
	r.t.Fatalf("spamd does not start: %s", b)
}

// stop kills spamd with its children.
func (r *real) stop() {
	if r.cmd != nil {
		syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL) //nolint:errcheck // it may have ended
		r.cmd.Wait()                                      //nolint:errcheck // it was killed
		r.cmd = nil
	}
}

const gtube = "Subject: x\nDate: Thu, 1 Jan 2026 00:00:00 +0000\n\nXJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\n"

// The real spamd finds GTUBE, lets a clean message be, hears of the sender, and
// scores by the preferences of the recipient; killed and started while mail
// comes in, the filter fails and comes back.
func TestSpamd(t *testing.T) {
	r := newReal(t)
	f := newFilter(t, "refuse = 100\nuser = \"recipient\"", r.address)
	if v := must(t, f, gtube); v.Action != pipeline.Reject || v.Symbols[0].Score < 900 || !has(v, "SA_GTUBE") {
		t.Errorf("GTUBE: %+v", v)
	}
	if v := must(t, f, "Subject: hello\n\nhow are you\n"); v.Action != pipeline.Continue || v.Symbols[0].Score > 1 || v.Edits != nil {
		t.Errorf("clean: %+v", v)
	}
	const pills = "Subject: x\n\nbuy cheap pills\n"
	for to, want := range map[string]string{"jim@example.org": "score 6.5, spam from 5: OWN_PILLS", "joe@example.org": "score 8, below 9: OWN_PILLS"} {
		if v := must(t, f, pills, to); v.Reason != want {
			t.Errorf("%s: %s, want %s", to, v.Reason, want)
		}
	}
	if v := must(t, f, large); v.Reason != "score 0, below 5" {
		t.Errorf("large: %s", v.Reason)
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

func has(v pipeline.Verdict, name string) bool {
	for _, s := range v.Symbols {
		if s.Name == name {
			return true
		}
	}
	return false
}
