package schedule

// gate is the time before which nothing is taken from the site.
func (st *site) gate() int64 { return max(st.suspended, st.paced) }

// living tells whether, at now, the site has lately succeeded.
func (s *Schedule) living(st *site, now int64) bool {
	return st.unlocated || st.succeeded > 0 && now-st.succeeded <= s.window && st.strikes < strikes
}

// most is the number of batches that may be in flight at a site at now.
func (s *Schedule) most(st *site, now int64) uint32 {
	limit := uint32(s.opt.SiteLimit)
	if st.unlocated {
		limit = uint32(s.opt.UnlocatedLimit)
	}
	if st.limit > 0 {
		limit = st.limit
	}
	if !s.living(st, now) {
		limit = min(limit, uint32(s.opt.Probe))
	}
	return limit
}

// class is the line in which a node of an open site belongs. One that stands in
// no line yet would come into it now.
func (s *Schedule) class(st *site, n *node) class {
	switch {
	case s.living(st, s.now):
		return living
	case st.strikes > 0:
		return failing
	case st.tried && st.succeeded == 0:
		return waiting
	case n.line == none || n.line == newcomer && n.since+s.patience >= s.now:
		return newcomer
	}
	return waiting
}

// refresh puts the nodes of a site into the lines where they belong, after
// anything has changed that bears on it: rings, limits, gates, health, time.
func (s *Schedule) refresh(si uint32) {
	st := s.sites.at(si)
	gate := st.gate()
	if gate > s.now && gate != forever {
		s.setTimer(si|siteTimer, gate)
	} else {
		s.stopTimer(si | siteTimer)
	}
	open := gate <= s.now && st.inflight < s.most(st, s.now)
	for ni := st.node; ni != 0; {
		n := s.nodes.at(ni)
		want := class(none)
		if open && n.ring != [2]uint32{} {
			want = s.class(st, n)
		}
		if want != n.line {
			s.unline(ni)
			s.line(ni, want)
		}
		ni = n.sibling
	}
}

func (s *Schedule) refreshAll() {
	s.sites.each(func(i uint32, _ *site) bool {
		s.refresh(i)
		s.rest(i)
		return true
	})
}

// line puts a node at the end of a line.
func (s *Schedule) line(ni uint32, k class) {
	if k == none {
		return
	}
	n := s.nodes.at(ni)
	l := &s.channels[n.channel].lines[k]
	n.line, n.since = k, s.now
	n.prev, n.next = l.tail, 0
	if l.tail != 0 {
		s.nodes.at(l.tail).next = ni
	} else {
		l.head = ni
	}
	l.tail = ni
}

// unline takes a node out of its line, if it stands in one.
func (s *Schedule) unline(ni uint32) {
	n := s.nodes.at(ni)
	if n.line == none {
		return
	}
	l := &s.channels[n.channel].lines[n.line]
	if n.prev != 0 {
		s.nodes.at(n.prev).next = n.next
	} else {
		l.head = n.next
	}
	if n.next != 0 {
		s.nodes.at(n.next).prev = n.prev
	} else {
		l.tail = n.prev
	}
	n.line, n.prev, n.next = none, 0, 0
}
