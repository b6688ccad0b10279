package schedule

import (
	"iter"
	"time"
)

// A State is what a recipient is doing.
type State uint8

// The states. A recipient that is removed in flight is not listed any more.
const (
	Queued State = iota
	InFlight
	Held
)

// String is the state in one word.
func (st State) String() string { return [...]string{"queued", "in flight", "held"}[st] }

// An Item is a recipient as it stands.
type Item struct {
	Channel   string
	Site      string
	Domain    string
	ID        uint64
	Recipient uint32
	Due       time.Time // of a recipient in flight: when it was due
	Attempts  int       // ended so far
	State     State
}

// Counts are numbers of recipients.
type Counts struct{ Queued, InFlight, Held int }

// SiteInfo is what there is to say about a site, over all channels.
type SiteInfo struct {
	Name      string
	Domains   int       // a domain counts once for each channel
	Counts              // recipients of the domains that belong to it now
	Due       int       // of the queued, those that are due
	NextDue   time.Time // the earliest due time of the queued; zero without any
	Batches   int       // in flight
	Limit     int       // of batches
	Own       bool      // the limit is its own, not the default
	Allowed   int       // of batches now: less than Limit while it is not living
	Living    bool
	Failures  int       // since the last success, at most three
	Succeeded time.Time // last, as far as remembered
	Suspended time.Time // until then; zero: it is not
	Forever   bool      // suspended until it is resumed
	Paced     time.Time // until then; zero: it is not
}

// ChannelInfo is what there is to say about a channel.
type ChannelInfo struct {
	Channel
	Counts
	Batches  int // in flight
	Unproven int // of these, for sites that were not living
}

// Items lists what sel chooses, in no particular order. The schedule must not
// be changed before the iteration ends. Where messages are named nothing else is
// looked at.
func (s *Schedule) Items(sel Select) iter.Seq[Item] {
	return func(yield func(Item) bool) {
		match := s.matcher(sel)
		s.eachIn(sel, func(_ uint32, sl *slot) bool {
			return sl.flags&slotGone != 0 || !match(sl) || yield(s.item(sl))
		})
	}
}

func (s *Schedule) item(sl *slot) Item {
	it := Item{
		Channel: s.channelOf(sl.lane).name, Site: s.siteOf(sl.lane), Domain: s.laneNames[sl.lane],
		ID: sl.id(), Recipient: sl.rcpt, Due: fromSeconds(sl.due), Attempts: int(sl.attempts),
	}
	switch {
	case sl.flags&slotFlying != 0:
		it.State = InFlight
	case sl.flags&slotHeld != 0:
		it.State = Held
	}
	return it
}

// Sites lists the sites that are remembered, in no particular order. The
// schedule must not be changed before the iteration ends.
func (s *Schedule) Sites(now time.Time) iter.Seq[SiteInfo] {
	return func(yield func(SiteInfo) bool) {
		s.sites.each(func(i uint32, _ *site) bool { return yield(s.info(milliseconds(now), i)) })
	}
}

// SitesAfter lists up to most sites from a place on, 0 for the beginning, and
// tells the place to go on from, 0 at the end. What is changed in between may be
// listed, or not.
func (s *Schedule) SitesAfter(now time.Time, place uint32, most int) (all []SiteInfo, next uint32) {
	for next = s.sites.after(place); next != 0 && len(all) < most; next = s.sites.after(place) {
		all = append(all, s.info(milliseconds(now), next))
		place = next
	}
	if next == 0 {
		return all, 0
	}
	return all, place
}

// MessagesAfter lists the messages of up to most recipients likewise, a message
// as often as it has recipients.
func (s *Schedule) MessagesAfter(place uint32, most int) (ids []uint64, next uint32) {
	for next = s.slots.after(place); next != 0 && len(ids) < most; next = s.slots.after(place) {
		if sl := s.slots.at(next); sl.flags&slotGone == 0 {
			ids = append(ids, sl.id())
		}
		place = next
	}
	if next == 0 {
		return ids, 0
	}
	return ids, place
}

// Site tells about one site; false means that nothing is remembered of it.
func (s *Schedule) Site(now time.Time, where string) (SiteInfo, bool) {
	i, ok := s.siteByKey[where]
	if !ok {
		return SiteInfo{}, false
	}
	return s.info(milliseconds(now), i), true
}

// SiteOf is the site that a domain belongs to now. false means that it has no
// recipients in that channel.
func (s *Schedule) SiteOf(channel, domain string) (string, bool) {
	k, ok := s.chanByKey[channel]
	if !ok {
		return "", false
	}
	li, ok := s.channels[k].lanes[domain]
	if !ok {
		return "", false
	}
	return s.siteOf(li), true
}

func (s *Schedule) info(now int64, i uint32) SiteInfo {
	st := s.sites.at(i)
	in := SiteInfo{
		Name: s.siteNames[i], Batches: int(st.inflight), Limit: s.opt.SiteLimit, Own: st.limit > 0,
		Allowed: int(s.most(st, now)), Living: s.living(st, now), Failures: int(st.strikes), Forever: st.suspended == forever,
	}
	if in.Own {
		in.Limit = int(st.limit)
	}
	if st.succeeded > 0 {
		in.Succeeded = time.UnixMilli(st.succeeded).UTC()
	}
	if st.suspended > now && !in.Forever {
		in.Suspended = time.UnixMilli(st.suspended).UTC()
	}
	if st.paced > now {
		in.Paced = time.UnixMilli(st.paced).UTC()
	}
	for ni := st.node; ni != 0; ni = s.nodes.at(ni).sibling {
		for li := s.nodes.at(ni).lanes; li != 0; li = s.lanes.at(li).next {
			in.Domains++
			s.tally(&in, li, uint32(min(now/1000, 1<<32-1)))
		}
	}
	return in
}

// tally adds a lane to what is told about its site.
func (s *Schedule) tally(in *SiteInfo, li, now uint32) {
	l := s.lanes.at(li)
	in.Queued += int(l.queued)
	in.InFlight += int(l.flying)
	in.Held += int(l.held)
	for _, st := range l.strands {
		if len(st.heap) == 0 {
			continue
		}
		if due := fromSeconds(s.slots.at(st.heap[0]).due); in.NextDue.IsZero() || due.Before(in.NextDue) {
			in.NextDue = due
		}
		for _, head := range st.heap {
			if s.slots.at(head).due > now {
				continue
			}
			for k := head; k != 0; k = s.slots.at(k).next {
				in.Due++
			}
		}
	}
}

// Channels lists the channels in the order in which they became known.
func (s *Schedule) Channels() []ChannelInfo {
	all := make([]ChannelInfo, len(s.channels))
	for i, c := range s.channels {
		in := &all[i]
		in.Channel = c.opt
		in.Unproven = c.flying[newcomer] + c.flying[waiting] + c.flying[failing]
		in.Batches = c.flying[living] + in.Unproven
		for _, li := range c.lanes {
			l := s.lanes.at(li)
			in.Queued += int(l.queued)
			in.InFlight += int(l.flying)
			in.Held += int(l.held)
		}
	}
	return all
}

// Counts are those of the whole schedule. Recipients removed in flight count
// until their batch ends.
func (s *Schedule) Counts() Counts {
	var n Counts
	for _, c := range s.Channels() {
		n.Queued += c.Queued
		n.InFlight += c.InFlight
		n.Held += c.Held
	}
	return n
}
