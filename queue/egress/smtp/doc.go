// Package smtp delivers messages by SMTP: it finds the hosts of a domain, tries
// their addresses in order, holds the conversation and says for each recipient
// what came of it.
//
// It promises that a recipient is reported delivered only if the server took
// the message after its final dot, and refused for good only if the server said
// so, the DNS said so, or the message cannot be carried by that server at all;
// everything else is a deferral. A connection lost after the final dot is a
// deferral marked Perhaps. Every wait has a deadline.
//
// The order of addresses (RFC 5321 §5.1): by preference; among hosts of the
// same preference at random; IPv6 and IPv4 in turn. What fails before MAIL moves
// on to the next address, and so does a connection lost before the message; from
// MAIL on, an answer is the site's answer. Of five addresses at most, the last
// is kept for the next preference, so that a site whose best hosts are all dead
// is still reached.
// Eight hosts of a preference are looked up, and no more once five preferences had
// hosts that nobody could tell about: then, and where there are more hosts than
// that, none having an address puts mail off instead of ending it. Port 25 of a
// loopback address is this machine's own, unless a route leads there.
//
// An address that did not answer twice, two minutes apart at least, is passed over
// for a quarter of an hour, then for twice as long each time, up to two hours, as
// qmail's tcpto does for one. After the pause one message finds out how it is now.
// Where all addresses of a domain are passed over its mail is put off at once.
//
// TLS (RFC 3207, RFC 8314) is by policy, per domain and host: opportunistic by
// default, which takes any certificate and goes on in clear where the handshake
// fails; or required, verified or by fingerprint, and then mail waits rather than
// go without. REQUIRETLS (RFC 8689) makes it verified. A login (RFC 4954) is never
// sent in clear unless that is allowed, and one that fails is a deferral.
//
// Mail leaves from the Source of its job: from its addresses, by its name in EHLO,
// and over connections that no other source uses. Servers of a family that it lacks
// are not tried. An address that is not this machine's is our fault and no server's:
// the mail is put off with a *SourceError, and the log says so once a minute.
//
// A connection is kept for a moment for the next message that agrees on address,
// port, source, TLS policy and login. If the server has hung up meanwhile, or says
// goodbye before it has answered MAIL, the message goes over a new one and nothing
// is counted against it.
package smtp
