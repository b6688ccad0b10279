package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
)

// shadowLog writes lines as the daemon writes them.
func shadowLog(format string, lines ...[]any) []byte {
	var b bytes.Buffer
	h := slog.Handler(slog.NewTextHandler(&b, nil))
	if format == "json" {
		h = slog.NewJSONHandler(&b, nil)
	}
	for _, line := range lines {
		slog.New(h).Info(line[0].(string), line[1:]...)
	}
	return b.Bytes()
}

func reportOf(t testing.TB, log []byte) shadowReport {
	t.Helper()
	tally := newShadowTally()
	unread, err := readShadowLog(bytes.NewReader(log), tally.line)
	if err != nil {
		t.Fatal(err)
	}
	tally.unread += unread
	return tally.report(10)
}

// TestShadowFacts: what became of a message, and whether the filter would have
// made a difference.
func TestShadowFacts(t *testing.T) {
	say := func(action string) pipeline.LogShadow {
		return pipeline.LogShadow{{Filter: "f", Stage: "message", Action: action, Recipients: 2}}
	}
	for _, c := range []struct {
		name    string
		line    []any
		would   shadowWould
		fact    shadowFact
		differs bool
	}{
		{"accepted", []any{"shadow", say("reject"), "enforced", "continue", "answer", "250 2.0.0 ok"}, wouldRefuse, wasAccepted, true},
		{"refused as well", []any{"shadow", say("reject"), "enforced", "reject", "answer", "554 5.7.1 no"}, wouldRefuse, wasRefused, false},
		{"refused anyway", []any{"shadow", say("defer"), "enforced", "reject", "answer", "554 5.7.1 no"}, wouldDefer, wasRefused, true},
		{"deferred", []any{"shadow", say("defer"), "enforced", "defer", "answer", "451 4.7.1 later"}, wouldDefer, wasDeferred, false},
		{"no opinion", []any{"shadow", say("continue"), "enforced", "reject", "answer", "554 5.7.1 no"}, wouldNothing, wasRefused, false},
		{"let in", []any{"shadow", say("accept"), "enforced", "reject", "answer", "554 5.7.1 no"}, wouldAccept, wasRefused, true},
		{"let in anyway", []any{"shadow", say("accept"), "enforced", "continue", "answer", "250 2.0.0 ok"}, wouldAccept, wasAccepted, false},
		{"held", []any{"shadow", say("quarantine"), "enforced", "quarantine", "answer", "250 2.0.0 ok"}, wouldQuarantine, wasQuarantined, false},
		{"dropped", []any{"shadow", say("quarantine"), "enforced", "discard", "answer", "250 2.0.0 ok"}, wouldQuarantine, wasDiscarded, true},
		{"next program took it", []any{"shadow", say("discard"), "enforced", "continue", slog.Group("next", "mode", "exec", "exit", 0, "answer", "250 2.0.0 ok")}, wouldDiscard, wasAccepted, true},
		{"next program refused it", []any{"shadow", say("reject"), "enforced", "continue", slog.Group("next", "mode", "exec", "exit", 31)}, wouldRefuse, wasRefused, false},
		{"next program said so", []any{"shadow", say("reject"), "enforced", "continue", slog.Group("next", "mode", "exec", "exit", 82, "answer", "in its own words")}, wouldRefuse, wasDeferred, true},
		{"next program died", []any{"shadow", say("defer"), "enforced", "continue", slog.Group("next", "mode", "exec", "signal", 9)}, wouldDefer, wasDeferred, false},
		{"next program is unknown", []any{"shadow", say("defer"), "enforced", "continue", slog.Group("next", "mode", "exec", "exit", "unknown")}, wouldDefer, wasGivenUp, false},
		{"every recipient refused", []any{"recipients", 0, "refused_recipients", 2, "shadow", say("defer"), "enforced", "reject", "given_up", "client"}, wouldDefer, wasRefused, true},
		{"every recipient put off", []any{"recipients", 0, "refused_recipients", 2, "shadow", say("defer"), "enforced", "defer", "given_up", "client"}, wouldDefer, wasDeferred, false},
		{"the client went away", []any{"recipients", 1, "shadow", say("reject"), "enforced", "continue", "given_up", "client"}, wouldRefuse, wasGivenUp, false},
	} {
		for _, format := range []string{"text", "json"} {
			t.Run(c.name+" in "+format, func(t *testing.T) {
				line := append([]any{"message", "id", "1", "message_id", "<a b=\"c\"@d>", "from", "x@Sender.example", "to", "a@b and 3 more"}, c.line...)
				r := reportOf(t, shadowLog(format, line))
				if r.Messages != 1 || r.Judged != 1 || r.Unread != 0 || len(r.Filters) != 1 || len(r.Senders) != 1 {
					t.Fatalf("%+v", r)
				}
				f, s := r.Filters[0], r.Senders[0]
				for where, v := range map[string]shadowVerdicts{"filter": f.Verdicts, "sender": s.Verdicts} {
					if got := v[c.would]; got.Messages != 1 || got.Recipients != 2 || got.InFact[c.fact] != 1 {
						t.Errorf("%s: %+v, want %v and in fact %v", where, v, c.would, c.fact)
					}
				}
				if f.Differs != oneIf(c.differs) || s.Differs != f.Differs || s.Domain != "sender.example" {
					t.Errorf("it differs: %d, %d, %s", f.Differs, s.Differs, s.Domain)
				}
				if c.would == wouldNothing {
					return
				}
				if e := f.Examples[0]; e.MessageID != "<a b=\"c\"@d>" || e.To != "a@b and 3 more" || e.InFact != c.fact.String() || e.Time.IsZero() {
					t.Errorf("%+v", e)
				}
			})
		}
	}
}

// TestShadowCounts: a filter's verdicts on one message are one, changes and
// failures are counted, and what is not in shadow is not told.
func TestShadowCounts(t *testing.T) {
	both := pipeline.LogShadow{
		{Filter: "a", Stage: "recipient", Action: "continue", Recipients: 3},
		{Filter: "a", Stage: "recipient", Action: "defer", Recipients: 1, Reason: "too early"},
		{Filter: "a", Stage: "message", Action: "reject", Recipients: 4, Edits: 1, Reason: "spam"},
		{Filter: "b", Stage: "message", Action: "continue", Recipients: 4, Edits: 2, Reason: "add X: y"},
		{Filter: "c", Stage: "message", Action: "defer", Recipients: 4, Reason: "clamd is down", Failed: true},
	}
	log := shadowLog("text",
		[]any{"serving"},
		[]any{"filter mode set by hand", "filter", "d", "mode", "shadow", "configured", "enforce", "until", "", "by", "joe"},
		[]any{"message", "id", "1", "from", "", "to", "b@c", "answer", "250 2.0.0 ok", "shadow", both, "enforced", "continue"},
		[]any{"message", "id", "2", "from", "local", "to", "b@c", "answer", "250 2.0.0 ok"},
		[]any{"leaving", "id", "3", "from", "x@y", "action", "continue", "shadow", pipeline.LogShadow{{Filter: "e", Stage: "delivery", Action: "quarantine", Recipients: 1}}, "enforced", "continue"},
	)
	r := reportOf(t, log)
	if r.Messages != 2 || r.Judged != 2 || len(r.Filters) != 5 || len(r.Senders) != 2 {
		t.Fatalf("%+v", r)
	}
	a, b, c, d, e := r.Filters[0], r.Filters[1], r.Filters[2], r.Filters[3], r.Filters[4]
	if a.Messages != 1 || a.Edits != 0 || a.Verdicts[wouldRefuse].Recipients != 4 || a.Examples[0].Reason != "spam" {
		t.Errorf("%+v", a)
	}
	if b.Edits != 1 || b.Verdicts[wouldEdit].Messages != 1 || b.Differs != 0 {
		t.Errorf("%+v", b)
	}
	if c.Failed != 1 || c.Verdicts[wouldNothing].Messages != 1 || c.Examples[0].Would != "fail" || c.Examples[0].Reason != "clamd is down" {
		t.Errorf("%+v", c)
	}
	if d.Messages != 0 || len(d.Switched) != 1 || d.Switched[0].Mode != "shadow" || d.Switched[0].By != "joe" {
		t.Errorf("%+v", d)
	}
	if e.Verdicts[wouldQuarantine].Messages != 1 || e.Differs != 1 {
		t.Errorf("%+v", e)
	}
	if s := r.Senders[0]; s.Domain != "<>" || s.Edits != 1 || s.Verdicts[wouldRefuse].Messages != 1 {
		t.Errorf("%+v", s)
	}
}

// TestShadowHostile: what a message's sender chose is in its place and on one
// line, and a line that was changed counts for nothing.
func TestShadowHostile(t *testing.T) {
	evil := "\x1b[2J\u202e\u0085\r\nmsg=message shadow=\"[]\" \"] x=\\\" enforced=reject"
	shadow := pipeline.LogShadow{{Filter: evil, Stage: evil, Action: "reject", Reason: evil}}
	for _, format := range []string{"text", "json"} {
		line := []any{"message", "id", evil, "message_id", evil, "from", evil + "@" + evil, "to", evil, "helo", evil, "answer", "250 2.0.0 ok", "shadow", shadow, "enforced", "continue"}
		log := shadowLog(format, line)
		log = append([]byte("Nov 22 05:00:00 mx postern[7]: "), log...)
		log = append(log, "time=now msg=message shadow=[{] \n{\"time\":\"x\",\"msg\":\"message\",\"shadow\":7}\ntime=2026-11-22T05:00:00Z msg=message shadow=\"[\n\x1b]0;x\x07\n"...)
		log = append(log, bytes.Repeat([]byte("x"), maxShadowLine+1)...)
		r := reportOf(t, log)
		if r.Messages != 1 || r.Judged != 1 || len(r.Filters) != 1 || r.Filters[0].Differs != 1 || r.Unread < 3 {
			t.Fatalf("%s: %+v", format, r)
		}
		var people, programs bytes.Buffer
		if err := r.print(&people); err != nil {
			t.Fatal(err)
		}
		e := json.NewEncoder(&programs)
		if err := e.Encode(r); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{people.String(), programs.String()} {
			if strings.ContainsAny(text, "\x1b\u202e\u0085\r\x07") || strings.Contains(text, "\nmsg=") {
				t.Errorf("%s: %q", format, text)
			}
		}
	}
}

// TestShadowBounds: very many filters, senders and verdicts are counted in
// bounded memory, and the heavy senders are found among them.
func TestShadowBounds(t *testing.T) {
	tally := newShadowTally()
	line := func(filter, from, action string) {
		t.Helper()
		tally.line(fmt.Appendf(nil, `{"time":"2026-11-22T05:00:00Z","msg":"message","id":"1","from":%q,"to":"x","answer":"250 2.0.0 ok","enforced":"continue","shadow":[{"filter":%q,"stage":"message","action":%q,"recipients":1}]}`+"\n", from, filter, action))
	}
	const messages = 3 * maxShadowSenders
	for i := range messages {
		line("f", fmt.Sprintf("a@host%d.example", i), "reject")
		if i%10 == 0 {
			line("f", "a@heavy.example", "reject")
			line("f", fmt.Sprintf("a@friend%d.example", i), "continue")
		}
	}
	for i := range 3 * maxShadowFilters {
		line(fmt.Sprintf("filter%d", i), "a@heavy.example", "defer")
	}
	if n := len(tally.senders.rows); n > 2*maxShadowSenders {
		t.Errorf("%d senders", n)
	}
	if n := len(tally.filters["f"].senders.rows); n > 2*maxFilterSenders {
		t.Errorf("%d senders of a filter", n)
	}
	r := tally.report(10)
	if len(r.Filters) != maxShadowFilters || r.More != 2*maxShadowFilters+1 {
		t.Errorf("%d filters, %d more", len(r.Filters), r.More)
	}
	f := tally.filters["f"]
	if f.Messages != messages+messages/5 || f.Verdicts[wouldRefuse].Messages != messages+messages/10 || len(f.Examples) != maxShadowExamples {
		t.Errorf("%d messages, %+v, %d examples", f.Messages, f.Verdicts[wouldRefuse], len(f.Examples))
	}
	s := r.Senders[0]
	if want := messages/10 + 3*maxShadowFilters; s.Domain != "heavy.example" || s.weight() > want || s.weight()+r.Lost < want {
		t.Errorf("%s has %d of %d, and may lack %d", s.Domain, s.weight(), want, r.Lost)
	}
}

// TestShadowLogs: several logs, compressed ones among them, one of which is cut
// off.
func TestShadowLogs(t *testing.T) {
	dir := t.TempDir()
	line := shadowLog("json", []any{"message", "id", "1", "from", "a@b", "to", "c", "answer", "250 2.0.0 ok", "shadow", pipeline.LogShadow{{Filter: "f", Stage: "message", Action: "reject"}}, "enforced", "continue"})
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	for range 1000 {
		z.Write(line) //nolint:errcheck // a buffer takes it
	}
	z.Close()
	files := map[string][]byte{"plain": line, "packed.gz": packed.Bytes(), "cut.gz": packed.Bytes()[:packed.Len()/2], "noend": bytes.TrimRight(line, "\n"), "empty": nil}
	names := []string{"-"}
	for name, content := range files {
		names = append(names, filepath.Join(dir, name))
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	err := runShadowReport(names, 10, true, bytes.NewReader(line), &out)
	if err == nil || !strings.Contains(err.Error(), "cut.gz") || strings.Count(err.Error(), "\n") != 0 {
		t.Errorf("%v", err)
	}
	var r struct{ Messages int }
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Messages < 1003 || r.Messages > 2002 {
		t.Errorf("%v %d messages", err, r.Messages)
	}
	out.Reset()
	if err := runShadowReport([]string{filepath.Join(dir, "none")}, 10, false, nil, &out); err == nil || out.Len() != 0 {
		t.Errorf("%v %q", err, out.String())
	}
	if err := runShadowReport([]string{filepath.Join(dir, "empty")}, 10, false, nil, &out); err != nil || !strings.Contains(out.String(), "this is not a log of postern serve") {
		t.Errorf("%v %q", err, out.String())
	}
}

// FuzzShadowLine: any line is read, or left out, and what is read is printable.
func FuzzShadowLine(f *testing.F) {
	for _, format := range []string{"text", "json"} {
		f.Add(bytes.TrimRight(shadowLog(format, []any{
			"message", "id", "1", "message_id", "<a \"b\"=\\>", "from", "a@b", "to", "c", "recipients", 1, "refused_recipients", 2, "shadow",
			pipeline.LogShadow{{Filter: "f", Stage: "message", Action: "reject", Recipients: 1, Edits: 2, Reason: "\x1b\"]"}},
			"enforced", "continue", slog.Group("next", "exit", 0),
		}), "\n"))
	}
	f.Add([]byte(`time=2026-11-22T05:00:00Z "k y"="v" msg="filter mode set by hand" filter=x mode=shadow`))
	f.Add([]byte(`time=x msg=message shadow="`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseShadowLine(b)
		if err != nil {
			return
		}
		for _, s := range []string{l.ID, l.MessageID, l.From, l.To, l.Filter, l.Mode, l.Until, l.By} {
			if s != pipeline.LogText(s, maxShadowText) {
				t.Errorf("%q", s)
			}
		}
		tally := newShadowTally()
		tally.line(b)
		var out bytes.Buffer
		if err := tally.report(5).print(&out); err != nil || strings.ContainsAny(out.String(), "\x1b\r\x07\u0085\u202e") {
			t.Errorf("%v %q", err, out.String())
		}
	})
}

// BenchmarkShadowReport is how fast a log is read, in each format.
func BenchmarkShadowReport(b *testing.B) {
	for _, format := range []string{"text", "json"} {
		b.Run(format, func(b *testing.B) {
			line := shadowLog(format, []any{
				"message", "id", "7f3a", "message_id", "<1@b.example>", "from", "a@b.example", "to", "c@d.example", "recipients", 1, "standing", "external", "peer", "192.0.2.1", "chain", "inbound",
				"size", 4096, "filters",
				pipeline.LogList{"greylist=defer (shadow) (first seen) 0.1ms", "execban=continue 0.2ms", "tap=continue 0.0ms"},
				"shadow",
				pipeline.LogShadow{{Filter: "greylist", Stage: "recipient", Action: "defer", Recipients: 1, Reason: "first seen"}},
				"enforced", "continue", "answer", "250 2.0.0 ok", "took", "2.1ms",
			})
			log := bytes.Repeat(line, 1000)
			b.SetBytes(int64(len(log)))
			for b.Loop() {
				if r := reportOf(b, log); r.Judged != 1000 {
					b.Fatal(r)
				}
			}
			b.ReportMetric(1000*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
		})
	}
}
