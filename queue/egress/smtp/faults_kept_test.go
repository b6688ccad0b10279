package smtp_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/smtp/smtptest"
)

// TestKeptFaultMatrix has every fault at every point of the second message of a
// connection: none may be missing, and each ends as testdata/faults_kept.txt has it. The
// fault comes once, so that a new connection to the same host is a good one.
func TestKeptFaultMatrix(t *testing.T) {
	m := &matrix{file: "faults_kept.txt", want: cells(t, "faults_kept.txt"), known: map[string]bool{}}
	how := mode{name: "kept"}
	for _, f := range faults() {
		for _, p := range points() {
			if p.at <= smtptest.Hello {
				continue // that is behind it
			}
			t.Run(f.name+" "+p.name, func(t *testing.T) {
				step := f.step(p)
				if step == nil {
					m.check(t, f.name, p.name, "", "-")
					return
				}
				step.At, step.Match, step.Bytes, step.Times = p.at, p.match, 1000, 1
				if p.match == "" {
					step.Skip = 1
				}
				alone, heard := how.second(t, *step, false)
				two, _ := how.second(t, *step, true)
				if two == alone {
					two = "same"
				}
				m.check(t, f.name, p.name, "", alone+" | "+two+" | "+heard)
			})
		}
	}
	m.whole(t)
}

// second delivers two messages to a host of which the second meets trouble.
func (m mode) second(t *testing.T, step smtptest.Step, another bool) (outcome, heard string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, m, trouble{step: &step}, another)
		if r := one(t, s.exit, job("d.test", "before@d.test")); r.Reply.Class != reply.Success {
			t.Errorf("the first message: %+v", r)
		}
		start := time.Now()
		results := s.exit.Deliver(t.Context(), s.job())
		took := time.Since(start)
		s.exit.Close(t.Context())
		outcome, heard = s.outcome(results, took), s.gate.heardOf("192.0.2.1")
		s.close()
	})
	return outcome, heard
}
