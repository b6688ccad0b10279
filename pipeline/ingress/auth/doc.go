// Package auth says who logs in. It holds the places where users and passwords
// are kept (File, Program, Helper, Dovecot), the order in which they are asked
// (Chain), and the Guard before them all. Each has the one method that an
// entrance asks, Authenticate, and may be called by many sessions at once.
//
// It promises that a peer hears one of two things, whatever was wrong: 535 for
// credentials that no backend knows, the same line for a user that does not
// exist, and 454 for trouble of ours (RFC 4954 §6), and that trouble is never
// taken for a yes; that every wait has an end; that memory is bounded, whatever
// a file, a program or a socket says; and that passwords stand neither in a log
// nor in an error, nor on a command line.
//
// # Names
//
// A user is named as the client names him, 1 to 255 bytes of UTF-8 without
// control characters. File compares the local part byte for byte and the domain
// without regard to case, as SMTP does (RFC 5321 §2.4); what programs and
// Dovecot make of a name is their affair. Passwords are 1 to 1,024 bytes without
// NUL and are compared as they come, without SASLprep.
//
// # Whom to trust
//
// The daemon is unprivileged when it serves. A checkpassword program that needs
// root is therefore run by a Helper, a process that the daemon starts before it
// gives up root. The program, its arguments, its environment and its limits are
// fixed then. Afterwards the daemon chooses nothing but a user, a password and
// the address of a peer, within 512 bytes, which reach the program on descriptor
// 3 and in TCPREMOTEIP and TCPREMOTEPORT, never on a command line. Somebody who
// has taken over the daemon can try passwords, as many at a time as the helper
// allows, and read those of users who log in meanwhile; he cannot run a program
// of his own, and learns of the one that runs only how it ended and the first
// bytes of what it printed. The helper does not run a program that somebody
// other than root could have replaced.
package auth
