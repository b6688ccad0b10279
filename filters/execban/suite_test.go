package execban

import (
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/worker"
)

// The suite that every filter passes, with workers as the daemon has them.
func TestSuite(t *testing.T) {
	pool := newPool(t, worker.Options{})
	judge(t, newFilterOn(t, pool, ""), "Subject: x\n\nhello\n") // it has started
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(),
		Env: func(t testing.TB) pipeline.Env {
			env := filtertest.Env(t)
			env.Workers = pool
			return env
		},
		Cases: []filtertest.Case{
			{Name: "ordinary", Message: "Subject: x\n\nhello\n", WantReason: "nothing found in 1 part"},
			{Name: "a program", Message: attached("a.exe", tinyPE()), WantAction: pipeline.Reject, WantReply: `attachment "a.exe" looks like a program for Windows or DOS (windows-executables)`, WantReason: `part 1.2 "a.exe" [strict] by name and content`},
			{Name: "held", Config: `quarantine = ["windows-executables"]`, Message: attached("a.exe", tinyPE()), WantAction: pipeline.Quarantine, WantReason: "windows-executables"},
			{Name: "passes", Config: `pass = ["windows-executables"]`, Message: attached("a.exe", tinyPE()), WantReason: "(passes)"},
		},
	})
}
