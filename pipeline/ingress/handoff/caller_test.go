package handoff

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

func TestSessionOf(t *testing.T) {
	ip := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	for _, c := range []struct {
		name    string
		o       Options
		c       call
		want    pipeline.Session
		network bool
	}{
		{"not trusted", Options{}, call{uid: 1000, env: []string{"TCPREMOTEIP=192.0.2.1", "RELAYCLIENT=", "SMTPAUTHUSER=root"}}, pipeline.Session{Standing: pipeline.Local, UID: 1000}, false},
		{"local", Options{}, call{uid: 0, trusted: true, env: []string{"USER=root"}}, pipeline.Session{Standing: pipeline.Local, Env: map[string]string{"USER": "root"}}, false},
		{
			"stranger",
			Options{},
			call{trusted: true, env: []string{"TCPREMOTEIP=192.0.2.1", "TCPREMOTEPORT=1234", "TCPREMOTEHOST=c.example", "SMTPHELOHOST=me"}},
			pipeline.Session{UID: -1, Peer: ip("192.0.2.1:1234"), PeerName: "c.example", Helo: "me"},
			true,
		},
		{"v6", Options{}, call{trusted: true, env: []string{"TCPREMOTEIP=2001:db8::1", "TCPREMOTEPORT=25"}}, pipeline.Session{UID: -1, Peer: ip("[2001:db8::1]:25")}, true},
		{"mapped", Options{}, call{trusted: true, env: []string{"TCPREMOTEIP=::ffff:192.0.2.1", "TCPREMOTEPORT=99999"}}, pipeline.Session{UID: -1, Peer: ip("192.0.2.1:0")}, true},
		{"no address", Options{}, call{trusted: true, env: []string{"TCPREMOTEIP=localhost", "TCPREMOTEHOST=unknown"}}, pipeline.Session{UID: -1}, true},
		{"empty address", Options{}, call{trusted: true, env: []string{"TCPREMOTEIP="}}, pipeline.Session{UID: -1}, true},
		{"relay", Options{}, call{trusted: true, env: []string{"TCPREMOTEIP=192.0.2.1", "RELAYCLIENT="}}, pipeline.Session{UID: -1, Standing: pipeline.Relayed, Peer: ip("192.0.2.1:0")}, true},
		{"user", Options{}, call{trusted: true, env: []string{"TCPREMOTEIP=192.0.2.1", "SMTPAUTHUSER=jo@x"}}, pipeline.Session{UID: -1, Standing: pipeline.Authenticated, User: "jo@x", Peer: ip("192.0.2.1:0")}, true},
		{"other user", Options{}, call{trusted: true, env: []string{"TCPREMOTEIP=192.0.2.1", "SMTPAUTHUSER=", "AUTHUSER=jo\n"}}, pipeline.Session{UID: -1, Standing: pipeline.Authenticated, User: "jo?", Peer: ip("192.0.2.1:0")}, true},
		{"ident", Options{}, call{trusted: true, env: []string{"TCPREMOTEIP=192.0.2.1", "TCPREMOTEINFO=root", "RELAYCLIENT="}}, pipeline.Session{UID: -1, Standing: pipeline.Relayed, Peer: ip("192.0.2.1:0")}, true},
		{"info", Options{RemoteInfo: true}, call{trusted: true, env: []string{"TCPREMOTEIP=192.0.2.1", "TCPREMOTEINFO=jo", "RELAYCLIENT="}}, pipeline.Session{UID: -1, Standing: pipeline.Authenticated, User: "jo", Peer: ip("192.0.2.1:0")}, true},
		{"info without relay", Options{RemoteInfo: true}, call{trusted: true, env: []string{"TCPREMOTEIP=192.0.2.1", "TCPREMOTEINFO=jo"}}, pipeline.Session{UID: -1, Peer: ip("192.0.2.1:0")}, true},
		{"first counts", Options{}, call{trusted: true, env: []string{"TCPREMOTEIP=192.0.2.1", "TCPREMOTEIP=127.0.0.1", "=x", "nonsense"}}, pipeline.Session{UID: -1, Peer: ip("192.0.2.1:0")}, true},
		{"cut", Options{}, call{trusted: true, cut: true}, pipeline.Session{UID: -1}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, network := c.o.sessionOf("1", time.Time{}, c.c)
			if network != c.network {
				t.Error(network)
			}
			if (got.Env != nil) != c.c.trusted || c.want.Env != nil && !reflect.DeepEqual(got.Env, c.want.Env) {
				t.Error(got.Env)
			}
			c.want.Env, c.want.ID, c.want.Protocol, got.Env = nil, "1", "qmail-queue", nil
			if !reflect.DeepEqual(*got, c.want) {
				t.Errorf("%+v\nwant %+v", *got, c.want)
			}
		})
	}
}

// process starts the test binary as a shim, as some user.
func (d *daemon) process(uid uint32, env []string, content, list *os.File) *exec.Cmd {
	d.t.Helper()
	// The binary must be where that user can read it.
	self, err := os.Executable()
	check(d.t, err)
	path := d.dir + "/shim"
	if _, err := os.Stat(path); err != nil {
		b, err := os.ReadFile(self)
		check(d.t, err)
		check(d.t, os.WriteFile(path, b, 0o755))
	}
	c := exec.Command(path)
	c.Env = append([]string{shimRole + "=" + d.path, "PATH=/usr/bin:/bin"}, env...)
	c.Stdin, c.Stdout = content, list
	c.Stderr = &bytes.Buffer{}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return c
}

// The kernel says who calls, and only the environment of some is believed.
func TestCallers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("run the tests as root: they make processes of other users")
	}
	d := newDaemon(t, func(o *Options) { o.Trusted, o.Received = []uint32{7790}, true })
	for _, c := range []struct {
		uid             uint32
		standing, chain string
		peer            any
	}{
		{7790, "relay", "inbound", "192.0.2.7"},
		{7791, "local", "local", nil},
		{0, "local", "local", nil},
	} {
		cmd := d.process(c.uid, []string{"TCPREMOTEIP=192.0.2.7", "RELAYCLIENT="}, d.fed(mail), d.fed(list))
		check(t, cmd.Run())
		line := d.log.line(t)
		if line["uid"] != float64(c.uid) || line["standing"] != c.standing || line["chain"] != c.chain || line["peer"] != c.peer || line["qp"] != float64(cmd.Process.Pid) {
			t.Error(line)
		}
		all := d.sink.all()
		last := all[len(all)-1]
		if want := fmt.Sprintf("Received: (qmail %d invoked by uid %d); ", cmd.Process.Pid, c.uid); !strings.HasPrefix(last.text, want) {
			t.Errorf("%.80q", last.text)
		}
		if (last.Origin.UID == -1) != (c.chain == "inbound") {
			t.Error(last.Origin)
		}
	}
}

// A shim that is installed set-uid shows its owner's uid on the socket; the
// caller is the real one.
func TestPrivilegedShim(t *testing.T) {
	d := newDaemon(t, func(o *Options) { o.Trusted = []uint32{7790} })
	cmd := d.process(0, nil, d.fed(mail), d.fed(list))
	check(t, cmd.Run()) // makes the copy
	d.log.line(t)
	path := d.dir + "/shim"
	check(t, os.Chown(path, 7799, 7799))
	check(t, os.Chmod(path, 0o4755))
	for uid, want := range map[uint32]string{7790: "external", 7791: "local"} {
		cmd := d.process(uid, []string{"TCPREMOTEIP=192.0.2.7", privilegedRole + "=1"}, d.fed(mail), d.fed(list))
		check(t, cmd.Run())
		line := d.log.line(t)
		if line["standing"] != want || line["uid"] != float64(uid) {
			t.Error(uid, line)
		}
	}
}

func TestRealUIDByProc(t *testing.T) {
	uid, err := statusUID(os.Getpid())
	if err != nil || uid != os.Getuid() {
		t.Error(uid, err)
	}
	if _, err := statusUID(1 << 30); err == nil {
		t.Error("no error for a process that is not there")
	}
}

func FuzzHello(f *testing.F) {
	f.Add([]byte("qmail-queue\x00"), []byte("TCPREMOTEIP=192.0.2.1\x00TCPREMOTEPORT=25\x00SMTPAUTHUSER=jo\x00"), true, false)
	f.Add([]byte("q\x00-x\x00"), []byte("TCPREMOTEIP=fe80::1%eth0\x00=\x00x\x00"), true, true)
	f.Add([]byte(""), []byte("RELAYCLIENT\x00TCPREMOTEINFO=\xff\x1b[0m\x00"), false, false)
	f.Fuzz(func(t *testing.T, args, env []byte, trusted, cut bool) {
		var l wire.Lists
		h := wire.Hello{Program: wire.ProgramQueue, Argc: uint16(bytes.Count(args, []byte{0})), ArgsLen: uint32(len(args)), EnvLen: uint32(len(env))}
		if len(args) > maxArgs || len(env) > wire.MaxEnv {
			return
		}
		if _, err := l.Start(h); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Add(append(args, env...)); err != nil {
			t.Fatal(err)
		}
		_, list, err := l.Split()
		if err != nil {
			return
		}
		o := Options{RemoteInfo: true}
		s, network := o.sessionOf("1", time.Time{}, call{uid: 5, trusted: trusted, env: list, cut: cut})
		if !trusted && (network || s.Standing != pipeline.Local || s.UID != 5 || s.Env != nil || s.Peer.IsValid() || s.User != "" || s.Helo != "") {
			t.Fatalf("believed: %+v", s)
		}
		if _, told := s.Env["TCPREMOTEIP"]; trusted && (told || cut) != network {
			t.Fatalf("network = %v: %+v", network, s)
		}
		if network && (s.Standing == pipeline.Local || s.UID != -1) {
			t.Fatalf("mail from the network passes for local: %+v", s)
		}
		if s.Standing == pipeline.Authenticated && s.User == "" {
			t.Fatalf("%+v", s)
		}
		for _, text := range []string{s.User, s.Helo, s.PeerName} {
			if len(text) > maxUser || pipeline.LogText(text, maxUser) != text {
				t.Fatalf("%q", text)
			}
		}
		if a := s.Peer.Addr(); a.Zone() != "" || a.Is4In6() {
			t.Fatal(a)
		}
	})
}
