package pipeline

import (
	"fmt"
	"strconv"

	"github.com/postern-mta/postern/pipeline/message"
	process "github.com/postern-mta/postern/pipeline/worker"
)

// ScratchSpool is a spool in a job's temporary space, for what a reader of MIME has
// to decode twice. A file's content goes when it is closed by whoever made it. Like
// the space, it is for one goroutine.
func ScratchSpool(s *process.Scratch) message.Spooler {
	return &scratchSpool{scratch: s, files: map[string]*process.Temp{}}
}

type scratchSpool struct {
	scratch *process.Scratch
	files   map[string]*process.Temp
	made    int
}

func (s *scratchSpool) Create() (string, message.File, error) {
	s.made++
	name, t := strconv.Itoa(s.made), s.scratch.Temp()
	s.files[name] = t
	return name, t, nil
}

// lentTemp is a file that is read a second time.
type lentTemp struct{ *process.Temp }

// Close does nothing: the file is another's.
func (lentTemp) Close() error { return nil }

func (s *scratchSpool) Open(name string) (message.File, error) {
	t := s.files[name]
	if t == nil {
		return nil, fmt.Errorf("there is no file %s", name)
	}
	return lentTemp{t}, nil
}

func (s *scratchSpool) Remove(name string) error {
	delete(s.files, name)
	return nil
}
