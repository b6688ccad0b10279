package mime

import (
	"bytes"
	"strings"
)

// cut is a line that may divide a multipart.
type cut struct {
	start, next int64
	close       bool
	exact       bool // nothing follows the boundary but blanks
}

// cuts are the lines from start to end that begin with the boundary.
func (s *source) cuts(start, end int64, boundary string) (cuts []cut, seen int64) {
	for _, d := range s.lines[s.first(start):] {
		if d.start >= end {
			break
		}
		seen++
		text := s.lineText(d)[2:]
		if len(text) < len(boundary) || string(text[:len(boundary)]) != boundary {
			continue
		}
		c := cut{start: d.start, next: min(d.next, end)}
		rest := text[len(boundary):]
		if bytes.HasPrefix(rest, []byte("--")) {
			c.close, rest = true, rest[2:]
		}
		c.exact = len(bytes.TrimRight(rest, " \t\r")) == 0 && d.length < delimiterText
		cuts = append(cuts, c)
	}
	return cuts, seen
}

// multipart reads a multipart whose body begins at from, under each boundary that
// it may have. found is false if there are readers for whom none of them divides
// it.
func (e *entity) multipart(src *source, from int64, reading Reading) (found bool, err error) {
	if from > e.end(src) {
		return false, nil
	}
	good := false
	for _, b := range e.boundaries {
		if b.text == "" {
			continue
		}
		ok, parts, err := e.split(src, from, e.end(src), b.text, reading|b.reading)
		if err != nil {
			return false, err
		}
		if ok {
			e.noteBoundary(b)
		}
		good = good || ok
		found = found || parts && b.reading.sameAs(e.p.Reading)
	}
	if !good {
		// Without a boundary there may be no parts: it is a text then, too.
		e.find(BoundaryBad, e.p, "")
		if _, err := e.guess(src, from, e.end(src), reading|because(BoundaryBad, BoundaryGuessed), true); err != nil {
			return false, err
		}
	}
	return found, e.encodedMultipart(src, from, reading)
}

// noteBoundary notes a boundary that is used but is not the standard's.
func (e *entity) noteBoundary(b boundary) {
	for _, x := range (b.reading &^ e.p.Reading).Reasons() {
		e.find(x, e.p, b.text)
	}
}

// encodedMultipart splits what a multipart decodes to, which RFC 2045 §6.4 does
// not allow, and clients do.
func (e *entity) encodedMultipart(src *source, from int64, reading Reading) error {
	if src != e.p.src {
		return nil
	}
	for _, enc := range e.encodings {
		if enc.how == Identity {
			continue
		}
		e.find(EncodedContainer, e.p, "")
		err := e.decoded(src, from, enc, reading|because(EncodedContainer), func(d *source, r Reading) error {
			for _, b := range e.boundaries {
				if _, _, err := e.split(d, 0, d.size, b.text, r|b.reading); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// split adds the parts between the lines of a boundary: those up to the closing
// delimiter, then those that only other readers see. found is whether a line is
// the boundary and nothing else, and parts whether one of those begins a part: by
// the standard there are none otherwise.
func (e *entity) split(src *source, from, end int64, b string, reading Reading) (found, parts bool, err error) {
	cuts, seen := src.cuts(from, end, b)
	if !e.spend(seen*32, e.p) {
		return false, false, nil
	}
	var strict, exact []cut
	closed, after, prefix := false, false, false
	for _, c := range cuts {
		if !c.exact {
			prefix = true
			continue
		}
		exact = append(exact, c)
		if closed {
			after = true
			continue
		}
		strict = append(strict, c)
		closed, parts = c.close, parts || !c.close
	}
	if err := e.between(src, from, end, strict, reading, 0); err != nil {
		return false, false, err
	}
	if len(strict) > 0 && !closed {
		e.find(Unterminated, e.p, "")
		if err := e.beyond(src, from, b, reading); err != nil {
			return true, parts, err
		}
	}
	if after {
		e.find(AfterClose, e.p, "")
		if err := e.between(src, from, end, exact, reading, AfterClose); err != nil {
			return true, parts, err
		}
	}
	if prefix {
		e.find(BoundaryPrefix, e.p, b)
		if len(exact) == 0 {
			e.find(BoundaryBad, e.p, b)
		}
		if err := e.between(src, from, end, cuts, reading, BoundaryPrefix); err != nil {
			return true, parts, err
		}
	}
	return len(exact) > 0, parts, nil
}

// beyond splits on, behind the part's end, for a reader who looks for the inner
// boundary alone.
func (e *entity) beyond(src *source, from int64, b string, reading Reading) error {
	end := e.end(src)
	if end == src.size || src.first(end) == len(src.lines) {
		return nil
	}
	cuts, seen := src.cuts(end, src.size, b)
	if !e.spend(seen*32, e.p) || len(cuts) == 0 {
		return nil
	}
	e.find(BoundaryBeyond, e.p, b)
	before, _ := src.cuts(from, end, b)
	return e.between(src, from, src.size, append(before, cuts...), reading, BoundaryBeyond)
}

// between adds the parts between cuts, with what stands before and behind them.
// why is the reason for parts that are not there yet; 0 with strict cuts.
func (e *entity) between(src *source, from, end int64, cuts []cut, reading Reading, why Reason) error {
	if len(cuts) == 0 {
		return nil
	}
	if why != 0 {
		reading |= because(why)
	}
	if err := e.outside(src, from, cuts[0].start, Preamble, reading); err != nil {
		return err
	}
	kind := plainText
	if e.p.Types[0].Value == "multipart/digest" {
		kind = messageType
	}
	for i, c := range cuts {
		stop := end
		if i+1 < len(cuts) {
			stop = cuts[i+1].start
		}
		stop = max(stop, c.next)
		if c.close && (why == 0 || i+1 == len(cuts)) {
			if err := e.outside(src, c.next, stop, Epilogue, reading); err != nil {
				return err
			}
			continue
		}
		if i+1 < len(cuts) {
			var err error
			if stop, err = src.beforeEOL(c.next, stop); err != nil {
				return err
			}
		}
		e.add(e.p, src, c.next, stop, Entity, reading, kind)
		if e.full {
			return nil
		}
	}
	return nil
}

// beforeEOL is end without the line end before it, which belongs to the delimiter
// (RFC 2046 §5.1.1).
func (s *source) beforeEOL(start, end int64) (int64, error) {
	n := min(2, end-start)
	b, err := s.view(end-n, n)
	if err != nil {
		return end, err
	}
	if n > 0 && b[n-1] == '\n' {
		end--
		if n > 1 && b[0] == '\r' {
			end--
		}
	}
	return end, nil
}

// outside adds a preamble or epilogue, if it says anything.
func (e *entity) outside(src *source, start, end int64, role Role, reading Reading) error {
	if start >= end {
		return nil
	}
	if nothing, err := e.blank(src, start, end); nothing || err != nil {
		return err
	}
	e.add(e.p, src, start, end, role, reading, plainText)
	return nil
}

// guess adds the parts that seem to stand between lines that a Content field
// follows. desperate says that there must be parts: then any line will do that
// begins like a delimiter.
func (e *entity) guess(src *source, from, end int64, reading Reading, desperate bool) (found bool, err error) {
	lo := src.first(from)
	texts := map[string]bool{}
	hi := lo
	for ; hi < len(src.lines) && src.lines[hi].start < end; hi++ {
		if d := src.lines[hi]; d.field && len(texts) < maxGuessed {
			texts[strings.TrimRight(string(src.lineText(d)), " \t\r")] = true
		}
	}
	if !e.spend(int64(hi-lo)*32, e.p) {
		return false, nil
	}
	if len(texts) == 0 && desperate && hi > lo {
		texts[strings.TrimRight(string(src.lineText(src.lines[lo])), " \t\r")] = true
	}
	if len(texts) == 0 {
		return false, nil
	}
	var cuts []cut
	for _, d := range src.lines[lo:hi] {
		text := strings.TrimRight(string(src.lineText(d)), " \t\r")
		closing := len(text) > 2 && texts[strings.TrimSuffix(text, "--")] && !texts[text]
		if closing || texts[text] {
			cuts = append(cuts, cut{start: d.start, next: min(d.next, end), close: closing, exact: true})
		}
	}
	return true, e.between(src, from, end, cuts, reading, BoundaryGuessed)
}

// maxGuessed bounds the boundaries that one guess may find.
const maxGuessed = 100
