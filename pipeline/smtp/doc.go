// Package smtp is SMTP on the wire (RFC 5321), for both ends: lines, replies,
// paths and parameters, the coding of a message as DATA and BDAT carry it, and
// a client for one connection. It decides nothing: who may send where, what is
// tried again and what is refused is for others to say.
//
// It promises that a line is read only as far as its bound, that only CR LF
// ends a line of a client and only CR LF . CR LF its message, that whatever a
// message or an address holds cannot end a message or begin a command on the
// wire, that every read and every write of the Client has a deadline, and that
// a message which was not read to its end is never finished with a dot.
package smtp
