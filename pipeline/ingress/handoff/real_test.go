package handoff

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
)

// shims builds those programs that can be built here.
func shims(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	all := map[string]string{"Go": filepath.Join(dir, "go")}
	build := func(name string, args ...string) {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	build("go", "build", "-o", all["Go"], "github.com/postern-mta/postern/cmd/qmail-queue")
	if _, err := exec.LookPath("cc"); err == nil {
		all["C"] = filepath.Join(dir, "c")
		build("cc", "-O1", "-o", all["C"], "../../../cmd/qmail-queue/c/qmail-queue.c")
	}
	return all
}

// run runs a shim as a caller does, with notqmail's error descriptor.
func (d *daemon) run(shim, content, list string) (code int, text string) {
	d.t.Helper()
	r, w, err := os.Pipe()
	check(d.t, err)
	defer r.Close()
	c := exec.Command(shim)
	c.Env = []string{"POSTERN_SOCKET=" + d.path, "PATH=/usr/bin:/bin"}
	c.Stdin, c.Stdout = d.fed(content), d.fed(list)
	c.ExtraFiles = []*os.File{nil, nil, nil, w} // 6
	err = c.Start()
	w.Close()
	check(d.t, err)
	said, _ := io.ReadAll(r)
	err = c.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), string(said)
}

// Both ends as they are installed.
func TestWithTheShims(t *testing.T) {
	refused := reply.Make(550, reply.Enhanced{Subject: 7, Detail: 1}, "no thanks")
	tap := pipeline.Edit{Kind: pipeline.EditCopy, Copy: &pipeline.Copy{Envelope: envelope.To("", "archive@x")}}
	for name, shim := range shims(t) {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t, nil)
			if code, text := d.run(shim, mail, list); code != 0 || text != "" || len(d.sink.all()) != 1 {
				t.Error(code, text)
			}
			d = newDaemon(t, nil, says(pipeline.Verdict{Action: pipeline.Reject, Reply: refused}))
			if code, text := d.run(shim, mail, list); code != 82 || text != "Dno thanks (#5.7.1)" {
				t.Error(code, text)
			}
			if code, _ := d.run(shim, mail, "Fa@b\x00Tc"); code != 82 && code != 54 {
				t.Error(code)
			}
			d, dir := nextDaemon(t, takeAll+"exit 31", nil)
			if code, _ := d.run(shim, large, list); code != 31 || read(t, dir+"/message") != large || read(t, dir+"/envelope") != list {
				t.Error(code)
			}
			if n := next(t, d.log.line(t)); n["exit"] != 31.0 {
				t.Error(n)
			}
			var kept *Kept
			d, dir = nextDaemon(t, "cat >>$D/messages; cat <&1 >>$D/envelopes", func(o *Options) {
				var err error
				kept, err = OpenKept(KeptOptions{Dir: filepath.Dir(o.Next) + "/kept", Next: o.Next, Log: o.Log})
				check(t, err)
				o.Kept = kept
			}, says(pipeline.Verdict{Edits: []pipeline.Edit{tap}}))
			if code, _ := d.run(shim, mail, list); code != 0 || read(t, dir+"/messages") != mail+mail || read(t, dir+"/envelopes") != list+"F\x00Tarchive@x\x00\x00" {
				t.Error(code, read(t, dir+"/envelopes"))
			}
			if n := next(t, d.log.line(t)); n["copies"] != 1.0 || n["kept"] != 0.0 || n["exit"] != 0.0 {
				t.Error(n)
			}
			if n, _ := kept.Len(); n != 0 {
				t.Error(n)
			}
		})
	}
}
