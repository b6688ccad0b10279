package worker

import (
	"errors"
	"fmt"
	"strings"
)

// The kinds of failure, for errors.Is. Those of the first three come as a
// *Failure. None says anything about a message, except for ErrKilledTwo.
var (
	// ErrDied means that the worker ended, or was killed for its memory,
	// during the job.
	ErrDied = errors.New("worker died")
	// ErrSlow means that the job was not done by its deadline.
	ErrSlow = errors.New("worker was too slow")
	// ErrGarbage means that the answer was too long, cut off, out of turn, or
	// not what Request.Decode accepts.
	ErrGarbage = errors.New("worker answered garbage")
	// ErrBusy means that no worker became free in time, or that none can be
	// started.
	ErrBusy = errors.New("no worker is free")
	// ErrKilledTwo means that two workers, one after the other, died of the job
	// or answered garbage: it is the message's fault.
	ErrKilledTwo = errors.New("two workers died of this job")
	// ErrClosed means that the pool has been closed.
	ErrClosed = errors.New("worker pool is closed")
)

// Failure is how a worker failed.
type Failure struct {
	Kind error  // ErrDied, ErrSlow, ErrGarbage or ErrBusy
	How  string // one clean line, for the log
	// Trace is the beginning of what a worker that died wrote to its standard
	// error, cleaned; it may tell what the message contains.
	Trace string
}

// Error is the kind and the how.
func (f *Failure) Error() string {
	if f.How == "" {
		return f.Kind.Error()
	}
	return f.Kind.Error() + ": " + f.How
}

// Unwrap is the kind.
func (f *Failure) Unwrap() error { return f.Kind }

// twice is the failure of a job that killed two workers.
type twice struct{ first, second error }

func (t *twice) Error() string {
	return fmt.Sprintf("%v: %v; then %v", ErrKilledTwo, t.first, t.second)
}

func (t *twice) Unwrap() []error { return []error{ErrKilledTwo, t.first, t.second} }

// JobError is the error of a job that ended in order: one clean line, which a
// worker wrote.
type JobError string

// Error is the line.
func (e JobError) Error() string { return string(e) }

// maxLine bounds a line of a worker's in bytes.
const maxLine = 300

// clean makes one printable ASCII line of what a worker wrote.
func clean(b []byte, limit int) string {
	var s strings.Builder
	for _, c := range b[:min(len(b), limit)] {
		if c < ' ' || c > '~' {
			c = ' '
		}
		s.WriteByte(c)
	}
	return strings.TrimSpace(s.String())
}
