// Package handoff is the entrance for the shims, qmail-queue and qmail-remote:
// the daemon's side of the sockets over which they hand their descriptors,
// arguments and environment to us (package wire is the format).
//
// It promises that exit 0 is answered only for a message that the sink, or the
// site's own qmail-queue, has taken; that nothing is stored for a caller that
// went away before the commit began, and that a caller which goes away later
// changes nothing; that a message or an envelope which ended early is never
// taken for a whole one; that the caller's environment is believed only from
// uids that are trusted; that whatever it was handed is read within bounds and
// closed; and that every message, also one that was given up, leaves one line
// in the log. A qmail-remote hears a permanent no only where a filter, the
// receiving server or the message's own form says so; every failure of ours is
// temporary, and nothing is sent for a shim that has gone away before that
// began.
//
// # Who is calling
//
// The uid is the socket's. A shim that runs with more rights than its caller
// says so, and then the caller is the process's real uid as the kernel tells
// it; where the kernel does not, the message is deferred, because mail from
// the network must not pass for local mail.
//
//	uid       environment                                  chain    standing       Session.UID
//	other     not looked at                                Local    local          the caller's
//	trusted   no TCPREMOTEIP                               Local    local          the caller's
//	trusted   TCPREMOTEIP, SMTPAUTHUSER or AUTHUSER        Inbound  authenticated  -1
//	trusted   TCPREMOTEIP, RELAYCLIENT (be it empty)       Inbound  relayed        -1
//	trusted   TCPREMOTEIP                                  Inbound  stranger       -1
//	trusted   cut (too large to be sent), no TCPREMOTEIP   Inbound  stranger       -1
//
// TCPREMOTEINFO names the user only with RELAYCLIENT and if
// Options.RemoteInfo is set: some AUTH patches put the user there, but
// tcpserver puts there what the client's ident server says, and a client may
// say what it likes. A TCPREMOTEIP that is no address still means the network.
// The host name is TCPREMOTEHOST, HELO is SMTPHELOHOST.
package handoff
