package execban

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/filters/execban/content"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/mime"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/worker"
)

// Jobs are what the filter needs done in a worker, for worker.Main.
func Jobs() map[string]worker.Job {
	ordersOf := worker.Alike(parseRequest)
	return map[string]worker.Job{Name: func(ctx context.Context, args []byte, body io.ReaderAt, size int64, scratch *worker.Scratch) ([]byte, error) {
		r, err := ordersOf(args)
		if err != nil {
			return nil, err
		}
		a, err := r.scan(ctx, body, size, scratch)
		if err != nil {
			return nil, err
		}
		return a.encode(), nil
	}}
}

// scanner is one scan of a message.
type scanner struct {
	*orders
	ctx     context.Context
	scratch *worker.Scratch
	answer  answer
	left    int64 // how many bytes may still be looked at
	index   map[key]int
	classes map[string]int
}

// key is what makes two findings one: the same class in the same place.
type key struct{ part, file, class string }

// place is where something is looked at.
type place struct {
	part    string
	reading string
	path    []string // names, from the outermost file to this one
	depth   int      // messages and archives around
}

func (p place) file() string {
	var names []string
	for _, name := range p.path {
		if name != "" {
			names = append(names, name)
		}
	}
	s := reply.Clean(strings.Join(names, "/"), 4*maxFile)
	if len(s) > maxFile { // its end says what it is
		s = reply.Clean("..."+s[len(s)-maxFile+3:], maxFile)
	}
	return s
}

// errTime means that the time for a message is over.
var errTime = errors.New("the time for a message is over, and this host was busy with other things")

// processorTime is how long this process has run; if that is not known, 0, and
// slow messages are put off.
func processorTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// scan looks at a message. An error is one of reading it, or of ctx.
func (r *orders) scan(ctx context.Context, body io.ReaderAt, size int64, scratch *worker.Scratch) (*answer, error) {
	timed, cancel := context.WithTimeoutCause(ctx, r.Time, errTime)
	defer cancel()
	s := &scanner{orders: r, ctx: timed, scratch: scratch, left: r.Archive.Bytes}
	start := processorTime()
	err := s.message(body, size, place{})
	if err != nil && ctx.Err() == nil && errors.Is(context.Cause(timed), errTime) {
		if processorTime()-start < r.Time/4 {
			// It is this host that is slow, and not the message's fault.
			return nil, errTime
		}
		s.unscannable(place{part: "1", reading: "strict"}, Unscannable, fmt.Sprintf("it takes longer than %v", r.Time))
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return &s.answer, nil
}

// message looks at a message, or at one that lies in an archive.
func (s *scanner) message(body io.ReaderAt, size int64, at place) error {
	m, err := mime.Read(s.ctx, body, size, mime.Options{Limits: mime.Limits{Parts: s.Parts}, Spool: pipeline.ScratchSpool(s.scratch)})
	if err != nil {
		return s.scratchUsedUp(at, err)
	}
	defer m.Close() //nolint:errcheck // the space is given back anyway
	for p := range m.Walk() {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		s.answer.parts++
		if err := s.part(p, at); err != nil {
			return err
		}
	}
	for _, x := range m.Exceeded {
		s.unscannable(at.inside(x.Path), Unscannable, "the message has "+x.Limit.About())
	}
	for _, f := range m.Findings {
		if strictness(f.Severity) >= s.Strictness {
			s.unscannable(at.inside(f.Path), Unscannable, "programs will disagree about it: "+f.Reason.About())
		}
	}
	return nil
}

// inside is a part of the message at a place.
func (p place) inside(part string) place {
	if p.part != "" {
		part = p.part + ":" + part
	}
	p.part = reply.Clean(part, maxPart)
	if p.reading == "" {
		p.reading = mime.Reading(0).String()
	}
	return p
}

// part looks at one part under every name and content.
func (s *scanner) part(p *mime.Part, around place) error {
	at := around.inside(p.Path)
	names := namesOf(p)
	if at.path = around.path; len(names) > 0 {
		at.path = append(at.path[:len(at.path):len(at.path)], names[0].Text)
	}
	for _, n := range names {
		named := at
		named.reading = join(around.reading, (p.Reading | n.Reading).String())
		for _, form := range formsOf(n) {
			if !endsInDomain(form) || !isMessage(p) {
				s.judgeName(named, form)
			}
		}
	}
	if p.Role == mime.Entity && s.signatures.Len() > 0 {
		at.reading = join(around.reading, p.Reading.String())
		s.signature(p, at)
	}
	var texts []string
	for _, n := range names {
		texts = append(texts, n.Text)
	}
	for _, c := range p.Contents {
		at.reading = join(around.reading, (p.Reading | c.Reading).String())
		if err := s.decoded(c, at, texts); err != nil {
			return err
		}
	}
	return nil
}

func join(around, reading string) string {
	if around != "" {
		reading = around + " > " + reading
	}
	return reply.Clean(reading, maxReading)
}

// namesOf are the names of a part that count. What is seldom a name counts only
// where there is no other, and if it is no address of a page.
func namesOf(p *mime.Part) (names []mime.Name) {
	for _, weak := range []bool{false, true} {
		for _, n := range p.Names {
			if n.Source.Weak() != weak || weak && (strings.Contains(n.Text, ":/") || strings.HasSuffix(strings.ToLower(n.Text), ".com")) {
				continue
			}
			names = append(names, n)
		}
		if len(names) > 0 {
			return names
		}
	}
	return nil
}

// endsInDomain reports whether a name may be that of a program only because it
// ends with the name of a domain.
func endsInDomain(name string) bool { return strings.HasSuffix(strings.ToLower(name), ".com") }

// isMessage reports whether a part is an attached message in every reading, and
// nothing else: clients name it after its subject, "Re: see example.com".
func isMessage(p *mime.Part) bool {
	for _, t := range p.Types {
		if t.Value != "message/rfc822" && t.Value != "message/global" {
			return false
		}
	}
	head := make([]byte, 2048)
	n, _ := io.ReadFull(p.Raw().Open(), head) // what cannot be read is no message
	head = head[:n]
	known := false
	for i, line := range bytes.SplitAfter(head, []byte("\n")) {
		name, _, field := bytes.Cut(line, []byte(":"))
		switch {
		case i > 0 && len(bytes.TrimRight(line, "\r\n")) == 0:
			return known
		case bytes.ContainsFunc(line, func(r rune) bool { return r < ' ' && !strings.ContainsRune("\t\r\n", r) || r == 0x7f }):
			return false
		case i > 0 && (line[0] == ' ' || line[0] == '\t'):
		case !bytes.HasSuffix(line, []byte("\n")):
			return known && n == 2048 // it goes on
		case !field || len(name) == 0 || bytes.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
			return false
		}
		known = known || slices.ContainsFunc(messageFields, func(f string) bool { return strings.EqualFold(f, string(name)) })
	}
	return known
}

// messageFields are header fields of which every message that was sent has some.
var messageFields = []string{"From", "Date", "Received", "Message-ID", "Return-Path"}

// formsOf are what programs may make of a name, and the name itself.
func formsOf(n mime.Name) []string {
	forms := []string{n.Text}
	if n.Raw != n.Text {
		forms = append(forms, n.Raw)
	}
	for _, f := range n.Normal() {
		if f.Text != n.Text {
			forms = append(forms, f.Text)
		}
	}
	return forms
}

// judgeName looks at one name.
func (s *scanner) judgeName(at place, name string) {
	own := false
	readings, whole := content.Readings(name)
	if !whole {
		s.unscannable(at, Unscannable, "its name can be read in too many ways")
	}
	if len(s.Extensions) > 0 {
		for _, r := range readings {
			i := strings.LastIndexByte(r.Name, '.')
			if i < 0 {
				continue
			}
			if class, ok := s.Extensions[r.Name[i+1:]]; ok {
				s.add(at, content.Match{Class: class, What: r.Name[i:], Disguise: r.Disguise}, byName)
				own = true
			}
		}
	}
	for _, m := range content.ByName(name) {
		if !own || s.Extensions[strings.TrimPrefix(m.What, ".")] == "" {
			s.add(at, m, byName)
		}
	}
}

// signature compares the first line of a part as it stands.
func (s *scanner) signature(p *mime.Part, at place) {
	line, err := bufio.NewReaderSize(p.Raw().Open(), 2048).ReadSlice('\n')
	if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
		return // what cannot be read is told by its content
	}
	if sig := s.signatures.Match(bytes.TrimRight(line, "\r\n")); sig != "" {
		s.add(at, content.Match{Class: SignatureClass, What: "begins with " + sig}, bySignature)
	}
}

// looked counts bytes; false means that they are too many.
func (s *scanner) looked(n int64, at place) bool {
	s.answer.bytes += uint64(n)
	if s.left -= n; s.left >= 0 {
		return true
	}
	s.unscannable(at, Unscannable, fmt.Sprintf("it holds more than %d bytes unpacked", s.Archive.Bytes))
	return false
}

// add tells a finding. The same class in the same place is one finding, on
// several bases.
func (s *scanner) add(at place, m content.Match, why basis) {
	f := finding{
		part: at.part, reading: reply.Clean(at.reading, maxReading), class: m.Class, file: at.file(), what: reply.Clean(m.What, maxWhat),
		disguise: reply.Clean(m.Disguise, maxWhat), basis: why, depth: uint8(min(max(at.depth, 0), 255)),
	}
	k := key{f.part, f.file, f.class}
	if i, ok := s.index[k]; ok {
		known := &s.answer.findings[i]
		if why == byContent && known.basis == byName { // what it is says more than how it is called
			known.what, known.reading = f.what, f.reading
		}
		if (known.basis | why).valid() {
			known.basis |= why
		}
		return
	}
	if s.index == nil {
		s.index, s.classes = map[key]int{}, map[string]int{}
	}
	if s.classes[m.Class]++; s.classes[m.Class] > perClass || len(s.answer.findings) == maxFindings {
		s.answer.omitted++
		return
	}
	s.index[k] = len(s.answer.findings)
	s.answer.findings = append(s.answer.findings, f)
}

// unscannable tells that something could not be looked at.
func (s *scanner) unscannable(at place, class, why string) {
	s.add(at, content.Match{Class: class, What: why}, byScan)
}
