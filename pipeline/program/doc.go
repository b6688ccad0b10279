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
// process group of its own, no terminal, the umask 077, and all signals as they
// are by default.
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
// The bounds are those of the kernel. Memory bounds what is private and writable
// in one process, and neither files in memory nor a program's children together.
//
// Only Linux is supported.
package program
