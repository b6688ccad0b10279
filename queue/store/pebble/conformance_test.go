package pebble

import (
	"testing"

	"github.com/postern-mta/postern/queue/queuetest"
)

// openSubject opens a small store for the suite.
func openSubject(o queuetest.Options) (queuetest.Subject, error) {
	p := testOptions("queue/here", o.FS)
	p.Now, p.Fatal, p.LowBytes = o.Now, o.Fatal, o.LowBytes
	if p.LowBytes == 0 {
		p.LowBytes = -1
	}
	s, err := Open(p)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func TestStore(t *testing.T) { queuetest.Store(t, openSubject) }
