package schedule

import (
	"math"
	"strings"
	"time"
)

// A site is what a limit counts.
type site struct {
	node       uint32 // the first of its nodes, one for each channel it has mail in
	inflight   uint32 // batches
	limit      uint32 // 0: the default
	pos        uint32 // 1 + its timer's place, or 0
	strikes    uint8  // failures since the last success
	tried      bool
	idle       bool
	unlocated  bool
	suspended  int64 // Unix milliseconds; likewise paced and succeeded
	paced      int64
	succeeded  int64 // 0: never
	idleAt     int64
	prev, next uint32 // among the idle
}

// A node is a site in a channel.
type node struct {
	site       uint32
	sibling    uint32 // the site's next node
	lanes      uint32 // the first
	ring       [2]uint32
	prev, next uint32 // in its line
	channel    uint16
	line       class // none, or the line it stands in
	turn       uint8 // the kind to be served next
	since      int64 // when it came into its line, Unix milliseconds
}

// A class is the line in which an open site waits.
type class uint8

const (
	living class = iota
	newcomer
	waiting
	failing
	classes
	none = classes
)

// A list links nodes in a line, or idle sites.
type list struct{ head, tail uint32 }

type channel struct {
	name   string
	number uint16
	opt    Channel
	lanes  map[string]uint32
	lines  [classes]list
	flying [classes]int // batches, by the class in which they were admitted
	turn   class
	more   int64  // when newcomers may have one slot more than half of theirs, Unix milliseconds
	pos    uint32 // 1 + the place of its timer, which then is at more, or 0
}

const (
	strikes = 3 // failures running that end a site's living
	maxIdle = 1 << 16
	forever = math.MaxInt64
)

// SetChannel declares a channel or changes it. A lower limit takes effect as
// batches end.
func (s *Schedule) SetChannel(o Channel) {
	c := s.channel(o.Name)
	if o.Limit == 0 {
		o.Limit = DefaultChannelLimit
	}
	if o.Reserve == 0 {
		o.Reserve = DefaultReserve
	}
	o.Name = c.name
	o.Reserve = min(max(0, o.Reserve), 1)
	c.opt = o
}

func (s *Schedule) channel(text string) *channel {
	if i, ok := s.chanByKey[text]; ok {
		return s.channels[i]
	}
	text = strings.Clone(text)
	c := &channel{name: text, number: uint16(len(s.channels)), lanes: map[string]uint32{}}
	s.chanByKey[text] = len(s.channels)
	s.channels = append(s.channels, c)
	s.SetChannel(Channel{Name: text})
	return c
}

// shares divides the limit: slots that newcomers may have to themselves, and
// slots that everyone may have. What is missing is for the living alone.
func (c *channel) shares() (ours, all int) {
	unproven := max(1, c.opt.Limit-int(float64(c.opt.Limit)*c.opt.Reserve))
	all = max(1, unproven-int(float64(unproven)*c.opt.Reserve))
	return unproven - all, all
}

// admit tells whether the channel has a slot for a site of class k, and as
// which class it will count: a newcomer counts as waiting when it has to take a
// slot that is everyone's.
func (c *channel) admit(k class, now int64) (class, bool) {
	common := c.flying[waiting] + c.flying[failing]
	if c.flying[living]+c.flying[newcomer]+common >= c.opt.Limit {
		return none, false
	}
	if k == living {
		return living, true
	}
	ours, all := c.shares()
	if n := c.flying[newcomer]; k == newcomer && (n < ours/2 || n < ours && now >= c.more) {
		return newcomer, true
	}
	if k == newcomer {
		k = waiting
	}
	return k, common < all
}

// spend notes that a newcomer has been taken. Half of the newcomers' slots are
// free to use; of the other half each further one is given only a while after
// the one before, so that a horde that comes at once and is dead never has them
// all.
func (s *Schedule) spend(c *channel) {
	ours, _ := c.shares()
	if c.flying[newcomer] < ours/2 {
		return
	}
	c.more = s.now + s.patience/int64(ours-ours/2)
	s.setTimer(uint32(c.number)|channelTimer, c.more)
}

// refund gives a newcomer's slot back at once, because the site works.
func (s *Schedule) refund(c *channel) {
	c.more = 0
	s.stopTimer(uint32(c.number) | channelTimer)
}

// SetSiteLimit changes the default limit, Options.SiteLimit; 0 means
// DefaultSiteLimit.
func (s *Schedule) SetSiteLimit(n int) {
	s.opt.SiteLimit = positive(n, DefaultSiteLimit)
	s.refreshAll()
}

// SetLimit gives a site a limit of its own, in batches in flight, and keeps the
// site in memory for that. 0 takes the limit away again. A lower limit takes
// effect as batches end. To stop a site, suspend it.
func (s *Schedule) SetLimit(where string, n int) {
	i := s.site(where)
	s.sites.at(i).limit = uint32(min(max(0, n), math.MaxInt32))
	s.refresh(i)
	s.rest(i)
}

// Suspend takes nothing from a site until then; a zero time means until it is
// resumed. It replaces an earlier suspension. What is in flight goes on.
func (s *Schedule) Suspend(where string, until time.Time) {
	i := s.site(where)
	at := int64(forever)
	if !until.IsZero() {
		at = milliseconds(until)
	}
	s.sites.at(i).suspended = at
	s.refresh(i)
	s.rest(i)
}

// Pace takes nothing from a site until then, for a rate to be kept (messages a
// second, new connections a minute). It never shortens an earlier pace.
func (s *Schedule) Pace(where string, until time.Time) {
	i := s.site(where)
	st := s.sites.at(i)
	st.paced = max(st.paced, milliseconds(until))
	s.refresh(i)
	s.rest(i)
}

// Unpace ends a site's pace, and leaves a suspension as it is.
func (s *Schedule) Unpace(where string) {
	if i, ok := s.siteByKey[where]; ok {
		s.sites.at(i).paced = 0
		s.refresh(i)
		s.rest(i)
	}
}

// Resume ends a site's suspension and pace.
func (s *Schedule) Resume(where string) {
	i, ok := s.siteByKey[where]
	if !ok {
		return
	}
	st := s.sites.at(i)
	st.suspended, st.paced = 0, 0
	s.refresh(i)
	s.rest(i)
}

// Assign moves a domain to a site, in all channels. What is in flight counts
// for the site it was taken for until it ends; recipients that come back then
// wait for the new site. A domain without recipients is unknown here: Route
// will be asked when it has some.
func (s *Schedule) Assign(domain, where string) {
	for _, c := range s.channels {
		if li, ok := c.lanes[domain]; ok {
			s.relocate(li, where)
		}
	}
}

// Move moves all domains of a site to another, as Assign does, and returns how
// many (a domain counts once for each channel).
func (s *Schedule) Move(from, to string) int {
	fi, ok := s.siteByKey[from]
	if !ok || from == to {
		return 0
	}
	var all []uint32
	for ni := s.sites.at(fi).node; ni != 0; ni = s.nodes.at(ni).sibling {
		for li := s.nodes.at(ni).lanes; li != 0; li = s.lanes.at(li).next {
			all = append(all, li)
		}
	}
	for _, li := range all {
		s.relocate(li, to)
	}
	return len(all)
}

func (s *Schedule) relocate(li uint32, where string) {
	old := s.nodes.at(s.lanes.at(li).node)
	si := s.site(where)
	if old.site == si {
		return
	}
	ni := s.node(si, old.channel)
	was := s.leave(li)
	s.join(li, ni)
	s.dropNode(was)
}

// site finds a site or makes it.
func (s *Schedule) site(text string) uint32 {
	if i, ok := s.siteByKey[text]; ok {
		return i
	}
	i := s.sites.get()
	if li, ok := s.known(text); ok { // most sites are named as their domain: one copy serves
		for int(i) >= len(s.siteNames) {
			s.siteNames = append(s.siteNames, "")
		}
		s.siteNames[i] = s.laneNames[li]
	} else {
		s.siteNames = name(s.siteNames, i, text)
	}
	s.siteByKey[s.siteNames[i]] = i
	s.sites.at(i).unlocated = text != "" && text == s.opt.Unlocated
	s.rest(i)
	return i
}

func (s *Schedule) known(domain string) (uint32, bool) {
	for _, c := range s.channels {
		if li, ok := c.lanes[domain]; ok {
			return li, true
		}
	}
	return 0, false
}

// node finds a site's node in a channel or makes it.
func (s *Schedule) node(si uint32, number uint16) uint32 {
	st := s.sites.at(si)
	for ni := st.node; ni != 0; ni = s.nodes.at(ni).sibling {
		if s.nodes.at(ni).channel == number {
			return ni
		}
	}
	ni := s.nodes.get()
	*s.nodes.at(ni) = node{site: si, sibling: st.node, channel: number, line: none}
	st.node = ni
	s.rest(si)
	return ni
}

// dropNode forgets a node that has no lanes.
func (s *Schedule) dropNode(ni uint32) {
	n := s.nodes.at(ni)
	if n.lanes != 0 {
		return
	}
	s.unline(ni)
	si := n.site
	link := &s.sites.at(si).node
	for *link != ni {
		link = &s.nodes.at(*link).sibling
	}
	*link = n.sibling
	s.nodes.put(ni)
	s.rest(si)
}

// rest puts a site that nothing keeps among the idle, and takes it from there
// when something does.
func (s *Schedule) rest(i uint32) {
	st := s.sites.at(i)
	idle := st.node == 0 && st.inflight == 0 && st.limit == 0 && st.gate() <= s.now
	switch {
	case idle && !st.idle:
		st.idle, st.idleAt = true, s.now
		st.prev, st.next = s.idle.tail, 0
		if s.idle.tail != 0 {
			s.sites.at(s.idle.tail).next = i
		} else {
			s.idle.head = i
		}
		s.idle.tail = i
		s.nidle++
	case !idle && st.idle:
		s.unidle(st)
	}
}

func (s *Schedule) unidle(st *site) {
	if st.prev != 0 {
		s.sites.at(st.prev).next = st.next
	} else {
		s.idle.head = st.next
	}
	if st.next != 0 {
		s.sites.at(st.next).prev = st.prev
	} else {
		s.idle.tail = st.prev
	}
	st.idle, st.prev, st.next = false, 0, 0
	s.nidle--
}

// forget drops an idle site.
func (s *Schedule) forget(i uint32) {
	s.unidle(s.sites.at(i))
	s.stopTimer(i | siteTimer)
	delete(s.siteByKey, s.siteNames[i])
	s.siteNames[i] = ""
	s.sites.put(i)
}
