package admin

import (
	"context"
	"encoding/json"
	"net/url"
	"strconv"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
)

// QueueQuery says which messages of the queue are wanted.
type QueueQuery struct {
	// From is the first id; "" is the oldest message.
	From string
	// Match is a rule; "" is every message.
	Match string
	// Max is how many messages at most; 0 means all.
	Max int
	// Recipients is how many recipients of each message; 0 means all.
	Recipients int
}

// QueueRest is what a walk through the queue leaves.
type QueueRest struct {
	// Next is the id to go on from, "" at the queue's end.
	Next string
	// Undecided is for how many messages the rule had no answer, Why the reason
	// for one of them.
	Undecided int
	Why       string
}

// Queue calls f for the messages of the queue that are wanted, by ascending
// ids, each with its recipients, until f fails.
func (c *Client) Queue(ctx context.Context, q QueueQuery, f func(*api.QueueMessage) error) (QueueRest, error) {
	return c.walk(ctx, "/v1/queue?", q, f)
}

// walk asks for page after page.
func (c *Client) walk(ctx context.Context, path string, q QueueQuery, f func(*api.QueueMessage) error) (QueueRest, error) {
	var rest QueueRest
	v := url.Values{"match": {q.Match}, "from": {q.From}}
	if q.Recipients > 0 {
		v.Set("recipients", strconv.Itoa(q.Recipients))
	}
	left := q.Max
	var last *api.QueueMessage // it may go on in the next page
	flush := func() error {
		m := last
		if last = nil; m == nil {
			return nil
		}
		left--
		return f(m)
	}
	for {
		if q.Max > 0 {
			v.Set("max", strconv.Itoa(min(left, api.MaxPage)))
		}
		var page api.QueuePage
		if err := c.call(ctx, "GET", path+v.Encode(), nil, &page); err != nil {
			return rest, err
		}
		for i := range page.Messages {
			m := &page.Messages[i]
			if last != nil && m.ID == last.ID && m.First > 0 {
				last.Recipients = append(last.Recipients, m.Recipients...)
				continue
			}
			if err := flush(); err != nil {
				return rest, err
			}
			last = m
		}
		if page.Skip == 0 {
			if err := flush(); err != nil {
				return rest, err
			}
		}
		rest.Next = page.Next
		if rest.Undecided += page.Undecided; page.Undecided > 0 {
			rest.Why = page.Why
		}
		if page.Next == "" || q.Max > 0 && left <= 0 {
			return rest, nil
		}
		v.Set("from", page.Next)
		v.Set("skip", strconv.Itoa(page.Skip))
	}
}

// QueueShow asks for one message with all that is known of it.
func (c *Client) QueueShow(ctx context.Context, id string) (m api.QueueMessage, err error) {
	return c.showMessage(ctx, "/v1/queue/"+url.PathEscape(id))
}

// showMessage asks for one message with all its recipients.
func (c *Client) showMessage(ctx context.Context, path string) (m api.QueueMessage, err error) {
	if err := c.call(ctx, "GET", path, nil, &m); err != nil {
		return m, err
	}
	for len(m.Recipients) < m.Total {
		var more api.QueueMessage
		if err := c.call(ctx, "GET", path+"?skip="+strconv.Itoa(len(m.Recipients)), nil, &more); err != nil {
			return m, err
		}
		if len(more.Recipients) == 0 {
			break
		}
		m.Recipients = append(m.Recipients, more.Recipients...)
	}
	return m, nil
}

// QueueStats asks for the queue at a glance.
func (c *Client) QueueStats(ctx context.Context) (s api.QueueStats, err error) {
	err = c.call(ctx, "GET", "/v1/queue/stats", nil, &s)
	return s, err
}

// QueueCount counts the queue by one of CountBy; most bounds the names, 0 means
// as many as there may be.
func (c *Client) QueueCount(ctx context.Context, by, match string, most int) (n api.QueueCounts, err error) {
	v := url.Values{"by": {by}, "match": {match}, "max": {strconv.Itoa(most)}}
	err = c.call(ctx, "GET", "/v1/queue/count?"+v.Encode(), nil, &n)
	return n, err
}

// QueueChange changes messages: hold, release, retry or delete.
func (c *Client) QueueChange(ctx context.Context, operation string, s api.QueueSelect) (n api.QueueChanged, err error) {
	content, err := c.fetch(ctx, longWork, "POST", "/v1/queue/"+url.PathEscape(operation), s)
	if err != nil {
		return n, err
	}
	return n, json.Unmarshal(content, &n)
}

// QueueVerify has the daemon check its queue, on disk and in memory.
func (c *Client) QueueVerify(ctx context.Context) (v api.Verify, err error) {
	content, err := c.fetch(ctx, longWork, "POST", "/v1/queue/verify", nil)
	if err != nil {
		return v, err
	}
	return v, json.Unmarshal(content, &v)
}

// Sites asks for all sites.
func (c *Client) Sites(ctx context.Context) ([]api.Site, error) {
	var all []api.Site
	for v := (url.Values{}); ; {
		var page []api.Site
		if err := c.call(ctx, "GET", "/v1/sites?"+v.Encode(), nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page...)
		if len(page) < api.MaxSites {
			return all, nil
		}
		v.Set("from", page[len(page)-1].Name+"\x00")
	}
}

// Metrics asks for the metrics in Prometheus' text format.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) {
	return c.fetch(ctx, requestTime, "GET", "/metrics", nil)
}
