// Package wire is the format that the shims (cmd/qmail-queue, cmd/qmail-remote) and the daemon speak. This page is its
// one specification; the C programs follow it and pass the same tests as the Go ones.
//
// # The socket
//
// A Unix SOCK_SEQPACKET: one packet, one frame, at most MaxPacket bytes. Numbers are little-endian. The first byte is
// the kind. A frame has exactly the length that its fields say: a byte too few or too many makes it malformed. The side
// that gets a malformed frame, one out of its place, one of an unknown kind, descriptors where none belong, or a cut
// packet, ends the conversation: the daemon closes, the shim answers temporarily. An unknown kind that is a lower-case
// letter ('a' to 'z') is ignored: so a later version may say more without being misunderstood. An empty packet is end of
// file.
//
// # From the shim to the daemon
//
//	kind         fields after it                                            descriptors
//	H hello      version u8, program u8 ('q' qmail-queue, 'r' qmail-remote), 'q': fds 0 and 1
//	             flags u8, parent pid u32, argc u16, argsLen u32,           'r': fd 0
//	             envLen u32, chunk (to the end, may be empty)
//	D data       chunk (to the end, 1 to MaxChunk bytes)                    -
//	R result     index u16, exit u8, signal u8, pid u32                     -
//	F fell back  pid u32                                                    -
//
// The chunks of H and of the Ds that follow at once, joined, are argsLen bytes of arguments and then envLen bytes of
// environment, each entry ended by a NUL. Where one chunk ends is the sender's choice. argc counts the arguments,
// argv[0] included. Limits: MaxArgs (MaxRemoteArgs for 'r'), MaxEnv, MaxChunk a chunk. Environment entries that do not fit into MaxEnv are left
// out whole, and the flag says so: a reader must then not take a missing name for an unset one. Arguments are never left
// out: a shim that has too many answers temporarily. Of several entries with one name the first counts.
//
//	flag                bit  meaning
//	FlagEnvironmentCut  0    entries were left out
//	FlagPrivileged      1    the process runs with more rights than its caller (AT_SECURE): the socket's peer uid is not the caller's
//
// The other bits are zero in version 1. Only descriptors 0 and 1 are ever passed. The error descriptors stay with the
// shim, because a caller reads them to end of file before it waits.
//
// R says how a next program ended. Index 0 is the main one, i the i-th copy. A program that a signal ended has the
// signal and exit 81. Exit 71 with pid 0: it was not started (a loop, no such program, no process to be had). F: no
// second process could be had, so the shim became the program itself; what follows is end of file.
//
// # From the daemon to the shim
//
//	kind         fields after it                                            descriptors
//	A accepted   version u8, beat u32 ms, slow u32 ms (neither 0)           -
//	B beat       -                                                          -
//	E envelope   -                                                          -
//	X exit       code u8, dialect u8, textLen u16, text                     -
//	N next       mode u8 (0 exec, 1 wait), count u16, path, NUL             -
//	P pair       index u16                                                  message, envelope
//	T text       chunk (to the end, 1 to MaxChunk bytes)                    -
//
// The order is A, then B and E, then X or else N and its Ps. (T, and what differs for qmail-remote, is below.) X may also come first: a daemon that takes no more says so
// at once. The daemon reads the whole hello before it answers with anything, so that closing the socket loses no answer.
//
// A: silence for longer than beat means that the daemon is gone; each frame from it, B or another, ends the silence.
// Slow is the longest wait for an answer (X, or N) counted from E, which the daemon sends when it has read the envelope
// to its end. Before E the shim waits for as long as the client sends, at
// most TotalWait.
//
// X: code is the plain exit code. A text begins with D or Z, has at most MaxText bytes and goes to the caller in the
// named dialect (see Dialect), if its descriptor is there. The daemon has cleaned it; the shim cleans it again (Clean).
// Code 0 never writes a text.
//
// N: the next program is path, absolute, at most MaxPath bytes with its NUL. count, 1 to MaxPairs, Ps follow, each index
// once, in any order; nothing is started before all are there. Mode exec has exactly one. The message is a descriptor of
// its own at offset 0, the envelope a file or pipe with the fd 1 format. After the last P the daemon sends nothing more
// and waits for R, or for end of file, which in mode exec means that the program runs. (The kernel says "reset" in place
// of end of file to a daemon that has sent a frame which the shim did not read.) Mode wait: the main program runs first; if
// it ends with exit 0 the copies run one after the other, each reported by an R; if not, no copy is started. The shim's
// own exit code is the main program's (81 for a signal). A daemon that goes away after the last P changes nothing: the
// shim has all it needs, and ends the run.
//
// # qmail-remote
//
// The shim sends its arguments and no environment, as nothing in it is used. E says that the daemon has read the message
// to its end, for which it has RemoteWait. What follows is one of:
//
//   - N with mode exec, and one P, which brings the message alone. The shim becomes the program, with the arguments that
//     it has itself, argv[0] included. If it cannot, it sends R with exit 71 and reports Z.
//   - Ts and then X with code 0. The chunks of the Ts, joined, are the whole report, as qmail-remote.c writes it: at most
//     MaxReport bytes, the last one a NUL. The shim writes it to descriptor 1 when X has come, and not before: half a
//     report is a bounce to qmail-rspawn (qmail-rspawn.c:report).
//   - X with any code and a text: the text, a line feed and a NUL are the report.
//
// In every other case the report is a Z of the shim's own. It exits 0 whatever happens.
//
// # When it ends early
//
// For qmail-remote read a Z report and exit 0 where this says an exit code, and RemoteWait for TotalWait.
//
//	what happens                                        the shim
//	daemon missing or refusing                          retries for ConnectWait, then 71
//	no A for ConnectWait after the connection           71
//	silence longer than beat                            71
//	slow over                                           71
//	end of file, reset, malformed frame                 71
//	TotalWait without E                                 52, as qmail-queue does
//	the shim is killed, or its caller kills it          the daemon sees end of file and stores nothing it has not begun to commit
//
// The daemon may know its answer before it has read the message to its end. It gives it only when it has read both
// descriptors to their ends, and throws away what it reads: a caller that writes into a closed pipe may take that for a
// failure of its own and answer "later" where the answer is no, and one that holds the reading ends itself (mailfront
// 2.12) would block for ever.
//
// For the same reason the shim that ends without an answer before E, because the daemon is missing, silent or gone,
// closes the socket first and then reads the caller's pipes to their end, throwing away what it reads. A daemon that is
// silent but alive (stopped, hung) still holds these pipes and may find a hole in the message when it wakes up: it must
// see that the socket has hung up AFTER it has read the envelope and before it commits, and drop the message.
package wire
