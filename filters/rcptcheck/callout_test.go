package rcptcheck

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/reply"
)

// servers answer by address; nobody else is there.
type servers struct {
	mu    sync.Mutex
	says  map[string]string // an answer by address, or by domain for the others
	err   error
	hang  bool
	asked []string
}

func (s *servers) Ask(ctx context.Context, domain string, recipients ...string) (all []reply.Reply, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if s.err != nil {
		return nil, s.err
	}
	for _, r := range recipients {
		if strings.HasPrefix(r, "nobody-") {
			s.asked = append(s.asked, "nobody@"+domain)
		} else {
			s.asked = append(s.asked, r)
		}
		said := s.says[r]
		if said == "" {
			said = s.says[domain]
		}
		all = append(all, answers[said])
	}
	return all, nil
}

var answers = map[string]reply.Reply{
	"yes":     reply.Make(250, reply.Enhanced{Subject: 1, Detail: 5}, "ok"),
	"no":      reply.Make(550, reply.Enhanced{Subject: 1, Detail: 1}, "no such user"),
	"later":   reply.Make(450, reply.Enhanced{Subject: 7, Detail: 1}, "greylisted"),
	"not you": reply.Make(550, reply.Enhanced{Subject: 7, Detail: 1}, "you are listed"),
	"what":    reply.Make(500, reply.Enhanced{Subject: 5, Detail: 1}, "what?"),
}

func TestCallout(t *testing.T) {
	const known, unknownHere, open, failed = "valid", "unknown", "no opinion", "error"
	for name, c := range map[string]struct {
		says  map[string]string
		want  string // of a@d.test, twice
		asked string // both times
	}{
		"there":                 {map[string]string{"d.test": "no", "a@d.test": "yes"}, known, "nobody@d.test a@d.test"},
		"not there":             {map[string]string{"d.test": "no"}, unknownHere, "nobody@d.test a@d.test"},
		"everybody is there":    {map[string]string{"d.test": "yes"}, open, "nobody@d.test a@d.test"},
		"greylisted":            {map[string]string{"d.test": "later"}, failed, "nobody@d.test a@d.test nobody@d.test a@d.test"},
		"greylisted, but no":    {map[string]string{"d.test": "later", "a@d.test": "no"}, unknownHere, "nobody@d.test a@d.test"},
		"selective, then later": {map[string]string{"d.test": "no", "a@d.test": "later"}, failed, "nobody@d.test a@d.test a@d.test"},
		"we are not liked":      {map[string]string{"d.test": "not you"}, failed, "nobody@d.test a@d.test nobody@d.test a@d.test"},
		"no sense":              {map[string]string{"d.test": "what"}, failed, "nobody@d.test a@d.test nobody@d.test a@d.test"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &servers{says: c.says}
			env := filtertest.Env(t)
			env.Callouts = s
			source := newCallout(env, time.Second, 1)
			for range 2 {
				f, err := source.ask(t.Context(), "a@d.test", nil)
				got := map[answer]string{valid: known, unknown: unknownHere, noOpinion: open}[f.answer]
				if err != nil {
					got = failed
				}
				if got != c.want {
					t.Errorf("%s: %v", got, err)
				}
			}
			if got := strings.Join(s.asked, " "); got != c.asked {
				t.Errorf("asked %s", got)
			}
		})
	}
}

// TestCalloutCannotAsk: nobody is refused because a server cannot be asked.
func TestCalloutCannotAsk(t *testing.T) {
	env := filtertest.Env(t)
	if _, err := newCallout(env, 0, 0).ask(t.Context(), "a@d.test", nil); err == nil {
		t.Error("nobody was asked, and that is an answer")
	}
	s := &servers{err: errors.New("connection refused")}
	env.Callouts = s
	source := newCallout(env, 50*time.Millisecond, 1)
	if _, err := source.ask(t.Context(), "a@d.test", nil); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
	s.err, s.hang = nil, true
	if _, err := source.ask(t.Context(), "a@d.test", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	source.places <- struct{}{}
	if _, err := source.ask(t.Context(), "a@d.test", nil); err == nil || !strings.Contains(err.Error(), "too many servers") {
		t.Errorf("%v", err)
	}
	if _, err := New(env, Options{Checks: []Check{{Callout: true, List: []string{"a@b"}}}}); err == nil {
		t.Error("two sources in one check")
	}
	if _, err := New(env, Options{Checks: []Check{{Callout: true, Wait: time.Second}}}); err != nil {
		t.Error(err)
	}
}
