package queue

import (
	"slices"
	"strings"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
)

// laneMark stands between a name and its lane. No domain and no host has it; a
// name that has it all the same, such as a socket's path, stays apart from them
// because it always gets a mark of its own.
const laneMark = "@"

// place is a domain or a site in a lane. To the schedule, which knows no lanes,
// each is a domain or a site of its own.
type place struct{ name, lane string }

// key is the place's name in the schedule. Different places have different keys,
// and in the ordinary lane a key is the name itself, nearly always.
func (p place) key() string {
	if p.lane == "" && !strings.Contains(p.name, laneMark) {
		return p.name
	}
	return p.name + laneMark + p.lane
}

// placeOf is the inverse of key.
func placeOf(key string) place {
	if i := strings.LastIndex(key, laneMark); i >= 0 {
		return place{key[:i], key[i+len(laneMark):]}
	}
	return place{name: key}
}

// siteOf is where a domain's recipients are in the schedule: the site, and the
// lane, which those have too whose site is not known yet.
func siteOf(domain, site string) place {
	return place{placeOf(site).name, placeOf(domain).lane}
}

// hasLanes reports whether recipients leave a channel by different lanes.
func (c *Channel) hasLanes() bool { return c.Locate != nil || c.Admit != nil }

// laneOf asks by which lane a message's remote recipients leave. The queue is not
// locked.
func (q *Queue) laneOf(m *store.Message) string {
	if q.o.Lane == nil {
		return ""
	}
	lane := q.o.Lane(m.Envelope.Sender, m.Origin)
	if strings.Contains(lane, laneMark) {
		q.o.Log.Error("no such name of a lane: the mail takes the ordinary one; this is a fault in Postern", "id", m.ID.String(), "lane", reply.Clean(lane, 100))
		return ""
	}
	return lane
}

// entry is a recipient of a message for the schedule.
func (q *Queue) entry(id store.ID, address string, n int, lane string) schedule.Entry {
	channel, domain := q.o.Route(address)
	if lane != "" {
		if c := q.channels[channel]; !c.hasLanes() {
			lane = ""
		}
	}
	return schedule.Entry{Channel: channel, Domain: place{domain, lane}.key(), ID: uint64(id), Recipient: uint32(n)}
}

// sawLane notes that there is mail in a lane; the queue is locked.
func (q *Queue) sawLane(lane string) {
	if !slices.Contains(q.lanes, lane) {
		q.lanes = append(q.lanes, strings.Clone(lane))
	}
}
