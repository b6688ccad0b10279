// Package filtertest is the suite that every filter passes, built-in or a
// plugin.
//
// It promises to run a filter only as the daemon does, through a chain, so that
// what passes here passes there; and to see what a filter must not do: fail
// without a reason, panic, answer what its stage does not allow, keep or give
// up a body that is not its own, write into what it is lent, act before it is
// asked, or go on after it is closed.
package filtertest

import (
	"testing"

	"github.com/postern-mta/postern/pipeline"
)

// Suite is a filter with what the suite must know of it.
type Suite struct {
	Kind pipeline.Kind
	// Config is the filter's table of the configuration, as TOML.
	Config string
	// Env makes what the filter may use of the daemon; nil means Env. What it
	// leaves nil of State, Resolver and Spool is filled in.
	Env func(testing.TB) pipeline.Env
	// Session is who calls; nil means a stranger on the network.
	Session func() *pipeline.Session
	// Stateful is set for a filter whose answer depends on what it was asked
	// before: the second answer may differ from the first.
	Stateful bool
	// MayFail tells at which of the hostile messages (see Hostile) the filter
	// has a reason to fail; nil means at none. It may never panic.
	MayFail func(name string) bool
	// Cases are the filter's own.
	Cases []Case
}

// checks is the suite, in order.
var checks = []struct {
	name  string
	check func(testing.TB, Suite)
}{
	{"New", checkNew},
	{"Traits", checkTraits},
	{"Twice", checkTwice},
	{"Concurrent", checkConcurrent},
	{"Reset", checkReset},
	{"Cancelled", checkCancelled},
	{"Hostile", checkHostile},
	{"Shadow", checkShadow},
	{"Delivery", checkDelivery},
}

// Run runs the suite, each check and each case as a test of its own.
func Run(t *testing.T, s Suite) {
	t.Helper()
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) { c.check(t, s) })
	}
	for _, c := range s.Cases {
		t.Run(c.Name, func(t *testing.T) { c.check(t, s) })
	}
}
