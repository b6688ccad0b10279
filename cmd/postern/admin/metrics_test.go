package admin

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/state"
	"github.com/postern-mta/postern/plugins/host"
	"github.com/postern-mta/postern/queue"
	"github.com/postern-mta/postern/queue/schedule"
	"github.com/postern-mta/postern/queue/store"
	"github.com/postern-mta/postern/queue/store/pebble"
)

// families reads the metrics as Prometheus does.
func (r *rig) families() map[string]*dto.MetricFamily {
	r.t.Helper()
	text, err := r.client.Metrics(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range problems {
		r.t.Errorf("%s: %s", p.Metric, p.Text)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		r.t.Fatal(err)
	}
	return families
}

// TestMetrics holds the output against the table, and the values against what
// was done.
func TestMetrics(t *testing.T) {
	r := newRig(t, func(d *Daemon) {
		d.Limits = &fakeLimits{}
		d.StateStats = func() []state.Stats {
			return []state.Stats{{Space: "greylist", Entries: 1, Bytes: 2, Expired: 3, Evicted: 4}, {Space: "rate\xfflimit"}}
		}
		d.Plugins = func() []host.Status { // the second has taken the first one's place
			return []host.Status{
				{Name: "tagger", PIDs: []int{7}, Calls: 2, Answered: 30, Restarts: 4, Failures: 5, Old: true},
				{Name: "tagger", PIDs: []int{8, 9}, Calls: 1, Answered: 30, Restarts: 4, Failures: 5},
			}
		}
	})
	r.store.stats = pebble.Stats{
		Messages: 1, LiveBytes: 2, DiskBytes: 3, Bodies: 4, BodyBytes: 5, Syncs: 6, Damaged: 7, Full: true, Ballast: true, Flushes: 8, Compactions: 9, Memory: 10,
	}
	r.meter.Observe("mx", reply.Refused, pipeline.Trace{
		{Filter: "score", Stage: "message", Action: "reject", Took: time.Second},
		{Filter: "tap", Stage: "message", Skipped: "decided"},
		{Filter: "dnsbl", Stage: "connect", Err: "down", Took: time.Second},
		{Filter: "clamav", Stage: "message", Action: "reject", Shadow: true},
	})
	r.meter.Observe("mx", reply.OK, nil)
	r.meter.Observe("mx", reply.Reply{}, nil)
	r.meter.Observe("m\xff", reply.Deferred, nil)
	r.meter.ObserveRemote("remote", "handed_on")
	r.meter.ObserveRemote("remote", "handed_on")
	r.send("a@b.example", "ok@c.example", "later@c.example")
	r.submit(queue.Submission{Envelope: envelope.To("", "held@here.example"), Hold: &store.Hold{Reason: "x"}}, "\n")
	r.queue.Start()
	r.wait("they were tried", func(s queue.Stats) bool { return s.Delivered == 1 && s.Deferred == 1 })

	families := r.families()
	var told, declared []string
	for name := range families {
		if strings.HasPrefix(name, "postern_") {
			told = append(told, name)
		}
	}
	for _, m := range Metrics() {
		declared = append(declared, m.Name)
		f := families[m.Name]
		if f == nil {
			continue
		}
		if f.GetHelp() != m.Help || !strings.EqualFold(f.GetType().String(), m.Type) {
			t.Errorf("%s is told as a %s: %s", m.Name, f.GetType(), f.GetHelp())
		}
		for _, one := range f.GetMetric() {
			var labels []string
			for _, l := range one.GetLabel() {
				labels = append(labels, l.GetName())
			}
			slices.Sort(labels)
			if want := slices.Sorted(slices.Values(m.Labels)); !slices.Equal(labels, want) {
				t.Errorf("%s has labels %v, not %v", m.Name, labels, want)
			}
		}
	}
	slices.Sort(told)
	slices.Sort(declared)
	if !slices.Equal(told, declared) {
		t.Errorf("told: %v\ndeclared: %v", told, declared)
	}
	if families["go_goroutines"] == nil || families["process_open_fds"] == nil {
		t.Error("nothing about the process")
	}
	for want, value := range map[string]float64{
		`postern_plugin_processes{plugin="tagger"}`: 3, `postern_plugin_calls{plugin="tagger"}`: 3, `postern_plugin_answers_total{plugin="tagger"}`: 30,
		`postern_plugin_restarts_total{plugin="tagger"}`: 4, `postern_plugin_start_failures_total{plugin="tagger"}`: 5,
		`postern_site_connections{provider="google"}`: 2, `postern_site_refusals_total{level="provider",what="connections"}`: 7,
		`postern_site_answers_total{class="count"}`: 3, `postern_site_suspended{by="operator"}`: 1,
		`postern_info{version="1.2"}`: 1, `postern_config_generation`: 3, `postern_entrance_sessions{entrance="mx"}`: 4,
		`postern_messages_total{answer="refused",entrance="mx"}`: 1, `postern_messages_total{answer="accepted",entrance="mx"}`: 1,
		`postern_messages_total{answer="none",entrance="mx"}`: 1, `postern_messages_total{answer="deferred",entrance="m?"}`: 1,
		`postern_remote_calls_total{entrance="remote",result="handed_on"}`:                              2,
		`postern_filter_verdicts_total{filter="score",mode="enforce",stage="message",verdict="reject"}`: 1,
		`postern_filter_verdicts_total{filter="clamav",mode="shadow",stage="message",verdict="reject"}`: 1,
		`postern_filter_verdicts_total{filter="dnsbl",mode="enforce",stage="connect",verdict="error"}`:  1,
		`postern_filter_seconds_total{filter="score"}`:                                                  1, `postern_queue_messages`: 2,
		`postern_queue_recipients{channel="remote",state="queued"}`: 1, `postern_queue_recipients{channel="local",state="held"}`: 1,
		`postern_queue_recipients{channel="local",state="in_flight"}`: 0, `postern_queue_in_flight{channel="remote"}`: 0,
		`postern_queue_deliveries_total{channel="remote",status="delivered"}`: 1, `postern_queue_deliveries_total{channel="remote",status="deferred"}`: 1,
		`postern_queue_deliveries_total{channel="remote",status="failed"}`: 0, `postern_queue_deliveries_total{channel="local",status="delivered"}`: 0,
		`postern_queue_submitted_total`: 2, `postern_queue_removed_total`: 0,
		`postern_queue_in_flight_limit{channel="local"}`: schedule.DefaultChannelLimit, `postern_queue_reports_total{kind="delay"}`: 0,
		`postern_state_entries{filter="greylist"}`: 1, `postern_state_bytes{filter="greylist"}`: 2, `postern_state_bytes{filter="rate?limit"}`: 0,
		`postern_state_expired_total{filter="greylist"}`: 3, `postern_state_evicted_total{filter="greylist"}`: 4,
		`postern_store_messages`: 1, `postern_store_live_bytes`: 2, `postern_store_disk_bytes`: 3, `postern_store_bodies`: 4, `postern_store_body_bytes`: 5,
		`postern_store_syncs_total`: 6, `postern_store_damaged_total`: 7, `postern_store_full`: 1, `postern_store_ballast`: 1,
		`postern_store_flushes_total`: 8, `postern_store_compactions_total`: 9, `postern_store_memory_bytes`: 10,
	} {
		if got, ok := valueOf(families, want); !ok || got != value {
			t.Errorf("%s is %v (%v), not %v", want, got, ok, value)
		}
	}
	if age, ok := valueOf(families, "postern_queue_oldest_seconds"); !ok || age < 0 || age > 60 {
		t.Errorf("the oldest is %v s old", age)
	}
}

// valueOf finds a sample by its name and labels as the text format has them.
func valueOf(families map[string]*dto.MetricFamily, sample string) (float64, bool) {
	name, _, _ := strings.Cut(sample, "{")
	for _, m := range families[name].GetMetric() {
		var labels []string
		for _, l := range m.GetLabel() {
			labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
		}
		text := name
		if len(labels) > 0 {
			text += "{" + strings.Join(labels, ",") + "}"
		}
		if text == sample {
			return m.GetGauge().GetValue() + m.GetCounter().GetValue(), true
		}
	}
	return 0, false
}
