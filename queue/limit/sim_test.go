package limit

import (
	"container/heap"
	"fmt"
	"testing"
	"time"
)

// world is a simulated time with a server that has limits of its own, and a
// sender with endless mail for it.
type world struct {
	t      *testing.T
	now    time.Time
	events events
	serial int

	gate *Gate
	path Path
	// address is where the server is.
	address string
	server  *hidden

	refusals []time.Time // of connections or messages, by the server
	taken    []time.Time
	each     int // messages a connection
	dialling time.Duration
	sending  time.Duration
	parallel int // who want a connection, at most
	opened   int
	blocked  bool      // the gate said no, and will tell when to ask again
	again    time.Time // or it has said so
	swept    time.Time
}

type event struct {
	at     time.Time
	serial int
	do     func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].serial < e[j].serial
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// hidden is a server with a hidden limit of connections, and one of messages in
// a window that begins at every full minute, or a bucket that fills evenly.
type hidden struct {
	connections int
	open        int
	peak        int
	perSecond   float64
	burst       float64
	tokens      float64
	filled      time.Time
	perMinute   int
	// late says at RCPT that there are too many connections, and mute never says it.
	late, mute bool
	// down answers nobody any more.
	down     bool
	minute   time.Time
	inMinute int
}

func (h *hidden) message(now time.Time) bool {
	if h.perMinute > 0 {
		if m := now.Truncate(time.Minute); !m.Equal(h.minute) {
			h.minute, h.inMinute = m, 0
		}
		if h.inMinute >= h.perMinute {
			return false
		}
		h.inMinute++
	}
	if h.perSecond > 0 {
		if h.filled.IsZero() {
			h.tokens = h.burst
		} else {
			h.tokens = min(h.burst, h.tokens+h.perSecond*now.Sub(h.filled).Seconds())
		}
		h.filled = now
		if h.tokens < 1 {
			return false
		}
		h.tokens--
	}
	return true
}

func newWorld(t *testing.T, most int, server *hidden) *world {
	t.Helper()
	classes, err := ShippedClasses()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, now: start, path: Path{Site: "x"}, address: "a", server: server, each: 20, dialling: 150 * time.Millisecond, sending: 250 * time.Millisecond, parallel: 1000}
	w.gate = New(Options{Classes: classes, Wake: func(string) { w.blocked = false }, Bounds: func(k Key) Bounds {
		if k.Level == Site {
			return Bounds{Connections: most, NewConnections: Rate{Count: None}, Messages: Rate{Count: None}, MessagesEach: None, RecipientsEach: None}
		}
		return Bounds{Connections: None}
	}})
	return w
}

func (w *world) after(d time.Duration, do func()) {
	w.serial++
	heap.Push(&w.events, event{w.now.Add(d), w.serial, do})
}

// run lets time pass until then.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	for w.now.Before(end) {
		if w.now.Sub(w.swept) >= 10*time.Second {
			w.swept = w.now
			w.gate.Sweep(w.now)
		}
		for w.opened < w.parallel && !w.blocked && !w.now.Before(w.again) {
			k, no := w.gate.Open(w.now, w.path)
			if no != nil {
				w.blocked, w.again = no.Until.IsZero(), no.Until
				break
			}
			w.dial(k)
		}
		next := w.now.Add(500 * time.Millisecond)
		if len(w.events) > 0 && w.events[0].at.Before(next) {
			e := heap.Pop(&w.events).(event)
			w.now = e.at
			e.do()
			continue
		}
		w.now = next
	}
}

func (w *world) dial(k *Ticket) {
	w.opened++
	end := func() {
		w.opened--
		k.Close(w.now)
	}
	w.after(w.dialling, func() {
		s := w.server
		no := Answer{Code: 421, Enhanced: "4.7.0", Text: "Too many concurrent connections from your address", Early: true}
		over := s.connections > 0 && s.open >= s.connections
		if over {
			w.refusals = append(w.refusals, w.now)
		}
		k.At(w.now, w.address)
		switch {
		case s.down || over && s.mute:
			k.Unreachable(w.now, "connection reset by peer")
			end()
			return
		case over && s.late:
			s.open++
			k.Greeted(w.now)
			w.after(w.sending, func() {
				s.open--
				no.Code, no.Early = 451, false
				k.Said(w.now, no)
				end()
			})
			return
		case over:
			k.Said(w.now, no)
			end()
			return
		}
		w.server.open++
		w.server.peak = max(w.server.peak, w.server.open)
		k.Greeted(w.now)
		w.send(k, w.each, func() {
			w.server.open--
			end()
		})
	})
}

func (w *world) send(k *Ticket, left int, end func()) {
	if left == 0 {
		w.after(0, end)
		return
	}
	if no := k.Message(w.now, 1); no != nil {
		w.after(max(time.Millisecond, no.Until.Sub(w.now)), func() { w.send(k, left, end) })
		return
	}
	w.after(w.sending, func() {
		if w.server.down { // the connection breaks
			w.after(0, end)
			return
		}
		if !w.server.message(w.now) {
			w.refusals = append(w.refusals, w.now)
			k.Said(w.now, Answer{Code: 451, Enhanced: "4.7.1", Text: "Message rate limit exceeded, try later"})
		} else {
			w.taken = append(w.taken, w.now)
			k.Taken(w.now)
		}
		w.send(k, left-1, end)
	})
}

func (w *world) control() ControlState {
	return w.gate.Explain(w.now, w.path).Control
}

// refusedSince counts the server's refusals, and the most probes of any ten
// minutes. Refusals less than a minute after one another are one probe.
func (w *world) refusedSince(from time.Time) (n, probes int) {
	var begun []time.Time
	var last time.Time
	for _, a := range w.refusals {
		if a.Before(from) {
			last = a
			continue
		}
		n++
		if a.Sub(last) >= time.Minute {
			begun = append(begun, a)
		}
		last = a
	}
	for i, a := range begun {
		in := 0
		for _, b := range begun[i:] {
			if b.Sub(a) < 10*time.Minute {
				in++
			}
		}
		probes = max(probes, in)
	}
	return n, probes
}

// rate is what was taken in a second since then.
func (w *world) rate(from time.Time) float64 {
	n := 0
	for _, a := range w.taken {
		if !a.Before(from) {
			n++
		}
	}
	return float64(n) / w.now.Sub(from).Seconds()
}

// few are all cases, or under the race detector the first.
func few[T any](all ...T) []T {
	if raceDetector {
		return all[:1]
	}
	return all
}

func near(got, want int) bool {
	return max(got-want, want-got) <= max(1, want/10)
}

// TestHiddenConnectionLimit finds limits of many sizes, and counts what it costs
// afterwards.
func TestHiddenConnectionLimit(t *testing.T) {
	for _, hiddenLimit := range few(1, 2, 3, 8, 17, 40) {
		t.Run(fmt.Sprint(hiddenLimit), func(t *testing.T) {
			w := newWorld(t, 100, &hidden{connections: hiddenLimit})
			w.run(5 * time.Minute)
			found := w.control()
			if !near(found.Limit, hiddenLimit) {
				t.Fatalf("after five minutes the limit is %d: %+v", found.Limit, found.Moves)
			}
			cost := len(w.refusals)
			from := w.now
			w.run(time.Hour)
			n, most := w.refusedSince(from)
			t.Logf("found %d with %d refusals; %d in the hour afterwards, at most %d in ten minutes", found.Limit, cost, n, most)
			if most > 1 {
				t.Errorf("%d refusals within ten minutes afterwards: %+v", most, w.control().Moves)
			}
			if s := w.control(); !near(s.Limit, hiddenLimit) {
				t.Errorf("in the end the limit is %d: %+v", s.Limit, s.Moves)
			}
		})
	}
}

// TestRecoveryOfConnections doubles the hidden limit: once a probe has found it
// out, five minutes are enough.
func TestRecoveryOfConnections(t *testing.T) {
	for _, hiddenLimit := range few(2, 5, 20) {
		t.Run(fmt.Sprint(hiddenLimit), func(t *testing.T) {
			w := newWorld(t, 100, &hidden{connections: hiddenLimit})
			w.run(25 * time.Minute)
			w.server.connections *= 2
			doubled := w.now
			probe := w.control().ProbeAt
			for !near(w.control().Limit, 2*hiddenLimit) && w.now.Sub(doubled) < 2*time.Hour {
				w.run(time.Second)
			}
			took := w.now.Sub(probe)
			t.Logf("probed after %v, recovered %v later", probe.Sub(doubled), took)
			if took > 5*time.Minute {
				t.Errorf("recovered %v after the probe: %+v", took, w.control().Moves)
			}
		})
	}
}

// TestParallelRefusalsCutOnce has ten connections refused at the same time.
func TestParallelRefusalsCutOnce(t *testing.T) {
	g := New(Options{Bounds: func(k Key) Bounds {
		if k.Level == Site {
			return Bounds{Connections: 100, NewConnections: Rate{Count: None}}
		}
		return Bounds{}
	}})
	var good, all []*Ticket
	for len(all) < 30 {
		k, no := g.Open(start, Path{Site: "x"})
		if no != nil {
			if len(good) == len(all) {
				t.Fatalf("%d are open and cannot grow: %v", len(all), no)
			}
			for _, k := range all[len(good):] {
				k.Greeted(start)
			}
			for range 4 {
				for _, k := range all {
					k.Taken(start)
				}
			}
			good = all
			if len(all) >= 16 {
				break
			}
			continue
		}
		all = append(all, k)
	}
	before := g.Explain(start, Path{Site: "x"}).Control
	var refused []*Ticket
	for range 10 {
		k, no := g.Open(start, Path{Site: "x"})
		if no != nil {
			t.Fatal(no)
		}
		refused = append(refused, k)
	}
	moves := len(before.Moves)
	for _, k := range refused {
		k.Said(start, Answer{Code: 421, Text: "too busy", Early: true})
	}
	after := g.Explain(start, Path{Site: "x"}).Control
	if len(after.Moves) != moves+1 || after.Limit != len(good) {
		t.Errorf("limit %d of %d, moves %+v", after.Limit, before.Limit, after.Moves[moves:])
	}
}

// TestHiddenRate finds rates, by bucket and by window.
func TestHiddenRate(t *testing.T) {
	type hiddenRate struct {
		name   string
		server hidden
		want   float64
	}
	for _, c := range few(
		hiddenRate{"1 a second", hidden{perSecond: 1, burst: 5}, 1},
		hiddenRate{"5 a second", hidden{perSecond: 5, burst: 20}, 5},
		hiddenRate{"60 a minute", hidden{perMinute: 60}, 1},
		hiddenRate{"600 a minute", hidden{perMinute: 600}, 10},
	) {
		t.Run(c.name, func(t *testing.T) {
			server := c.server
			w := newWorld(t, 20, &server)
			w.run(30 * time.Minute)
			cost := len(w.refusals)
			from := w.now
			w.run(90 * time.Minute)
			n, probes := w.refusedSince(from)
			got := w.rate(from)
			s := w.control()
			t.Logf("of %.3g a second %.3g were taken in 90 minutes, after %d refusals in 30; then %d, at most %d probes in ten minutes; the rate is %.3g", c.want, got, cost, n, probes, s.Rate)
			if got < 0.9*c.want {
				t.Errorf("only %.3g a second of %.3g: %+v", got, c.want, s.Moves)
			}
			if probes > 1 {
				t.Errorf("%d probes within ten minutes: %+v", probes, s.Moves)
			}
		})
	}
}

// TestRecoveryOfRate doubles the hidden rate: once a probe has found it out, five
// minutes are enough.
func TestRecoveryOfRate(t *testing.T) {
	for _, server := range few(hidden{perSecond: 2, burst: 5}, hidden{perMinute: 300}) {
		w := newWorld(t, 20, &server)
		w.run(30 * time.Minute)
		hiddenRate := server.perSecond + float64(server.perMinute)/60
		for w.gate.controls[pair{"x", ""}].pace.probing || w.control().Rate < 0.9*hiddenRate {
			w.run(time.Second)
		}
		was := w.control().Rate
		server.perSecond *= 2
		server.perMinute *= 2
		doubled := w.now
		for !w.gate.controls[pair{"x", ""}].pace.probing && w.now.Sub(doubled) < time.Hour {
			w.run(time.Second)
		}
		probe := w.now
		for w.control().Rate < 1.8*hiddenRate && w.now.Sub(probe) < time.Hour {
			w.run(time.Second)
		}
		took := w.now.Sub(probe)
		t.Logf("probed %v after, recovered from %.3g to %.3g a second %v later", probe.Sub(doubled), was, w.control().Rate, took)
		if took > 5*time.Minute {
			t.Errorf("recovered only after %v: %+v", took, w.control().Moves)
		}
	}
}
