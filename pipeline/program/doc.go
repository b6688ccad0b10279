// Package program starts other people's programs: checkers, filters of other
// mail servers, plugins.
//
// A process can only be given limits before its first instruction by a parent
// that is about to become it, and the daemon must not wait for that, nor hold
// what a program leaves behind. So a Starter runs this program once more, as a
// process that starts programs and does nothing else. The program calls Main
// before anything else; the daemon makes a Starter and calls Start.
//
// A program gets what its Spec names and nothing else: descriptors by number,
// arguments, environment, directory, limits, a user. It has a session and a
// process group of its own, no terminal, the umask 077, all signals as they are by
// default, and no rights that the daemon has without being root (ambient
// capabilities); the kernel does not spare it where it spares the daemon.
//
// Promises: what a Limits bounds is bounded from the first instruction on. When a
// program has ended, or is killed, everything that it has started is killed with
// it, be it in another group or session or without a parent, before Wait returns
// (but see Ending.Left); a process that leaves its parent and every live
// program's group is killed within a second or so while the program runs. When
// the daemon ends, in whatever way, or closes the Starter, all of its programs are
// killed. When the process that starts programs dies, the programs die, and their
// process groups and sessions with them; the next Start runs it again. A program
// costs the daemon no thread and no goroutine, and the starter no thread.
//
// Programs run as the daemon's user, or, by a Starter with Options.Users, as one of
// these and as nobody else. That Starter is made ready while the daemon is root:
// a keeper stays behind, which has the groups of the users as they were then, and
// runs the process that starts programs again if that dies. Both listen on one
// socket that only the daemon has, take no packet that another process has sent,
// and cannot be looked into by those whom they start. A program that runs as the
// daemon's own user can signal the daemon; one that is not trusted with that has a
// user of its own.
//
// The bounds are those of the kernel. Memory bounds what is private and writable
// in one process, and neither files in memory nor a program's children together.
//
// Only Linux is supported.
package program
