package pebble

import (
	"context"
	"fmt"
	"io"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/store"
)

// newBody is the body of a message to be stored: content, or a file that lies
// in bodies/ already.
type newBody struct {
	content []byte
	file    bool
	from    *spoolFile // nil if the store wrote the file itself
}

// readSmall gives a body of at most message.InMemory bytes.
func readSmall(b *message.Body) ([]byte, error) {
	if content, ok := b.Memory(); ok {
		return content, nil
	}
	content := make([]byte, b.Size())
	if _, err := io.ReadFull(io.NewSectionReader(b, 0, b.Size()), content); err != nil {
		return nil, fmt.Errorf("reading the body: %w", err)
	}
	return content, nil
}

// bring makes a body ready for a batch: a large one is in bodies/ afterwards,
// flushed, but for the directory.
func (s *Store) bring(ctx context.Context, id store.ID, b *message.Body) (newBody, error) {
	if b.Size() <= message.InMemory {
		content, err := readSmall(b)
		return newBody{content: content}, err
	}
	s.moving.Store(id, struct{}{})
	if f, ok := s.spool.open.Load(b.SpoolName()); ok && b.SpoolName() != "" {
		f := f.(*spoolFile)
		switch err := f.take(id); err {
		case nil:
			return newBody{file: true, from: f}, nil
		case errTaken: // by another message: this one needs a file of its own
		default:
			return newBody{}, reply.With(reply.NoSpace, err)
		}
	}
	if err := s.copyBody(ctx, id, b); err != nil {
		return newBody{}, err
	}
	return newBody{file: true}, nil
}

// copyBody writes a body to a file of its own in bodies/.
func (s *Store) copyBody(ctx context.Context, id store.ID, b *message.Body) (err error) {
	name, f, err := s.createSpool()
	if err != nil {
		return reply.With(reply.NoSpace, err)
	}
	defer func() {
		f.Close()
		if err != nil {
			s.Remove(name) //nolint:errcheck // the next Open sweeps the spool
		}
	}()
	// Not the body's WriteTo, nor the file's ReadFrom: the context must be seen.
	in := io.NewSectionReader(b, 0, b.Size())
	buf := make([]byte, 64<<10)
	for left := b.Size(); left > 0; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := io.ReadFull(in, buf[:min(left, int64(len(buf)))])
		if err != nil {
			return fmt.Errorf("reading the body: %w", err)
		}
		if _, err := f.Write(buf[:n]); err != nil {
			return reply.With(reply.NoSpace, err)
		}
		left -= int64(n)
	}
	if err := f.take(id); err != nil {
		return reply.With(reply.NoSpace, err)
	}
	return nil
}

// openBody opens the file of a stored body.
func (s *Store) openBody(info store.BodyInfo) (*message.Body, error) {
	f, err := s.fs.Open(s.bodyPath(info.Of))
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.Size() != info.Size {
		err = fmt.Errorf("%s has %d bytes, not %d", s.bodyPath(info.Of), st.Size(), info.Size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return message.StoredBody{At: f, Size: info.Size, LFs: info.LFs, EightBit: info.EightBit, Free: f.Close}.Open(), nil
}
