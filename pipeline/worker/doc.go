// Package worker runs what parses hostile input in processes that may die. A
// Pool keeps copies of the running program, without privileges, network, file
// system or descriptors of the daemon's, with memory and CPU limits, and gives
// each one job at a time.
//
// The program calls Main before anything else and names the jobs that it can
// do; the daemon makes a Pool and calls Do. A job gets a few arguments, the body
// of a message to read at offsets, and bounded temporary space; its answer is a
// few bytes, which the caller must decode as it would decode what a stranger
// sent, because a worker that has parsed hostile input may have been taken over
// by it.
//
// Promises: nothing that a worker does, or fails to do, costs the daemon more
// than that one job: it is answered or fails by its deadline. What a worker
// answers is at most Options.Answer bytes. A message that kills its worker is
// tried on one more and then given up (ErrKilledTwo). No worker outlives its
// pool, or the daemon. A worker that dies is replaced.
//
// Only Linux is supported. Which layers of the sandbox a kernel has differs;
// Stats says which are on.
package worker
