package pattern

import (
	stdbytes "bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/mime"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/worker"
)

// finding is a pattern that was found, and where first.
type finding struct {
	Pattern int
	Part    string
	Reading string
}

// where is the place in words.
func (x finding) where() string {
	if x.Reading == "" || x.Reading == "strict" {
		return "part " + x.Part
	}
	return "part " + x.Part + " [" + x.Reading + "]"
}

const (
	maxPart    = 60
	maxReading = 160
	// maxHead bounds a head that is looked at, in bytes.
	maxHead = 1 << 20
	// texts is how many times what is looked at of a text is looked at in a message.
	texts = 16
)

// decode reads an answer as one reads what a stranger sent: the worker that
// wrote it may not be itself any more.
func decode(b []byte, patterns int) (all []finding, err error) {
	d := json.NewDecoder(stdbytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&all); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something behind the findings")
	}
	for i, x := range all {
		switch {
		case x.Pattern < 0 || x.Pattern >= patterns:
			return nil, fmt.Errorf("there is no pattern %d", x.Pattern)
		case i > 0 && x.Pattern <= all[i-1].Pattern:
			return nil, errors.New("findings out of order")
		case x.Part != reply.Clean(x.Part, maxPart) || x.Reading != reply.Clean(x.Reading, maxReading):
			return nil, errors.New("a text that is not clean")
		}
	}
	return all, nil
}

// orders are a request made ready.
type orders struct {
	request
	exprs []*regexp.Regexp
}

func parseRequest(b []byte) (*orders, error) {
	o := &orders{}
	if err := json.Unmarshal(b, &o.request); err != nil {
		return nil, fmt.Errorf("the filter's request: %w", err)
	}
	for _, w := range o.Patterns {
		re, err := regexp.Compile(w.Expr)
		if err != nil {
			return nil, fmt.Errorf("the filter's request: %w", err)
		}
		o.exprs = append(o.exprs, re)
	}
	return o, nil
}

// Jobs are what the filter needs done in a worker, for worker.Main.
func Jobs() map[string]worker.Job {
	ordersOf := worker.Alike(parseRequest)
	return map[string]worker.Job{Name: func(ctx context.Context, args []byte, body io.ReaderAt, size int64, scratch *worker.Scratch) ([]byte, error) {
		o, err := ordersOf(args)
		if err != nil {
			return nil, err
		}
		found, err := o.scan(ctx, body, size, scratch)
		if err != nil {
			return nil, err
		}
		return json.Marshal(found)
	}}
}

// scanner is one scan of a message.
type scanner struct {
	*orders
	ctx   context.Context
	found []*finding // by pattern
	left  int64      // how many bytes of texts may still be looked at
}

// scan looks for the patterns in a message.
func (o *orders) scan(ctx context.Context, body io.ReaderAt, size int64, scratch *worker.Scratch) ([]finding, error) {
	s := &scanner{orders: o, ctx: ctx, found: make([]*finding, len(o.Patterns)), left: texts * o.Max}
	if !s.wants(inText) && !s.wants(inNames) {
		size = min(size, maxHead) // nobody looks behind the head
	}
	m, err := mime.Read(ctx, body, size, mime.Options{Spool: pipeline.ScratchSpool(scratch)})
	if err != nil {
		return nil, err
	}
	defer m.Close() //nolint:errcheck // the space is given back at the job's end in any case
	if err := s.head(m.Root); err != nil {
		return nil, err
	}
	for p := range m.Walk() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.names(p)
		if s.wants(inText) {
			if err := s.texts(p); err != nil {
				return nil, err
			}
		}
	}
	all := []finding{}
	for _, x := range s.found {
		if x != nil {
			all = append(all, *x)
		}
	}
	return all, nil
}

// wants reports whether a pattern that was not found yet looks there.
func (s *scanner) wants(in string) bool {
	for i, w := range s.Patterns {
		if w.In == in && s.found[i] == nil {
			return true
		}
	}
	return false
}

// look searches a text for the patterns that look there.
func (s *scanner) look(p *mime.Part, reading mime.Reading, in, field, text string) {
	if text == "" {
		return
	}
	for i, w := range s.Patterns {
		if s.found[i] == nil && w.In == in && strings.EqualFold(w.Field, field) && s.exprs[i].MatchString(text) {
			s.found[i] = &finding{i, reply.Clean(p.Path, maxPart), reply.Clean((p.Reading | reading).String(), maxReading)}
		}
	}
}

// head looks at the fields of the message's head.
func (s *scanner) head(root *mime.Part) error {
	if !s.wants(inHeader) && !s.wants(inAnyHeader) {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(root.Header(), maxHead))
	if err != nil {
		return err
	}
	h, _ := message.ParseHead(string(b))
	for i := range h.Len() {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		f := h.Field(i)
		name, value := strings.TrimRight(f.Name(), " \t"), f.Value()
		for _, v := range variants(value, mime.DecodeWords(value)) {
			s.look(root, 0, inHeader, name, v)
			s.look(root, 0, inAnyHeader, "", name+": "+v)
		}
	}
	return nil
}

// names looks at the names that a part may have.
func (s *scanner) names(p *mime.Part) {
	if !s.wants(inNames) {
		return
	}
	for _, n := range p.Names {
		forms := []string{strings.ToValidUTF8(n.Text, "\ufffd")}
		for _, normal := range n.Normal() {
			forms = append(forms, normal.Text)
		}
		for _, form := range variants(forms...) {
			s.look(p, n.Reading, inNames, "", form)
		}
	}
}

// texts looks at a part's contents, if they are texts in some reading.
func (s *scanner) texts(p *mime.Part) error {
	html, is := false, p.Role != mime.Entity && p.Role != mime.Embedded
	for _, t := range p.Types {
		is = is || strings.HasPrefix(t.Value, "text/")
		html = html || t.Value == "text/html"
	}
	if !is {
		return nil
	}
	charsets, err := charsetsOf(p)
	if err != nil {
		return err
	}
	for _, c := range p.Contents {
		if s.left <= 0 || !s.wants(inText) {
			return nil
		}
		b, err := io.ReadAll(io.LimitReader(c.Open(), min(s.Max, s.left)))
		if err != nil {
			return err
		}
		s.left -= int64(len(b))
		for _, charset := range charsets {
			text := mime.DecodeCharset(charset, string(b))
			forms := []string{visible(text)}
			if html || looksLikeHTML(text) {
				forms = append(forms, visible(plain(text)))
			}
			for _, form := range variants(forms...) {
				s.look(p, c.Reading, inText, "", form)
			}
			if err := s.ctx.Err(); err != nil {
				return err
			}
		}
	}
	return nil
}

// variants are texts, each once.
func variants(all ...string) []string {
	slices.Sort(all)
	return slices.Compact(all)
}
