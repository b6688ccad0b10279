// Package limit says what may be opened and sent now, to whom and from where,
// and moves its limits by what the servers answer.
//
// It promises that no limit is ever exceeded by what it has admitted, however
// many ask at once; that the tightest limit binds and can be named; that a limit
// moves at most once for all the refusals of connections that were opened before
// it moved; and that every site and every address has a limit without anybody
// configuring one. It does no I/O and starts no goroutine; its clock is its
// owner's. It is safe for concurrent use.
//
// # Levels
//
// A connection counts for its site, the site's provider, the groups that the
// administrator made, the address connected to and the source address, each with
// bounds of its own (Bounds). Beside these there is a Control for each pair of
// site and source, which finds out what that site wants of that source.
//
// # How a Control moves
//
// A site begins with a few connections, and may have twice as many whenever all
// of them have worked, up to what is configured. A refusal for their number
// ("too many connections") makes the limit what was working, which is remembered
// as a ceiling. Above a ceiling one connection more is tried, first after ten
// minutes and then at growing intervals; if it works, growth goes on in
// doubling steps, so that a site that has become generous is soon used. A
// connection proves that it works by carrying a message: some servers tell one
// that is too many only at RCPT. Others close it without a word, which is such a
// refusal if one that was there before goes on to carry messages to the same
// address; else the site is down.
//
// Servers count connections by address or by provider, whatever domains they are
// for. A refusal while other sites have connections to the same address is
// therefore taken for one of that address, too, and else for one of the provider, if
// other sites of the provider have connections and this one has none; what was found out so moves in the
// same way and holds for all sites from that source.
//
// A refusal for the rate ("too many messages") halves the rate that was
// measured, which climbs back by steps to just below what was measured, and is
// tried above that at the same growing intervals.
//
// Greylisting, full mailboxes and refused messages move nothing. A site that
// cannot be reached sleeps for growing pauses. Where the answer asks for it, as
// some do after complaints, the site is suspended for this source with the
// answer as its reason.
//
// # Sources
//
// Where there are several addresses of ours, a Balance deals messages out to them by
// weight, and OpenFirst asks for a connection from the first of them that the site
// admits. An answer that blocks one is about all sites of the provider from that
// address, and about no other address. One in Warmup has a budget of messages a day for
// each provider, or site without one, which is never exceeded: Keep sets a message
// aside for whoever has leave, and Message counts it.
package limit
