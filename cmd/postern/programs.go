package main

import (
	"log/slog"

	"github.com/postern-mta/postern/pipeline/program"
)

// programs start what filters run that is not ours.
type programs struct {
	own *program.Starter // as the daemon's user
}

func newPrograms(log *slog.Logger) *programs {
	return &programs{own: program.New(program.Options{Died: func(err error) {
		log.Warn("the process that starts programs died, and its programs with it; it is started again when it is needed", "error", err)
	}})}
}

// Start starts a program.
func (p *programs) Start(spec program.Spec) (*program.Process, error) {
	return p.own.Start(spec)
}

// close ends all programs.
func (p *programs) close() {
	if p != nil {
		p.own.Close() //nolint:errcheck // the kernel ends them when we end
	}
}
