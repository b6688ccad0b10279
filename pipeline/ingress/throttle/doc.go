// Package throttle is the gate before an entrance: how many connections a
// client may have and open, by its address, by its network and in all, and for
// whom the gate is closed for a while because of what he did.
//
// It promises that its bounds are exact however many sessions ask at once; that
// a connection that was counted in is counted until it is counted out, whatever
// is forgotten meanwhile; and that its memory is bounded, however many
// addresses come. A refusal is temporary, since an honest client may share its
// address with others: 421, and the peer tries again later.
//
// Addresses of IPv4 that come as IPv6 (::ffff:192.0.2.1) are those of IPv4, and
// zones do not count. Of IPv6 a client commonly has a whole /64, whose addresses
// it changes as it likes: there the bounds of the network are the ones that
// hold, and strikes count against the network.
package throttle
