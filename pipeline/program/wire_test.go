package program

import (
	"bytes"
	"reflect"
	"testing"
)

// A request that is understood means the same when it is written again; nothing
// that is sent makes the reader fail otherwise than by an error.
func FuzzRequest(f *testing.F) {
	f.Add((&request{}).append(nil))
	f.Add((&request{
		path: "/bin/true", dir: "/", args: []string{"true", "\xff"}, env: []string{"A=B"}, account: -1,
		limits: Limits{Memory: Unlimited, FileSize: 1, Files: 2, CPU: 3}, files: []byte{0, 1, 250},
	}).append(nil))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err != nil {
			return
		}
		again := r.append(nil)
		if !bytes.Equal(again, b) {
			t.Fatalf("%q, then %q", b, again)
		}
		if r2, err := parseRequest(again); err != nil || !reflect.DeepEqual(r, r2) {
			t.Fatalf("%+v, then %+v: %v", r, r2, err)
		}
	})
}

// A stat that is understood has a number and a parent, whatever the program calls
// itself.
func FuzzStat(f *testing.F) {
	f.Add([]byte("17 (a) b) R 3 4 5 0 -1"))
	f.Add([]byte("17 () S 3 4"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parseStat(b); ok && p.state == 0 {
			t.Fatalf("%q: %+v", b, p)
		}
	})
}

func TestStat(t *testing.T) {
	p, ok := parseStat([]byte("17 (a) Z 1 1 1) b) R 3 4 5 0 -1 4194560\n"))
	if want := (processStat{pid: 17, parent: 3, group: 4, session: 5, state: 'R'}); !ok || p != want {
		t.Errorf("%+v %v", p, ok)
	}
}

func FuzzAccounts(f *testing.F) {
	f.Add("65534:65534:65534,8;8:8:;")
	f.Add("0:0:0;")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseAccounts(text)
		for _, a := range all {
			if err != nil || a.UID == 0 {
				t.Fatalf("%q: %+v %v", text, a, err)
			}
		}
		again, err2 := parseAccounts(accountsText(all))
		if err2 != nil || !reflect.DeepEqual(all, again) {
			t.Fatalf("%q: %+v, then %+v: %v", text, all, again, err2)
		}
	})
}

func TestAnswer(t *testing.T) {
	a := answer{kind: kindEnded, id: 1<<lifeShift | 7, numbers: [4]int64{-1, 2, 1 << 40, 3}}
	if b, ok := parseAnswer(a.encode()); !ok || a != b {
		t.Errorf("%+v %v", b, ok)
	}
	if _, ok := parseAnswer(a.encode()[1:]); ok {
		t.Error("a short answer is taken")
	}
}

// Variables by which somebody else would choose what a program runs.
func TestPassable(t *testing.T) {
	for name, ok := range map[string]bool{
		"TCPREMOTEIP": true, "RELAYCLIENT": true, "TCPLOCALPORT": true, "QMAILSOMETHING": true, "LANG": true, "PATHS": true,
		"PATH": false, "LD_PRELOAD": false, "LD_AUDIT": false, "BASH_ENV": false, "ENV": false, "BASH_FUNC_cat%%": false, "PERL5OPT": false,
		"PYTHONPATH": false, "RUBYOPT": false, "GCONV_PATH": false, "": false, "A=B": false,
	} {
		if Passable(name, "x") != ok {
			t.Errorf("%q: %v", name, !ok)
		}
	}
	if Passable("X", "() { :; }; x") || !Passable("X", "") {
		t.Error("a value decides otherwise")
	}
}
