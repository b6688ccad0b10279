// Command qmail-remote says that the Postern daemon does not take outgoing mail from qmail-rspawn, in the form that
// qmail-rspawn reads (qmail-rspawn.c: report). It exits 0 whatever happens, as qmail-rspawn makes a bounce of almost
// every other code.
//
// This is the Go twin of c/qmail-remote.c. It passes the same tests and imports only syscall. Under softlimit -m it dies
// with exit 2 before main, and that is a bounce: where qmail-send runs under softlimit, use the C program. Without /proc
// it cannot see its arguments, and answers as if there were enough of them.
package main

import "syscall"

// Each is one message report: a letter, a line, a NUL.
const (
	improper = "DI (qmail-remote) was invoked improperly. (#5.3.5)\n\x00"
	unserved = "Zpostern: no daemon takes outgoing mail from qmail-remote here yet. (#4.3.0)\n\x00"
)

func main() {
	if enoughArguments() {
		report([]byte(unserved))
	} else {
		report([]byte(improper))
	}
	syscall.Exit(0)
}

// report writes all of b to stdout, for as long as somebody reads it.
func report(b []byte) {
	for len(b) > 0 {
		n, err := syscall.Write(1, b)
		switch err {
		case nil:
			b = b[n:]
		case syscall.EAGAIN:
			pause := syscall.NsecToTimespec(10e6)
			_ = syscall.Nanosleep(&pause, nil) // an early end only means an early try
		case syscall.EINTR:
		default:
			return
		}
	}
}

// enoughArguments reports whether there are program, host, sender and recipient. The syscall package does not give the
// arguments; /proc does.
func enoughArguments() bool {
	fd, err := syscall.Open("/proc/self/cmdline", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer syscall.Close(fd)
	b := make([]byte, 4096)
	for argc := 0; ; {
		n, err := syscall.Read(fd, b)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return true
		}
		if n == 0 {
			return false
		}
		for _, c := range b[:n] {
			if c == 0 {
				argc++
			}
		}
		if argc >= 4 {
			return true
		}
	}
}
