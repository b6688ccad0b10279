package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// flights counts the deliveries that go on at a site.
type flights struct {
	mu        sync.Mutex
	now, most map[string]int
}

func (f *flights) add(site string, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now == nil {
		f.now, f.most = map[string]int{}, map[string]int{}
	}
	f.now[site] += n
	f.most[site] = max(f.most[site], f.now[site])
}

// TestDomainsOfOneSiteShareItsLimit has fifty domains on one set of hosts.
func TestDomainsOfOneSiteShareItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights
		var looked atomic.Int32
		r := newRig(t, func(o *Options) {
			o.SiteLimit = 3
			o.Channels[0].Locate = func(context.Context, string) (string, error) {
				looked.Add(1)
				time.Sleep(20 * time.Millisecond)
				return "mx.shared.example", nil
			}
		})
		r.exit.before = func(context.Context, *Job) {
			f.add("mx.shared.example", 1)
			time.Sleep(time.Second)
			f.add("mx.shared.example", -1)
		}
		defer r.close()
		r.Start()
		for i := range 50 {
			r.submit("s@here.example", fmt.Sprintf("r@d%d.example", i))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := f.most["mx.shared.example"]; n != 3 {
			t.Errorf("%d deliveries at once to a site with 3", n)
		}
		if n := r.exit.deliveries(); n != 50 {
			t.Errorf("%d of 50 delivered", n)
		}
	})
}

// TestMailMovesWithItsSite changes where a domain's mail goes while it waits.
func TestMailMovesWithItsSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var site atomic.Value
		site.Store("old.example")
		r := newRig(t, func(o *Options) {
			o.Channels[0].Locate = func(context.Context, string) (string, error) { return site.Load().(string), nil }
		})
		var tried atomic.Int32
		r.exit.answer = func(*Job, string) Result {
			if tried.Add(1) <= 5 {
				return later
			}
			return accepted
		}
		defer r.close()
		r.Start()
		for range 5 {
			r.submit("s@here.example", "r@moves.example")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := r.sites(); got["old.example"] != 5 {
			t.Fatalf("before: %v", got)
		}
		site.Store("new.example")
		time.Sleep(410 * time.Second)
		synctest.Wait()
		if n := r.exit.deliveries(); n != 10 {
			t.Errorf("%d deliveries, want ten", n)
		}
	})
}

// sites are the recipients by site, as the schedule has them.
func (r *rig) sites() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string]int{}
	for i := range r.schedule.Sites(time.Now()) {
		all[i.Name] = i.Queued + i.InFlight
	}
	return all
}

// deliveries is how many there were.
func (x *exit) deliveries() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.all)
}

// leave counts what was released.
type leave struct{ released *atomic.Int32 }

func (l leave) Release() { l.released.Add(1) }

// TestWhoIsNotAdmittedWaits keeps a site out until it is called.
func TestWhoIsNotAdmittedWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Bool
		var asked, released atomic.Int32
		r := newRig(t, func(o *Options) {
			o.Channels[0].Locate = func(_ context.Context, domain string) (string, error) { return "mx." + domain, nil }
			o.Channels[0].Admit = func(now time.Time, site, _ string) (Leave, *Wait) {
				asked.Add(1)
				switch {
				case open.Load():
					return leave{&released}, nil
				case site == "mx.timed.example":
					return nil, &Wait{Until: now.Add(7 * time.Second)}
				}
				return nil, &Wait{}
			}
		})
		r.exit.before = func(_ context.Context, j *Job) {
			if _, ok := j.Leave.(leave); !ok {
				t.Errorf("a job without its leave: %v", j.Leave)
			}
		}
		defer r.close()
		r.Start()
		r.submit("s@here.example", "r@timed.example")
		r.submit("s@here.example", "r@called.example")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if n := asked.Load(); n != 2 || r.exit.deliveries() != 0 {
			t.Fatalf("asked %d times, %d delivered", n, r.exit.deliveries())
		}
		open.Store(true)
		r.Admissible("mx.called.example")
		synctest.Wait()
		if len(r.exit.to("r@called.example")) != 1 || len(r.exit.to("r@timed.example")) != 0 {
			t.Fatal("the site that was called was not tried alone")
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if len(r.exit.to("r@timed.example")) != 1 || released.Load() != 2 {
			t.Fatalf("after its time: %d delivered, %d released", r.exit.deliveries(), released.Load())
		}
	})
}

// TestWhatWasNotTriedIsNoAttempt has an exit that finds the door shut twice.
func TestWhatWasNotTriedIsNoAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		var shut atomic.Int32
		r.exit.answer = func(j *Job, _ string) Result {
			if j.Attempts != 0 {
				t.Errorf("attempt %d", j.Attempts)
			}
			switch shut.Add(1) {
			case 1:
				return Result{Reply: later.Reply, NotNow: &Wait{}}
			case 2:
				return Result{Reply: later.Reply, NotNow: &Wait{Until: time.Now().Add(20 * time.Second)}}
			}
			return accepted
		}
		defer r.close()
		r.Start()
		r.submit("s@here.example", "r@there.example")
		time.Sleep(putBackPause + 19*time.Second)
		synctest.Wait()
		if n := r.exit.deliveries(); n != 2 {
			t.Fatalf("asked %d times before the time", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := r.exit.deliveries(); n != 3 {
			t.Errorf("asked %d times", n)
		}
		r.empty()
	})
}

// TestNobodyIsForgotten has a gate that never calls: it is asked again by and by.
func TestNobodyIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		r := newRig(t, func(o *Options) {
			o.Channels[0].Admit = func(time.Time, string, string) (Leave, *Wait) {
				if asked.Add(1) < 3 {
					return nil, &Wait{}
				}
				return nil, nil
			}
		})
		defer r.close()
		r.Start()
		r.submit("s@here.example", "r@there.example")
		time.Sleep(3 * noEnd)
		synctest.Wait()
		if r.exit.deliveries() != 1 {
			t.Errorf("%d delivered after %d questions", r.exit.deliveries(), asked.Load())
		}
	})
}

// TestDomainThatCannotBeLocated goes to the exit, which can say what it means.
func TestDomainThatCannotBeLocated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.Channels[0].Locate = func(context.Context, string) (string, error) { return "", errors.New("no name server") }
			o.Channels[0].Admit = func(time.Time, string, string) (Leave, *Wait) {
				t.Error("asked to admit a site that nobody knows")
				return nil, nil
			}
		})
		r.exit.answer = func(*Job, string) Result { return never }
		defer r.close()
		r.Start()
		r.submit("", "r@nowhere.example")
		synctest.Wait()
		if n := len(r.exit.to("r@nowhere.example")); n != 1 {
			t.Errorf("tried %d times", n)
		}
	})
}

// TestDNSThatNeverSaysTheSame must not keep mail from being delivered.
func TestDNSThatNeverSaysTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int32
		r := newRig(t, func(o *Options) {
			o.Channels[0].Locate = func(context.Context, string) (string, error) {
				return fmt.Sprintf("mx%d.example", n.Add(1)), nil
			}
		})
		defer r.close()
		r.Start()
		for range 20 {
			r.submit("s@here.example", "r@flaps.example")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if r.exit.deliveries() != 20 {
			t.Errorf("%d of 20 delivered after %d looks", r.exit.deliveries(), n.Load())
		}
		if strings.Contains(r.log.String(), "fault in Postern") {
			t.Error(r.log.String())
		}
	})
}

// TestAdmitMayCallOthers has leave for one site, which comes to nothing, call another
// while it is asked for.
func TestAdmitMayCallOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r *rig
		var open atomic.Bool
		r = newRig(t, func(o *Options) {
			o.Channels[0].Locate = func(_ context.Context, domain string) (string, error) { return "mx." + domain, nil }
			o.Channels[0].Admit = func(now time.Time, site, _ string) (Leave, *Wait) {
				switch {
				case site == "mx.late.example" && open.Load():
					return nil, nil
				case site == "mx.first.example":
					open.Store(true)
					r.Admissible("mx.late.example")
					return nil, &Wait{Until: now.Add(time.Hour)}
				}
				return nil, &Wait{}
			}
		})
		defer r.close()
		r.Start()
		r.submit("s@here.example", "r@late.example")
		time.Sleep(time.Second)
		synctest.Wait()
		r.submit("s@here.example", "r@first.example")
		time.Sleep(time.Second)
		synctest.Wait()
		if n := len(r.exit.to("r@late.example")); n != 1 {
			t.Errorf("%d deliveries to the site that was called", n)
		}
	})
}

// TestWaitsOfLessThanAMillisecond: the schedule's clock is coarser than those who say
// when to ask again, and nobody is asked twice at the same time.
func TestWaitsOfLessThanAMillisecond(t *testing.T) {
	for name, wait := range map[string]time.Duration{"soon": 300 * time.Microsecond, "now": 0, "before": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked []time.Time
				r := newRig(t, func(o *Options) {
					o.Channels[0].Admit = func(now time.Time, _, _ string) (Leave, *Wait) {
						if asked = append(asked, now); len(asked) > 5 {
							return nil, nil
						}
						return nil, &Wait{Until: now.Add(wait)}
					}
				})
				defer r.close()
				r.Start()
				time.Sleep(100 * time.Microsecond) // a clock is seldom at a whole millisecond
				r.submit("s@here.example", "r@d.example")
				time.Sleep(time.Second)
				synctest.Wait()
				if n := r.exit.deliveries(); n != 1 {
					t.Errorf("%d deliveries", n)
				}
				for i := 1; i < len(asked); i++ {
					if !asked[i].After(asked[i-1]) {
						t.Fatalf("asked twice at %v", asked[i])
					}
				}
			})
		})
	}
}
