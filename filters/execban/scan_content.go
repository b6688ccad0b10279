package execban

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/postern-mta/postern/filters/execban/archive"
	"github.com/postern-mta/postern/filters/execban/content"
	"github.com/postern-mta/postern/pipeline/mime"
	"github.com/postern-mta/postern/pipeline/worker"
)

const (
	// inMemory is up to which size in bytes a content is kept in memory.
	inMemory = 64 << 10
	// maxNesting bounds messages in archives in messages.
	maxNesting = 6
)

// decoded looks at a part under one decoding.
func (s *scanner) decoded(c mime.Content, at place, names []string) error {
	mine := s.buffer()
	defer s.spare.Put(mine)
	buffer := *mine
	from := c.Open()
	n, err := io.ReadFull(from, buffer)
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		if !s.looked(int64(n), at) {
			return nil
		}
		return s.file(bytes.NewReader(buffer[:n]), int64(n), at, names)
	case err != nil:
		return fmt.Errorf("part %s: %w", at.part, err)
	}
	t := s.scratch.Temp()
	defer t.Close()
	if _, err = t.Write(buffer); err == nil { // then it is free for the rest
		_, err = io.CopyBuffer(onlyWriter{&bounded{s, t, s.Archive.Member}}, onlyReader{from}, buffer)
	}
	if !s.looked(t.Size(), at) {
		return nil
	}
	if err = s.scratchUsedUp(at, err); err != nil {
		return fmt.Errorf("part %s: %w", at.part, err)
	}
	return s.file(t, t.Size(), at, names)
}

// buffer is memory for one content; one that lies in it needs one of its own.
func (o *orders) buffer() *[]byte {
	if b, ok := o.spare.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, inMemory)
	return &b
}

// The reader and the writer of a copy, so that it takes the buffer.
type (
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
)

// errMember means that a content is larger than it may be.
var errMember = errors.New("a content is larger than it may be")

// bounded writes a content within its limit and the scan's time.
type bounded struct {
	s   *scanner
	to  *worker.Temp
	max int64
}

func (b *bounded) Write(p []byte) (int, error) {
	if err := b.s.ctx.Err(); err != nil {
		return 0, err
	}
	if b.to.Size()+int64(len(p)) > b.max {
		return 0, errMember
	}
	return b.to.Write(p)
}

// scratchUsedUp tells of what had not room enough; other errors stay.
func (s *scanner) scratchUsedUp(at place, err error) error {
	switch {
	case errors.Is(err, worker.ErrScratch):
		s.unscannable(at, Unscannable, "there is not enough temporary space to look at it")
		return nil
	case errors.Is(err, errMember):
		s.unscannable(at, Unscannable, fmt.Sprintf("it is larger than %d bytes", s.Archive.Member))
		return nil
	}
	return err
}

// file looks at what a part holds, and at what that holds.
func (s *scanner) file(r io.ReaderAt, size int64, at place, names []string) error {
	if size == 0 {
		return nil
	}
	s.identify(r, size, at, names)
	if len(archive.IsArchive(r, size)) == 0 {
		return nil
	}
	limits := s.Archive
	limits.Bytes = max(s.left, 1)
	limits.Members = max(s.Archive.Members-int(s.answer.members), 1)
	limits.Depth = max(s.Archive.Depth-at.depth, 1)
	w := archive.Walker{Limits: limits, Temp: func() archive.Temp { return s.scratch.Temp() }}
	name := ""
	if len(names) > 0 {
		name = names[0]
	}
	return w.Walk(s.ctx, name, r, size, func(m archive.Member) error { return s.member(m, at, limits) })
}

// identify tells what a content is. A name helps to tell what some texts are.
func (s *scanner) identify(r io.ReaderAt, size int64, at place, names []string) {
	if len(names) == 0 {
		names = []string{""}
	}
	for i, name := range names {
		if slices.Contains(names[:i], name) || i == maxHelpful {
			continue
		}
		for _, m := range content.Identify(name, r, size) {
			why := byContent
			if m.Class == ArchivesEncrypted {
				why = byScan
			}
			s.add(at, m, why)
		}
	}
}

// maxHelpful is how many names of a content help to tell what it is.
const maxHelpful = 3

// member looks at a member of an archive.
func (s *scanner) member(m archive.Member, around place, limits archive.Limits) error {
	at := around
	at.depth += len(m.Path) - 1
	at.path = append(around.path[:len(around.path):len(around.path)], m.Path[1:]...)
	if m.Reading != "" {
		at.reading = join(around.reading, m.Format+" "+m.Reading)
	}
	own := len(m.Path) > 1 && (m.Content != nil || !isNested(m, limits))
	var names []string
	if own {
		names = append([]string{m.Path[len(m.Path)-1]}, m.Names...)
		s.answer.members++
		for _, name := range names {
			s.judgeName(at, name)
			for _, form := range mime.NormalNames(name) {
				s.judgeName(at, form.Text)
			}
		}
	}
	var wrong *archive.Error
	if errors.As(m.Err, &wrong) {
		class := Unscannable
		switch {
		case wrong.Class == archive.Encrypted:
			class = ArchivesEncrypted
		case isNested(m, limits):
			class = ArchivesNested
		}
		s.unscannable(at, class, wrong.Error())
	}
	if m.Content == nil || m.Size == 0 || !s.looked(m.Size, at) {
		return s.ctx.Err()
	}
	s.identify(m.Content, m.Size, at, names)
	return s.inner(m, at, names)
}

// isNested is whether a member is an archive that lies too deep.
func isNested(m archive.Member, limits archive.Limits) bool {
	var wrong *archive.Error
	return m.Content == nil && errors.As(m.Err, &wrong) && wrong.Class == archive.OverLimit && len(m.Path) > limits.Depth
}

// messages are the extensions of what a mail program opens as a message.
var messages = []string{".eml", ".emlx", ".mht", ".mhtml", ".nws", ".mbox", ".mbx"}

// inner looks at a message that lies in an archive.
func (s *scanner) inner(m archive.Member, at place, names []string) error {
	is := slices.ContainsFunc(names, func(name string) bool {
		readings, _ := content.Readings(name)
		return slices.ContainsFunc(readings, func(r content.Reading) bool {
			return slices.ContainsFunc(messages, func(ext string) bool { return strings.HasSuffix(r.Name, ext) })
		})
	})
	if !is {
		return nil
	}
	if at.depth > maxNesting {
		s.unscannable(at, ArchivesNested, "a message in more than "+fmt.Sprint(maxNesting)+" archives and messages")
		return nil
	}
	at.depth++
	return s.message(m.Content, m.Size, at)
}
