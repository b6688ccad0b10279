// Package schedule decides who is next: which recipients of which message are
// handed to a delivery now, and when somebody has to look again.
//
// It does no I/O, starts no goroutine and reads no clock; time comes in as an
// argument. A time less than a minute before the latest one counts as that; a
// clock that is set back further makes mail wait. A Schedule has no lock: its
// owner serialises the calls. It keeps no message text, only numbers and the
// names of domains and sites. Recipients are 36 bytes in large chunks without
// pointers, and four in an index by message, so that a million of them over a
// hundred thousand sites cost about eighty bytes each, all included, and little
// in a garbage collection.
//
// # Terms
//
// A recipient is named by the message's id and its number in the envelope. It
// is queued (waiting for its due time), in flight (in a Batch), or held (kept
// by the operator; counted, never due).
//
// A domain is a recipient domain; it belongs to exactly one site in each
// channel, and Options.Route says to which when the domain is first seen.
// Assign moves it. A Batch carries recipients of one message in one domain,
// because that is what one SMTP transaction may carry, and occupies one slot
// of its site and one of its channel until Done or Return.
//
// A site is what a limit counts: the far end of connections. Its limit holds
// over all channels. A channel is a set of mail with a concurrency of its own,
// as in qmail (local, remote, and the named ones of the channels patch).
// Domains whose site is not known yet share the site Options.Unlocated, with a
// concurrency of its own: a batch taken there is looked up, the domain assigned,
// and the batch returned.
//
// # Who is next
//
// A recipient that is due makes its domain ready, and that its site. A site is
// open when it has fewer batches in flight than its limit and is neither
// suspended nor paced. Only open sites with due mail are looked at by Take, so
// a site at its limit costs the others nothing however much waits for it.
//
// Between channels, Take goes round. In a channel, open sites stand in four
// lines, and Take goes round these too:
//
//   - living: succeeded within Options.Window and has not failed three times
//     running since. Served in turn.
//   - newcomer: nothing was tried yet (or what was tried last succeeded, longer
//     ago), and it has waited for less than Options.Patience. Served newest
//     first: when more arrive than can be tried, those that come now still get
//     a chance, and the others leave the line for the next one.
//   - waiting: neither living nor failing nor a newcomer. Served in turn.
//   - failing: its last attempts failed, and it is not living. Served in turn.
//
// What keeps the dead from starving the living is not the order but the slots:
// a dead site holds a slot for a minute of connect timeout where a living one
// needs it for a fraction of a second. So of a channel's Limit the share
// Channel.Reserve may be used by living sites alone; of what is left, the same
// share by living sites and newcomers alone; waiting and failing sites have
// the rest. With the default of one half and a limit of 100: fifty for the
// living alone, twenty-five more for newcomers, twenty-five for everyone. One
// half, because then a queue full of dead domains leaves the living at least
// half of the rate of an empty queue even when slots are what limits it. A
// reserve that gives way would not help: a slot lent to a black hole does not
// come back in time. Going round the lines keeps, the other way, a flood of
// living mail from starving the untried.
//
// Newcomers may use half of their own slots as they like, and of the other half
// one more at a time, at intervals of a part of Options.Patience, or at once
// when a newcomer has succeeded. So when thousands of dead domains come
// together, a new one that works and comes later is tried within seconds, not
// after their timeouts; from then on it is living. No order can do more: among
// sites of which nothing is known, the share that is tried soon is the share
// that there are slots for.
//
// A site that is not living has at most Options.Probe batches in flight, so
// that one dead site never holds more than that.
//
// Within a site domains take turns, and within a site what was never tried and
// what was deferred take turns, so that neither one domain nor a deep backlog of
// retries delays fresh mail of the others by more than a factor of two. Within
// a domain the oldest due time comes first, then the smallest message id.
// Sites take turns by transaction, not by backlog.
//
// # Memory of sites
//
// A site is forgotten when it has had no mail for Options.Window, unless its
// limit is overridden or it is suspended; a domain as soon as it has no
// recipients. Names are the handles, so nothing dangles.
package schedule
