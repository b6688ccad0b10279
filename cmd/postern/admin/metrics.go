package admin

import (
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/state"
	"github.com/postern-mta/postern/plugins/host"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/dsn"
	"github.com/postern-mta/postern/queue/store/pebble"
)

// Metric is one family of what is measured. Beside these there are the
// families of the Go runtime and of the process, go_ and process_.
type Metric struct {
	Name   string
	Type   string // gauge or counter
	Labels []string
	Help   string
}

// Metrics lists what GET /metrics tells. Those of a queue are not told by a
// daemon without one.
func Metrics() []Metric {
	all := make([]Metric, len(metrics))
	for i, m := range metrics {
		all[i] = Metric{Name: m.name, Type: "gauge", Labels: strings.Fields(m.labels), Help: m.help}
		if strings.HasSuffix(m.name, "_total") {
			all[i].Type = "counter"
		}
	}
	return all
}

// look is what the metrics are read from, taken once for each request.
type look struct {
	status api.Status
	now    time.Time
	meter  *Meter
	queue  *queue.Stats  // nil: there is none, or it could not be read
	store  *pebble.Stats // likewise
	state  []state.Stats
	limits *LimitStats // nil: there are none
	// plugins are those of the configuration in force, the ones they replaced
	// counted with them.
	plugins []host.Status
}

// say tells a value with its labels.
type say func(value float64, labels ...string)

// metrics is the one table of them: the name tells the type, the labels are
// separated by blanks.
var metrics = [...]struct {
	name, labels, help string
	of                 func(*look, say)
}{
	{"postern_info", "version", "1, with the version of the program", func(l *look, say say) { say(1, l.status.Version) }},
	{"postern_config_generation", "", "how many configurations were put into force", func(l *look, say say) { say(float64(l.status.Generation)) }},
	{"postern_entrance_sessions", "entrance", "sessions that are going on", func(l *look, say say) {
		for _, e := range l.status.Entrances {
			say(float64(e.Sessions), e.Name)
		}
	}},
	{"postern_messages_total", "entrance answer", "messages by their answer: accepted, deferred, refused, or none if the client went away", ofMeter((*Meter).messages)},
	{"postern_remote_calls_total", "entrance result", "calls of qmail-remote by their result: delivered, deferred, failed, handed_on to the next program, or none if the caller went away", ofMeter((*Meter).remotes)},
	{"postern_filter_verdicts_total", "filter stage verdict mode", "verdicts, one a message, stage and kind; error is a filter that failed", ofMeter((*Meter).verdicts)},
	{"postern_filter_seconds_total", "filter", "time that a filter took", ofMeter((*Meter).seconds)},

	{"postern_plugin_processes", "plugin", "processes of a plugin that can be asked", ofPlugins(func(s *host.Status) float64 { return float64(len(s.PIDs)) })},
	{"postern_plugin_calls", "plugin", "calls that a plugin has now", ofPlugins(func(s *host.Status) float64 { return float64(s.Calls) })},
	{"postern_plugin_answers_total", "plugin", "calls that a plugin has answered", ofPlugins(func(s *host.Status) float64 { return float64(s.Answered) })},
	{"postern_plugin_restarts_total", "plugin", "processes of a plugin that ended, or were ended, and in whose place another one came", ofPlugins(func(s *host.Status) float64 { return float64(s.Restarts) })},
	{"postern_plugin_start_failures_total", "plugin", "starts of a plugin that failed", ofPlugins(func(s *host.Status) float64 { return float64(s.Failures) })},

	{"postern_queue_messages", "", "messages in the queue", ofQueue(func(s *queue.Stats, say say) { say(float64(s.Messages)) })},
	{"postern_queue_recipients", "channel state", "recipients that are not done with: queued, in_flight or held", ofQueue(recipientsIn)},
	{"postern_queue_oldest_seconds", "", "age of the oldest message, 0 without any", func(l *look, say say) {
		switch {
		case l.queue == nil:
		case l.queue.Oldest.IsZero():
			say(0)
		default:
			say(l.now.Sub(l.queue.Oldest).Seconds())
		}
	}},
	{"postern_queue_in_flight", "channel", "deliveries that are going on", ofQueue(func(s *queue.Stats, say say) {
		for _, c := range s.Channels {
			say(float64(c.Batches), c.Name)
		}
	})},
	{"postern_queue_in_flight_unproven", "channel", "of these, those to sites that have not answered lately", ofQueue(func(s *queue.Stats, say say) {
		for _, c := range s.Channels {
			say(float64(c.Unproven), c.Name)
		}
	})},
	{"postern_queue_in_flight_limit", "channel", "the most deliveries that may go on", ofQueue(func(s *queue.Stats, say say) {
		for _, c := range s.Channels {
			say(float64(max(c.Limit, 0)), c.Name)
		}
	})},
	{"postern_queue_deliveries_total", "channel status", "attempts at delivery, each for one recipient: delivered, deferred or failed", ofQueue(func(s *queue.Stats, say say) {
		for channel, n := range s.ByChannel {
			say(float64(n.Delivered), channel, "delivered")
			say(float64(n.Deferred), channel, "deferred")
			say(float64(n.Failed), channel, "failed")
		}
	})},
	{"postern_queue_submitted_total", "", "messages taken into the queue", ofQueue(func(s *queue.Stats, say say) { say(float64(s.Submitted)) })},
	{"postern_queue_removed_total", "", "messages that were done with", ofQueue(func(s *queue.Stats, say say) { say(float64(s.Removed)) })},
	{"postern_queue_deleted_total", "", "messages deleted by operators", ofQueue(func(s *queue.Stats, say say) { say(float64(s.Deleted)) })},
	{"postern_queue_quarantined_total", "", "undeliverable messages held because their sender must not be told", ofQueue(func(s *queue.Stats, say say) { say(float64(s.Held)) })},
	{"postern_queue_discarded_total", "", "reports about double bounces that could not be delivered, thrown away", ofQueue(func(s *queue.Stats, say say) { say(float64(s.Discarded)) })},
	{"postern_queue_reports_total", "kind", "reports made: failure, delay, double or held", ofQueue(func(s *queue.Stats, say say) {
		for i, n := range s.Reports {
			say(float64(n), dsn.Kind(i).String())
		}
	})},

	{"postern_site_connections", "provider", "connections to other servers, by known provider, or other", func(l *look, say say) {
		if l.limits != nil {
			for provider, n := range l.limits.Connections {
				say(float64(n), provider)
			}
		}
	}},
	{"postern_site_refusals_total", "level what", "connections and messages that a limit put off, by its level (source, provider, group, site, address, or adapted for what servers answered) and what it limits", func(l *look, say say) {
		if l.limits != nil {
			for of, n := range l.limits.Refused {
				say(float64(n), of[0], of[1])
			}
		}
	}},
	{"postern_site_answers_total", "class", "answers of servers that were no success, by what they say about limits: count, rate, blocked, greylisted, down or nothing", func(l *look, say say) {
		if l.limits != nil {
			for class, n := range l.limits.Answers {
				say(float64(n), class)
			}
		}
	}},
	{"postern_site_suspended", "by", "sites, providers and so on to which nothing is sent, by who said so: operator, or answers", func(l *look, say say) {
		if l.limits != nil {
			for by, n := range l.limits.Suspended {
				say(float64(n), by)
			}
		}
	}},

	{"postern_state_entries", "filter", "what the filters remember, in entries", ofState(func(s *state.Stats) int64 { return s.Entries })},
	{"postern_state_bytes", "filter", "bytes of these entries", ofState(func(s *state.Stats) int64 { return s.Bytes })},
	{"postern_state_expired_total", "filter", "entries that were removed because their time was over", ofState(func(s *state.Stats) int64 { return s.Expired })},
	{"postern_state_evicted_total", "filter", "entries that made room before their time, because the filter's part was full", ofState(func(s *state.Stats) int64 { return s.Evicted })},

	{"postern_store_messages", "", "messages on disk, an estimate", ofStore(func(s *pebble.Stats) int64 { return s.Messages })},
	{"postern_store_live_bytes", "", "bytes of messages in the database", ofStore(func(s *pebble.Stats) int64 { return s.LiveBytes })},
	{"postern_store_disk_bytes", "", "bytes that the database takes on disk", ofStore(func(s *pebble.Stats) int64 { return s.DiskBytes })},
	{"postern_store_bodies", "", "large bodies, in files of their own", ofStore(func(s *pebble.Stats) int64 { return s.Bodies })},
	{"postern_store_body_bytes", "", "bytes of large bodies", ofStore(func(s *pebble.Stats) int64 { return s.BodyBytes })},
	{"postern_store_memory_bytes", "", "memory of the database's tables and caches", ofStore(func(s *pebble.Stats) int64 { return s.Memory })},
	{"postern_store_full", "", "1 while new mail is put off for want of space", ofStore(func(s *pebble.Stats) int64 { return one(s.Full) })},
	{"postern_store_ballast", "", "1 while the file is there that is given up when the disk is full", ofStore(func(s *pebble.Stats) int64 { return one(s.Ballast) })},
	{"postern_store_syncs_total", "", "flushes that waited for the disk", ofStore(func(s *pebble.Stats) int64 { return s.Syncs })},
	{"postern_store_flushes_total", "", "tables written from memory", ofStore(func(s *pebble.Stats) int64 { return s.Flushes })},
	{"postern_store_compactions_total", "", "merges of tables", ofStore(func(s *pebble.Stats) int64 { return s.Compactions })},
	{"postern_store_damaged_total", "", "messages set aside because they cannot be read", ofStore(func(s *pebble.Stats) int64 { return s.Damaged })},
}

func one(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func ofMeter(f func(*Meter, say)) func(*look, say) {
	return func(l *look, say say) {
		if l.meter != nil {
			f(l.meter, say)
		}
	}
}

func ofQueue(f func(*queue.Stats, say)) func(*look, say) {
	return func(l *look, say say) {
		if l.queue != nil {
			f(l.queue, say)
		}
	}
}

func ofStore(f func(*pebble.Stats) int64) func(*look, say) {
	return func(l *look, say say) {
		if l.store != nil {
			say(float64(f(l.store)))
		}
	}
}

func ofPlugins(f func(*host.Status) float64) func(*look, say) {
	return func(l *look, say say) {
		for i := range l.plugins {
			say(f(&l.plugins[i]), l.plugins[i].Name)
		}
	}
}

// byName joins the versions of a plugin that a reload has replaced with the one
// in force. The counts are those of the name anyhow.
func byName(all []host.Status) (joined []host.Status) {
	for _, s := range all {
		if n := len(joined) - 1; n >= 0 && joined[n].Name == s.Name {
			joined[n].PIDs = append(joined[n].PIDs, s.PIDs...)
			joined[n].Calls += s.Calls
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

func ofState(f func(*state.Stats) int64) func(*look, say) {
	return func(l *look, say say) {
		for i := range l.state {
			say(float64(f(&l.state[i])), l.state[i].Space)
		}
	}
}

func recipientsIn(s *queue.Stats, say say) {
	for _, c := range s.Channels {
		say(float64(c.Queued), c.Name, "queued")
		say(float64(c.InFlight), c.Name, "in_flight")
		say(float64(c.Held), c.Name, "held")
	}
}

// collector tells Prometheus what the table says.
type collector struct {
	d     Daemon
	descs []*prometheus.Desc
}

func newCollector(d Daemon) *collector {
	c := &collector{d: d}
	for _, m := range Metrics() {
		c.descs = append(c.descs, prometheus.NewDesc(m.Name, m.Help, m.Labels, nil))
	}
	return c
}

// Describe is prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		to <- d
	}
}

// Collect is prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	l := &look{status: c.d.Status(), now: c.d.now(), meter: c.d.Meter}
	if c.d.Queue != nil {
		if s, err := c.d.Queue.Stats(); err == nil {
			l.queue = &s
		} else {
			to <- prometheus.NewInvalidMetric(c.descs[0], err)
		}
	}
	if c.d.Store != nil {
		s := c.d.Store.Stats()
		l.store = &s
	}
	if c.d.Limits != nil {
		s := c.d.Limits.Stats()
		l.limits = &s
	}
	if c.d.Plugins != nil {
		l.plugins = byName(c.d.Plugins())
	}
	if c.d.StateStats != nil {
		l.state = c.d.StateStats()
	}
	for i, m := range metrics {
		kind := prometheus.GaugeValue
		if strings.HasSuffix(m.name, "_total") {
			kind = prometheus.CounterValue
		}
		m.of(l, func(value float64, labels ...string) {
			for i := range labels {
				labels[i] = strings.ToValidUTF8(labels[i], "?")
			}
			to <- prometheus.MustNewConstMetric(c.descs[i], kind, value, labels...)
		})
	}
}

// metrics answers with all metrics. What cannot be read is left out and logged.
func (d Daemon) metrics() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(newCollector(d), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, ErrorLog: slog.NewLogLogger(d.Log.Handler(), slog.LevelError),
	})
}

// Meter counts what the entrances take and what the filters say. It is safe for
// concurrent use; use NewMeter.
type Meter struct {
	mu     sync.Mutex
	byKind [meterKinds]map[meterKey]float64
}

type meterKey [4]string

const (
	meterMessages = iota
	meterVerdicts
	meterSeconds
	meterRemotes
	meterKinds
)

// NewMeter returns a meter that has counted nothing.
func NewMeter() *Meter {
	m := &Meter{}
	for i := range m.byKind {
		m.byKind[i] = map[meterKey]float64{}
	}
	return m
}

// answers are the classes of an answer in words.
var answers = [...]string{reply.Temporary: "deferred", reply.Success: "accepted", reply.Permanent: "refused"}

// Observe counts one message of an entrance: its answer, the zero Reply if it
// got none, and what the filters did.
func (m *Meter) Observe(entrance string, r reply.Reply, trace pipeline.Trace) {
	said := "none"
	if r != (reply.Reply{}) {
		said = answers[r.Class]
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.byKind[meterMessages][meterKey{entrance, said}]++
	for _, e := range trace {
		if e.Skipped != "" {
			continue
		}
		verdict, mode := e.Action, pipeline.Enforce.String()
		if e.Err != "" {
			verdict = "error"
		}
		if e.Shadow {
			mode = pipeline.Shadow.String()
		}
		m.byKind[meterVerdicts][meterKey{e.Filter, e.Stage, verdict, mode}]++
		m.byKind[meterSeconds][meterKey{e.Filter}] += e.Took.Seconds()
	}
}

// ObserveRemote counts one call of a qmail-remote by its result.
func (m *Meter) ObserveRemote(entrance, result string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.byKind[meterRemotes][meterKey{entrance, result}]++
}

func (m *Meter) remotes(say say)  { m.tell(meterRemotes, 2, say) }
func (m *Meter) messages(say say) { m.tell(meterMessages, 2, say) }
func (m *Meter) verdicts(say say) { m.tell(meterVerdicts, 4, say) }
func (m *Meter) seconds(say say)  { m.tell(meterSeconds, 1, say) }

// tell tells what was counted under so many labels.
func (m *Meter) tell(kind, labels int, say say) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, value := range m.byKind[kind] {
		say(value, slices.Clone(key[:labels])...)
	}
}
