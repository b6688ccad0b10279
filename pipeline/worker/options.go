package worker

import (
	"context"
	"io"
	"os"
	"time"
)

// Options of a Pool. The zero value works.
type Options struct {
	// Size is how many workers are kept; default 4.
	Size int
	// Queue is how many jobs may wait for a worker, default 256; beyond that
	// a job fails at once with ErrBusy. Wait is how long one waits at most;
	// default 10 s.
	Queue int
	Wait  time.Duration
	// Deadline is how long a job may take, default 10 s.
	Deadline time.Duration
	// Memory is by how many bytes a worker's memory may grow beyond that of an
	// idle one, default 256 MiB. Scratch bounds the temporary space of a job in
	// bytes, default 256 MiB; it lies in Directory without a name there, or in
	// memory if Directory is "". Large bodies that are not in a file are copied
	// to the same place.
	Memory, Scratch int64
	Directory       string
	// Answer is how long an answer may be in bytes, default 1 MiB.
	Answer int
	// Jobs is after how many jobs a worker is replaced, default 1,000, and
	// Growth by how many bytes its memory may have grown between two jobs
	// before it is replaced; default 64 MiB.
	Jobs   int
	Growth int64
	// Processors is how many threads of a worker run at a time; default 1.
	Processors int
	// UID and GID are whom a worker of a daemon that runs as root becomes;
	// default 65534, nobody. Otherwise it stays who the daemon is, in a user
	// name space of its own where the kernel grants one.
	UID, GID uint32
	// Backoff is the pause before a worker that could not be started is tried
	// again; it doubles up to 64 times that. Default 100 ms.
	Backoff time.Duration
	// Report is told what the pool does about its workers; it may be nil, and
	// is called from many goroutines.
	Report func(Event)
}

// Event is something that happened to a worker.
type Event struct {
	PID int
	// Layers is what is on in a worker that started, when Err is nil and
	// Replaced is false.
	Layers Layers
	// Replaced means that the worker had done its share and was replaced.
	Replaced bool
	// Err is why it failed: a *Failure, or why it could not be started.
	Err error
}

// Request is a job.
type Request struct {
	// Job is the name of the job, as Main knows it; at most 64 bytes.
	Job string
	// Args is at most 4 MiB.
	Args []byte
	// Body is read during Do only, or by the worker itself if it is an
	// *os.File, which must be a regular file, or an Opener; it is Size bytes long.
	Body io.ReaderAt
	Size int64
	// Deadline is how long this job may take, if not 0.
	Deadline time.Duration
	// Decode decodes the answer; it must expect anything. An error of it is
	// ErrGarbage. It may be nil and does not keep the answer.
	Decode func(answer []byte) error
}

// Opener is a body that lies in a file, from offset 0 on. File is nil if it
// does not.
type Opener interface {
	File() *os.File
}

// Job is what a worker can do. It may be killed at any time; ctx ends a little
// before that. Scratch is empty at its start and is emptied at its end. Args and
// body are the job's until it returns. What it says as an error is for the log.
type Job func(ctx context.Context, args []byte, body io.ReaderAt, size int64, scratch *Scratch) ([]byte, error)

const (
	maxName = 64
	maxArgs = 4 << 20
)

func or[T comparable](value, other T) T {
	var zero T
	if value == zero {
		return other
	}
	return value
}

func (o Options) defaults() Options {
	o.Size = max(or(o.Size, 4), 1)
	o.Queue = or(o.Queue, 256)
	o.Wait = or(o.Wait, 10*time.Second)
	o.Deadline = or(o.Deadline, 10*time.Second)
	o.Memory = or(o.Memory, 256<<20)
	o.Scratch = or(o.Scratch, 256<<20)
	o.Answer = or(o.Answer, 1<<20)
	o.Jobs = or(o.Jobs, 1000)
	o.Growth = or(o.Growth, 64<<20)
	o.Processors = max(or(o.Processors, 1), 1)
	o.UID = or(o.UID, 65534)
	o.GID = or(o.GID, 65534)
	o.Backoff = or(o.Backoff, 100*time.Millisecond)
	return o
}
