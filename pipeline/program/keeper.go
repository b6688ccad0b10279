package program

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pause is how long a keeper waits before it starts a process again that died
// right after its start.
const pause = time.Second

// keep is the work of a keeper: it starts a starter that runs programs as other
// users, and again if that dies, since the daemon, which is not root any more,
// cannot. It ends when the starter does because the daemon has hung up.
func keep(args []string) error {
	if err := confine(); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	control := os.NewFile(controlFD, "control")
	var list childList
	list.open()
	for life := uint64(0); ; life++ {
		born := time.Now()
		p, err := os.StartProcess("/proc/self/exe", append([]string{starterName, starterMark}, args[0], args[1], strconv.FormatUint(life, 10)), &os.ProcAttr{
			Dir: "/", Env: os.Environ(), Files: []*os.File{null, null, os.Stderr, control},
			Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL},
		})
		if err != nil && life == 0 {
			return err
		}
		if err == nil {
			state, err := p.Wait()
			if err == nil && state.Exited() && (state.ExitCode() == 0 || life == 0 && time.Since(born) < pause) {
				return exitError(state.ExitCode())
			}
		}
		list.bury()
		tell(answer{kind: kindLost, numbers: [4]int64{int64(life + 1)}})
		if time.Since(born) < pause {
			time.Sleep(pause)
		}
	}
}

func exitError(code int) error {
	if code == 0 {
		return nil
	}
	return fmt.Errorf("exit %d", code)
}

// bury kills all children, and what becomes one by that, and waits for them.
func (c *childList) bury() {
	for start := time.Now(); time.Since(start) < endTimeout; {
		for _, pid := range c.read() {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		pid, err := nextEnded(unix.WNOHANG)
		switch {
		case err != nil:
			return // there are none
		case pid == 0:
			time.Sleep(time.Millisecond)
		default:
			_ = wait(pid, nil, nil)
		}
	}
}
