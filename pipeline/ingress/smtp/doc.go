// Package smtp is the SMTP and LMTP server: the entrance for ports 25, 465 and
// 587 and for the LMTP clients of other mail systems (RFC 5321, RFC 6409, RFC
// 2033).
//
// It promises that 250 is answered to a message only when the sink has taken it;
// that nothing is stored for a client that went away before the commit; that only
// CR LF ends a line and only CR LF . CR LF, or the last byte of the last BDAT,
// ends a message, and that no byte of a message is ever taken for a command,
// whatever went wrong within it; that nothing said before STARTTLS counts after
// it; that every wait has a deadline and every count a limit; that an idle
// session costs a small buffer and one goroutine; that a command which is not
// fully understood, or whose extension was not offered, is refused and never
// carried out in part; and that every session leaves one line in the log and
// every transaction that named a recipient another one.
//
// # Commands and states
//
// The table is commandTable; the states are those of its columns. What a command
// needs beside its state (a login, TLS, an extension) its handler asks.
//
// # Who decides what
//
// The server asks, in this order: Gate (may this address connect), Names (what is
// the client called), Relay.Admit (what is it to us), the chain's connect stage;
// then for each command the Relay first, because what may not pass here need not
// be judged, and the chain after it. Filters see a pipeline.Session that does not
// change once they have it.
//
// A verdict against the connection, the HELO name or the sender is told at once,
// in place of the greeting or as the command's answer. Where a client may yet log
// in it is held back until MAIL, and with Options.Late until RCPT, so that the
// log knows who was refused. A login starts the judging anew: what was held
// against a stranger does not count against a user. So does STARTTLS if the
// Relay, which is asked again then, lets the client relay.
//
// # What becomes of a message
//
// But for what Mend and the filters change, it is stored byte for byte, with LF
// for CR LF, below a Received field. A first line that begins with a blank is
// body, or it would continue that field; then, as before any body that came
// without one, there is a blank line. A line "From " of an mbox stays on top.
//
// # After an error
//
// A message that is refused while it comes (too big, head too big) is read on to
// its end and then answered. A chunk that is refused is passed over, and so is
// one that came where none was expected. A BDAT whose size cannot be read ends
// the connection, because what follows it cannot be told from commands; so does
// a time-out within a message, and a message that goes on for more than maxSkip
// after it was refused.
//
// Bytes that stand behind STARTTLS in the same segment end the connection too
// (CVE-2011-0411): to drop them would hide an attack, and no honest client sends
// them. Commands of other protocols (GET, a TLS hello, SSH-) end it at once, for
// a browser must not be made to send mail.
package smtp
