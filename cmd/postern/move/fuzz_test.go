package move

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/postern-mta/postern/rules"
)

// fuzz imports whatever stands in a file of a kind: what comes out passes the
// check, or there is an error that says why nothing does.
func fuzz(f *testing.F, kind, name string, seeds ...string) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	path := filepath.Join(f.TempDir(), name)
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := Import([]Source{{kind, path}}, Options{})
		if err != nil {
			if len(content) < 1000 && kind != "simcontrol" {
				t.Fatalf("a short text is refused: %v", err)
			}
			return
		}
		hygienic(t, r.TOML)
		if _, err := checked(r.TOML); err != nil {
			t.Fatalf("%v\n%s", err, r.TOML)
		}
		again, err := Import([]Source{{kind, path}}, Options{})
		if err != nil || !bytes.Equal(r.TOML, again.TOML) {
			t.Fatalf("%v, and not the same twice:\n%s", err, r.TOML)
		}
	})
}

func FuzzSimcontrol(f *testing.F) {
	fuzz(f, "simcontrol", "simcontrol", ":clam=yes,spam=yes,spam_hits=9.5,attach=.exe:.com\n", "# x\nexample.org:spam=no,regex=a:b\r\njoe-x@example.org:spam_hits=5,attach=x\n#a:clam=no", "a@a:spam=yes\na-b@a:spam=no\na-b-c@a:spam=yes,spam_passthru=yes\n:spamuser=x,trophie=yes")
}

func FuzzSimcontrolDatabase(f *testing.F) {
	var b bytes.Buffer
	if err := rules.WriteCDB(&b, []rules.CDBRecord{{Key: "", Value: "clam=yes,spam=yes"}, {Key: "joe@example.org", Value: "spam=no"}}); err != nil {
		f.Fatal(err)
	}
	fuzz(f, "simcontrol", "simcontrol.cdb", b.String(), b.String()[:2050])
}

func FuzzSsattach(f *testing.F) {
	fuzz(f, "ssattach", "ssattach", ".exe\n.com\n", ".exe:.com:.bat\nexe\n.tar.gz\n#.x\n\t.Y\r\n.z")
}

func FuzzTaps(f *testing.F) {
	fuzz(f, "taps", "taps", "F:.*@example\\.org:a@example.org\n", "T:!^$:b@c\nA:x:y\nz:a@b\n#", "T:[[:alpha:]]:x@y")
}

func FuzzSignatures(f *testing.F) {
	fuzz(f, "signatures", "signatures", "TVqQAAMAA\n", "# zip\nUEsDBBQ*A\n***\nsig:comment", "\x00")
}

func FuzzRcptchecks(f *testing.F) {
	fuzz(f, "rcptchecks", "rcptchecks", "/usr/local/bin/check\n", "export RCPTCHECK=\"/bin/x\"\nbin/y\n/bin/a b\n#", "RCPTCHECK='")
}

func FuzzQfilters(f *testing.F) {
	fuzz(f, "qfilters", "qfilters", "#!/bin/sh\nPATH=/bin\nexec /usr/bin/qmail-qfilter /bin/a -x 'b c' -- \\\n  bin/d \"e\"\n", "example.org:/bin/f:V\n/bin/a -- -- b\n*.example:/bin/g", "a $(b) | c\nd\\")
}

func FuzzSmtpplugins(f *testing.F) {
	fuzz(f, "smtpplugins", "smtpplugins", "[rcpt]\nplugins/a\n/bin/b\n:test x\n[zzz]\nc\n[pass]\n/d", "x\n[\n[c]\n:")
}

// TestHuge refuses what is too long before it is parsed, and takes long lines.
func TestHuge(t *testing.T) {
	dir := t.TempDir()
	for _, f := range formats {
		path := write(t, dir, f.Name, string(bytes.Repeat([]byte("a.example:clam=yes\n"), maxText/19+1)))
		if _, err := Import([]Source{{f.Name, path}}, Options{}); err == nil || !bytes.Contains([]byte(err.Error()), []byte(fmt.Sprintf("more than %d bytes", maxText))) {
			t.Errorf("%s: %v", f.Name, err)
		}
	}
	if _, err := Import([]Source{{"taps", dir}}, Options{}); err == nil || !bytes.Contains([]byte(err.Error()), []byte("no regular file")) {
		t.Errorf("a directory: %v", err)
	}
}
