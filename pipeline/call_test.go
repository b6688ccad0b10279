package pipeline

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
)

var errBroken = errors.New("broken\x00line\nof clamd")

// failing are the ways in which a filter can fail at the message stage within
// the test's bubble of time. Each gives a body along where it can.
var failing = []struct {
	name string
	f    func(t *testing.T, s *memorySpool, a asked) (Verdict, error)
	err  string
}{
	{"error", func(t *testing.T, s *memorySpool, a asked) (Verdict, error) {
		return Verdict{Action: Accept, Body: s.body(t, "x")}, errBroken
	}, "broken?line of clamd"},
	{"panic", func(*testing.T, *memorySpool, asked) (Verdict, error) { panic("oh\nno") }, "panic: oh no"},
	{"panic of an error", func(*testing.T, *memorySpool, asked) (Verdict, error) { panic(errBroken) }, "panic: broken?line of clamd"},
	{"goexit", func(*testing.T, *memorySpool, asked) (Verdict, error) { runtime.Goexit(); panic("unreachable") }, "ended its goroutine"},
	{"slow, heeds", func(_ *testing.T, _ *memorySpool, a asked) (Verdict, error) {
		<-a.ctx.Done()
		return Verdict{}, a.ctx.Err()
	}, "no answer within 1s: context deadline exceeded"},
	{"slow, body and error", func(t *testing.T, s *memorySpool, a asked) (Verdict, error) {
		<-a.ctx.Done()
		return Verdict{Body: s.body(t, "x")}, a.ctx.Err()
	}, "no answer within 1s: context deadline exceeded"},
	{"slow, answers late", func(t *testing.T, s *memorySpool, a asked) (Verdict, error) {
		<-a.ctx.Done()
		return Verdict{Action: Accept, Body: s.body(t, "x"), Edits: []Edit{addField("X-Late", "1")}}, nil
	}, "no answer within 1s"},
	{"hangs", func(t *testing.T, s *memorySpool, a asked) (Verdict, error) {
		time.Sleep(time.Hour)
		if a.message.Bytes() == nil {
			t.Error("message is gone while the call goes on")
		}
		return Verdict{Action: Accept, Body: s.body(t, "x")}, nil
	}, "no answer within 1s"},
}

// TestFailures: a filter that fails leaves the message as it was, does what
// on_error says, in shadow changes nothing, and leaks no body and no goroutine.
func TestFailures(t *testing.T) {
	for _, test := range failing {
		for _, onError := range []OnError{ErrorDefers, ErrorContinues} {
			for _, mode := range []Mode{Enforce, Shadow} {
				t.Run(test.name+"/"+onError.String()+"/"+mode.String(), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						var spool memorySpool
						f := at(AtMessage, func(a asked) (Verdict, error) { return test.f(t, &spool, a) })
						c := newChain(t, ChainOptions{},
							Step{Filter: f, Timeout: time.Second, OnError: onError, Mode: mode},
							Step{Filter: says(AtMessage, Verdict{Edits: []Edit{addField("X-A", "b")}})})
						m := spool.message(t, plain)
						o := c.Run(context.Background(), txTo("r@example.org"), m)
						if mode == Enforce && onError == ErrorDefers {
							if o.Fates[0].Action != Defer || o.Reply.SMTPCode() != 451 || len(o.Outgoing) > 0 {
								t.Errorf("%+v, want a deferral", o)
							}
						} else if got := outgoing(o); got != "a@example.org -> r@example.org X-A=b\n" {
							t.Errorf("outgoing %s", got)
						}
						e := entries(o.Trace, "f0", AtMessage)
						if len(e) != 1 || !strings.Contains(e[0].Err, test.err) || e[0].Shadow != (mode == Shadow) || e[0].Took > 2*time.Second {
							t.Errorf("trace %+v, want %q", e, test.err)
						}
						o.Release()
						time.Sleep(2 * time.Hour)
						synctest.Wait()
						if n := f.counts(); n != [3]int{1, 1, 0} {
							t.Errorf("opened, closed, reset %v", n)
						}
						checkOnlyMine(t, &spool, m)
					})
				})
			}
		}
	}
}

// TestOpenFails: what Open does wrong is the filter's failure too.
func TestOpenFails(t *testing.T) {
	for name, open := range map[string]func(context.Context) (Instance, error){
		"error":   func(context.Context) (Instance, error) { return nil, errBroken },
		"nothing": func(context.Context) (Instance, error) { return nil, nil },
		"panic":   func(context.Context) (Instance, error) { panic("open") },
		"hangs": func(context.Context) (Instance, error) {
			time.Sleep(time.Hour)
			return nil, errBroken
		},
		"hangs, then opens": func(context.Context) (Instance, error) {
			time.Sleep(time.Hour)
			return &fakeInstance{&fake{on: map[Stage]func(asked) (Verdict, error){AtConnect: func(asked) (Verdict, error) { return Verdict{Action: Accept}, nil }}}}, nil
		},
		"lacks the stage": func(context.Context) (Instance, error) { return connectOnly{}, nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := says(AtHelo, Verdict{})
				f.open = open
				c := newChain(t, ChainOptions{}, Step{Filter: f, Timeout: time.Second})
				j := c.Begin()
				start := time.Now()
				s := &Session{}
				if fate := j.Helo(context.Background(), s); fate.Action != Defer {
					t.Errorf("%+v", fate)
				}
				j.session = Fate{}
				if fate := j.Helo(context.Background(), s); fate.Action != Defer {
					t.Errorf("second time: %+v", fate)
				}
				j.Close()
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("took %v", took)
				}
				if n := f.counts()[0]; n != 1 {
					t.Errorf("opened %d times", n)
				}
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

type connectOnly struct{}

func (connectOnly) Close() error                                       { return nil }
func (connectOnly) Connect(context.Context, *Session) (Verdict, error) { return Verdict{}, nil }

// TestReopen: a filter that could not be opened gets another chance with the
// next transaction.
func TestReopen(t *testing.T) {
	f := says(AtSender, Verdict{})
	f.open = func(context.Context) (Instance, error) {
		if f.counts()[0] == 1 {
			return nil, errBroken
		}
		return &fakeInstance{f}, nil
	}
	j := newChain(t, ChainOptions{}, Step{Filter: f}).Begin()
	defer j.Close()
	if fate := j.Sender(context.Background(), txTo()); fate.Action != Defer {
		t.Errorf("%+v", fate)
	}
	j.Reset()
	if fate := j.Sender(context.Background(), txTo()); fate.Action != Continue {
		t.Errorf("after Reset: %+v", fate)
	}
}

// TestStuck: after a call that overran, the instance is not touched: later
// stages fail at once, Reset and Close wait for the call's own end.
func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		never := func(asked) (Verdict, error) { t.Error("asked while stuck"); return Verdict{}, nil }
		f := &fake{on: map[Stage]func(asked) (Verdict, error){
			AtConnect: func(asked) (Verdict, error) { time.Sleep(time.Minute); return Verdict{}, nil },
			AtHelo:    never, AtSender: never, AtRecipient: never, AtMessage: never,
		}}
		c := newChain(t, ChainOptions{Log: slog.New(slog.NewTextHandler(&log, nil))}, Step{Filter: f, Timeout: time.Second})
		j := c.Begin()
		tx := txTo("r@example.org")
		j.Connect(context.Background(), tx.Session)
		if c.steps[0].overrun.Load() != 1 {
			t.Error("the call that goes on is not counted")
		}
		j.session = Fate{}
		start := time.Now()
		j.Helo(context.Background(), tx.Session)
		j.session = Fate{}
		j.Sender(context.Background(), tx)
		j.sender = Fate{}
		if fate := j.Recipient(context.Background(), tx, envelope.Recipient{Address: "r"}); fate.Action != Defer {
			t.Errorf("%+v", fate)
		}
		j.rcpts = nil
		var spool memorySpool
		m := spool.message(t, plain)
		o := j.Message(context.Background(), tx, m)
		o.Release()
		if o.Reply.SMTPCode() != 451 {
			t.Errorf("reply %v", o.Reply)
		}
		for _, e := range o.Trace[1:] {
			if e.Err != errStuck.Error() {
				t.Errorf("entry %+v", e)
			}
		}
		j.Reset()
		j.Close()
		j.Close()
		if took := time.Since(start); took > 0 {
			t.Errorf("later stages took %v", took)
		}
		if n := f.counts(); n != [3]int{1, 0, 0} {
			t.Errorf("opened, closed, reset %v while the call goes on", n)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := f.counts(); n != [3]int{1, 1, 0} || c.steps[0].overrun.Load() != 0 {
			t.Errorf("opened, closed, reset %v, %d go on", n, c.steps[0].overrun.Load())
		}
		if s := log.String(); strings.Count(s, "overran its time") != 2 {
			t.Errorf("log %s", s)
		}
		checkOnlyMine(t, &spool, m)
	})
}

// TestOverrun: a filter that hangs holds 64 goroutines and bodies at most, and
// is asked again when its calls have ended.
func TestOverrun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := at(AtMessage, func(asked) (Verdict, error) {
			time.Sleep(time.Hour)
			return Verdict{}, nil
		})
		c := newChain(t, ChainOptions{}, Step{Filter: f, Timeout: time.Second})
		run := func() *Outcome {
			var spool memorySpool
			m := spool.message(t, plain)
			defer m.Body().Release() //nolint:errcheck // in memory
			o := c.Run(context.Background(), txTo("r@example.org"), m)
			o.Release()
			return o
		}
		var wg sync.WaitGroup
		for range maxOverrun {
			wg.Go(func() { run() })
		}
		wg.Wait()
		if o := run(); o.Trace[0].Err != errOverrun.Error() || o.Reply.SMTPCode() != 451 {
			t.Errorf("%+v", o)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if n := f.counts(); n[0] != maxOverrun || n[1] != maxOverrun {
			t.Errorf("opened, closed, reset %v", n)
		}
		if o := run(); !strings.HasPrefix(o.Trace[0].Err, "no answer") {
			t.Errorf("%+v", o)
		}
		time.Sleep(2 * time.Hour)
	})
}

// TestTidy: Close and Reset that fail, panic or hang do not hold up a session.
func TestTidy(t *testing.T) {
	for name, bad := range map[string]func() error{
		"error": func() error { return errBroken },
		"panic": func() error { panic("tidy") },
		"hang":  func() error { time.Sleep(time.Hour); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				closes, resets, good := says(AtConnect, Verdict{}), says(AtConnect, Verdict{}), says(AtConnect, Verdict{})
				closes.close, resets.reset = bad, bad
				c := newChain(t, ChainOptions{Log: slog.New(slog.NewTextHandler(&log, nil))}, Step{Filter: closes}, Step{Filter: resets}, Step{Filter: good})
				j := c.Begin()
				j.Connect(context.Background(), &Session{})
				start := time.Now()
				j.Reset()
				j.Reset()
				j.Close()
				if took := time.Since(start); took > 3*tidyTime {
					t.Errorf("took %v", took)
				}
				time.Sleep(3 * time.Hour)
				synctest.Wait()
				for _, f := range []*fake{closes, resets, good} {
					if n := f.counts(); n[1] != 1 {
						t.Errorf("opened, closed, reset %v", n)
					}
				}
				if n := good.counts(); n[2] != 2 {
					t.Errorf("good filter is reset %d times", n[2])
				}
				if log.Len() == 0 {
					t.Error("nothing in the log")
				}
			})
		})
	}
}

// TestPanicLog: the stack goes to the log, not to the trace.
func TestPanicLog(t *testing.T) {
	var log bytes.Buffer
	c := newChain(t, ChainOptions{Log: slog.New(slog.NewJSONHandler(&log, nil))},
		Step{Name: "bad", Filter: at(AtMessage, func(asked) (Verdict, error) { panic(strings.Repeat("x\n", 5000)) })})
	runIn(t, context.Background(), c, txTo("r@example.org"), func(o *Outcome) {
		e := o.Trace[0]
		if len(e.Err) > maxReason || strings.Contains(e.Err, "goroutine") || !strings.HasPrefix(e.Err, "panic: x x x") {
			t.Errorf("trace %q", e.Err)
		}
	})
	if s := log.String(); !strings.Contains(s, "TestPanicLog") || !strings.Contains(s, `"filter":"bad"`) {
		t.Errorf("log lacks the stack: %s", s)
	}
}

// TestDeadline: when the chain's time is over, or the caller is gone, nothing
// is stored, whatever was decided, and nobody else is asked.
func TestDeadline(t *testing.T) {
	slow := func(a asked) (Verdict, error) {
		select {
		case <-a.ctx.Done():
			return Verdict{}, a.ctx.Err()
		case <-time.After(40 * time.Second):
			return Verdict{}, nil
		}
	}
	var steps []Step
	for range 4 {
		steps = append(steps, Step{Filter: at(AtMessage, slow), Timeout: time.Minute, OnError: ErrorContinues})
	}
	last := says(AtMessage, Verdict{})
	steps = append(steps, Step{Filter: last, OnError: ErrorContinues})
	for _, test := range []struct {
		name   string
		cancel time.Duration
		took   time.Duration
		err    string
	}{
		{"deadline", time.Hour, 120 * time.Second, "given up: context deadline exceeded"},
		{"caller gone", time.Minute, time.Minute, "given up: context canceled"},
		{"caller gone before", 0, 0, "given up: context canceled"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				defer time.AfterFunc(test.cancel, cancel).Stop()
				if test.cancel == 0 {
					cancel()
				}
				asked := last.counts()[0]
				start := time.Now()
				runIn(t, ctx, newChain(t, ChainOptions{}, steps...), txTo(rcpts(3)...), func(o *Outcome) {
					if o.Reply.SMTPCode() != 451 || len(o.Outgoing) > 0 {
						t.Errorf("%+v", o)
					}
					for _, f := range o.Fates {
						if f.Action != Defer || f.Filter != "chain" {
							t.Errorf("%+v", f)
						}
					}
					if e := o.Trace[len(o.Trace)-1]; e.Filter != "chain" || e.Err != test.err {
						t.Errorf("%+v", e)
					}
				})
				if took := time.Since(start); took != test.took {
					t.Errorf("took %v, want %v", took, test.took)
				}
				if last.counts()[0] != asked {
					t.Error("a filter was asked after the end")
				}
			})
		})
	}
}

// TestGoneWithoutFilters: promise 3 holds for a chain that asks nobody.
func TestGoneWithoutFilters(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	runIn(t, ctx, newChain(t, ChainOptions{}), txTo("r@example.org"), func(o *Outcome) {
		if o.Reply.SMTPCode() != 451 || len(o.Outgoing) > 0 {
			t.Errorf("%+v", o)
		}
	})
}

// TestManyRecipientsGone: a hundred thousand recipients do not keep a chain
// going whose time is over.
func TestManyRecipientsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := at(AtRecipient, func(a asked) (Verdict, error) {
			select {
			case <-a.ctx.Done():
			case <-time.After(time.Second):
			}
			return Verdict{}, a.ctx.Err()
		})
		start := time.Now()
		runIn(t, context.Background(), newChain(t, ChainOptions{}, Step{Filter: f}), txTo(rcpts(100_000)...), func(o *Outcome) {
			if o.Reply.SMTPCode() != 451 {
				t.Errorf("%v", o.Reply)
			}
		})
		if took := time.Since(start); took != DefaultDeadline {
			t.Errorf("took %v", took)
		}
		if n := len(f.called()); n > 121 {
			t.Errorf("%d calls", n)
		}
	})
}

// TestShadowTime: filters in shadow that hang leave the others half of the
// deadline at least.
func TestShadowTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var steps []Step
		for range 5 {
			steps = append(steps, Step{Mode: Shadow, Timeout: time.Minute, Filter: at(AtMessage, func(a asked) (Verdict, error) {
				<-a.ctx.Done()
				return Verdict{}, nil
			})})
		}
		steps = append(steps, Step{Name: "clamav", Timeout: time.Minute, Filter: at(AtMessage, func(asked) (Verdict, error) {
			time.Sleep(50 * time.Second)
			return Verdict{}, nil
		})})
		start := time.Now()
		runIn(t, context.Background(), newChain(t, ChainOptions{}, steps...), txTo("r@example.org"), func(o *Outcome) {
			if len(o.Outgoing) != 1 {
				t.Errorf("%v %+v", o.Reply, o.Trace)
			}
			if e := o.Trace[1]; e.Err != errShadow.Error() {
				t.Errorf("%+v", e)
			}
		})
		if took := time.Since(start); took != 110*time.Second {
			t.Errorf("took %v", took)
		}
	})
}
