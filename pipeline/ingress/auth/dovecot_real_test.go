package auth

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const dovecotConfig = `base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = %[1]s/log
ssl = no
protocols =
auth_mechanisms = plain login
auth_failure_delay = 0
passdb {
  driver = passwd-file
  args = username_format=%%u %[1]s/users
}
passdb {
  driver = checkpassword
  args = %[1]s/checkpassword
}
userdb {
  driver = static
  args = uid=65534 gid=65534 home=/nonexistent
}
service auth {
  unix_listener %[1]s/auth-client {
    mode = 0600
  }
}
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
service stats {
  unix_listener stats-writer {
    mode = 0600
  }
}
`

// realDovecot runs Debian's Dovecot for itself in a directory.
func realDovecot(t *testing.T, users string) (socket string, restart func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("run the tests as root: they run a dovecot")
	}
	program, err := exec.LookPath("dovecot")
	if err != nil {
		program = "/usr/sbin/dovecot"
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatal("no dovecot: install Debian's dovecot-core (make deps), the real one must be tested")
	}
	dir := t.TempDir()
	for d := dir; strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
		check(t, os.Chmod(d, 0o755))
	}
	save(t, filepath.Join(dir, "users"), users)
	check(t, os.Chmod(filepath.Join(dir, "users"), 0o644)) // its auth process is no root
	// Users that the file does not have are left to a program that fails for one.
	check(t, os.WriteFile(filepath.Join(dir, "checkpassword"), []byte("#!/bin/sh\ncase $(tr '\\0' '|' <&3) in broken*) exit 111 ;; esac\nexit 1\n"), 0o755))
	save(t, filepath.Join(dir, "conf"), fmt.Sprintf(dovecotConfig, dir))
	socket = filepath.Join(dir, "auth-client")
	var cmd *exec.Cmd
	var out bytes.Buffer
	start := func() {
		cmd = exec.Command(program, "-F", "-c", filepath.Join(dir, "conf"))
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		check(t, cmd.Start())
		for range 1000 {
			if c, err := net.Dial("unix", socket); err == nil {
				c.Close()
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		t.Fatalf("dovecot does not start\n%s\n%s", out.Bytes(), log)
	}
	stop := func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) //nolint:errcheck // it may have ended
		cmd.Wait()                                      //nolint:errcheck // likewise
	}
	start()
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("dovecot's log:\n%s", log)
		}
	})
	return socket, func() {
		stop()
		check(t, os.Remove(socket))
		start()
	}
}

// TestDovecotReal logs in with the server that is meant.
func TestDovecotReal(t *testing.T) {
	hash := hashed(t, "gehe\u00efm ", Cost{Memory: 64, Passes: 3, Lanes: 1})
	socket, restart := realDovecot(t, strings.Join([]string{
		"alice@example.org:{PLAIN}open sesame::::::",
		"bob:{ARGON2ID}" + hash + "::::::",
	}, "\n")+"\n")
	d, _ := dovecot(t, DovecotOptions{Socket: socket})
	in := func(user, password string) (string, error) {
		return d.Authenticate(bg, from("192.0.2.1"), user, password)
	}
	name, err := in("Alice@Example.org", "open sesame")
	if name != "alice@example.org" || err != nil { // its auth_username_format is lower case
		t.Error(name, err)
	}
	_, err = in("alice@example.org", "wrong")
	is535(t, err)
	_, err = in("nobody", "wrong")
	is535(t, err)
	name, err = in("bob", "gehe\u00efm ") // our hash, checked by libsodium
	if name != "bob" || err != nil {
		t.Error(name, err)
	}
	_, err = in("broken", "x")
	is454(t, err, "a temporary failure; its log tells more: dovecot says no, code temp_fail")
	name, err = d.Authenticate(bg, from("2001:db8::1"), "bob", "gehe\u00efm ")
	if name != "bob" || err != nil {
		t.Error(name, err)
	}
	// Another one beside it, as a second table of the configuration has.
	other, _ := dovecot(t, DovecotOptions{Socket: socket, Service: "submission"})
	_, err = other.Authenticate(bg, from("192.0.2.1"), "bob", "gehe\u00efm ")
	check(t, err)
	var all sync.WaitGroup
	for i := range 30 {
		all.Go(func() {
			if i%3 == 0 {
				_, err := in("alice@example.org", "wrong")
				is535(t, err)
			} else if _, err := in("alice@example.org", "open sesame"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	restart()
	if name, err := in("alice@example.org", "open sesame"); name != "alice@example.org" || err != nil {
		t.Error(name, err)
	}
}
