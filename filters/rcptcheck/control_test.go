package rcptcheck

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
)

// An installation of s/qmail: databases and programs by domain.
func TestControl(t *testing.T) {
	home := t.TempDir()
	for _, dir := range []string{"control", "users", "bin"} {
		if err := os.Mkdir(filepath.Join(home, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, home+"/users/a.cdb", cdb(":joe@a.example.org", ":list-@a.example.org"), 0o600)
	write(t, home+"/users/all.cdb", cdb(":root@a.example.org", ":root@b.example.org"), 0o600)
	write(t, home+"/bin/pavm", `#!/bin/sh
[ "$*" = "-x yes" ] && [ -z "$USE_FD4" ] || exit 111
a=$(tr '\000' '!' <&3)
echo "$a" >>`+home+`/asked
case $a in known@*!!!|ext-@*!!!) exit 0;; later@*) exit 111;; esac
exit 1
`, 0o700)
	path := filepath.Join(home, "control", "recipients")
	write(t, path, `# by hand
!open.example.org
@A.example.org:users/a.cdb
p.example.org|bin/pavm -x yes
*:`+home+`/users/all.cdb
`, 0o600)
	r := newRig(t, Options{Checks: []Check{{Recipients: path, Wait: time.Minute}}})
	r.want("known", "anybody@open.example.org", "Joe@a.example.org", "list-x@a.example.org", "root@a.example.org", "root@b.example.org",
		"known@p.example.org", "known@sub.p.example.org", "ext-x@p.example.org")
	r.want("unknown", "sue@a.example.org", "joe@sub.a.example.org", "known@xp.example.org", "no@p.example.org", "root@c.example.org", "x@sub.open.example.org")
	r.want("error: "+path+": "+home+"/bin/pavm: exit 111", "later@p.example.org")
	if b, err := os.ReadFile(home + "/asked"); err != nil || !strings.Contains(string(b), "ext-x@p.example.org!!!\next-@p.example.org!!!\n") {
		t.Errorf("asked %q %v", b, err)
	}

	// It is read again when it changes; what is wrong leaves it as it was.
	write(t, path, "users/a.cdb\nnothing|\n", 0o600)
	r.wait(time.Second)
	r.want("known", "anybody@open.example.org")
	if !strings.Contains(r.log.String(), `recipients:2: \"nothing|\" names no database and no program`) {
		t.Error(r.log)
	}
	write(t, path, "users/a.cdb\n*:users/none.cdb\n", 0o600)
	r.wait(time.Second)
	r.want("known", "joe@a.example.org")
	r.want("error: "+path+": stat "+home+"/users/none.cdb", "anybody@open.example.org")
	write(t, path, "users/a.cdb\n!*\n", 0o600)
	r.wait(time.Second)
	r.want("known", "joe@a.example.org", "anybody@open.example.org", "sue@a.example.org")
	write(t, path, "# nobody\n", 0o600)
	r.wait(time.Second)
	r.want("known", "joe@a.example.org", "sue@a.example.org")
	if !strings.Contains(r.log.String(), "there is nobody in it") {
		t.Error(r.log)
	}
	newRig(t, Options{Checks: []Check{{Recipients: home + "/control/none"}}}).want("error", "joe@a.example.org")
}

func FuzzControl(f *testing.F) {
	for _, s := range []string{"!a.example", "!*", "@a:users/a.cdb", "a|bin/x -y", "*:b", ".a:b", "users/old.cdb", "a|", "|x", ":b", "!", "a:b|c", "a|b:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := parseControlLine(s)
		if err != nil {
			return
		}
		ways := 0
		for _, is := range []bool{l.passes, l.cdb != "", len(l.program) > 0} {
			if is {
				ways++
			}
		}
		if ways != 1 && s != "" || l.scope != everybody && !l.covers(l.domain) || l.domain != lower(l.domain) {
			t.Errorf("%q is %+v", s, l)
		}
		if l.scope == everybody != (l.domain == "") || l.scope == oneDomain && l.covers("x."+l.domain) || l.scope == domainAndBelow && (!l.covers("x."+l.domain) || l.covers("x"+l.domain)) {
			t.Errorf("%q is about the wrong: %+v", s, l)
		}
	})
}

// A filter that cannot be made is none, not one that is nil.
func TestKindOfNothing(t *testing.T) {
	if f, err := Kind().New(pipeline.Env{}, func(any) error { return nil }); f != nil || err == nil {
		t.Errorf("%v %v", f, err)
	}
}
