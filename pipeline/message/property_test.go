package message

import (
	"io"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/postern-mta/postern/pipeline/reply"
)

// chunked gives its bytes in pieces of the lengths in sizes, over and over.
type chunked struct {
	rest  string
	sizes []int
	next  int
}

func (c *chunked) Read(p []byte) (int, error) {
	if c.rest == "" {
		return 0, io.EOF
	}
	n := len(c.rest)
	if len(c.sizes) > 0 {
		n = c.sizes[c.next%len(c.sizes)]
		c.next++
	}
	n = copy(p[:min(len(p), n)], c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// canonical is what Repair makes of a message, the plain way.
func canonical(s string) string {
	s = strings.ReplaceAll(s, "\r\n", "\n")
	s = strings.ReplaceAll(s, "\r", "\n")
	s = strings.ReplaceAll(s, "\x00", "")
	if s != "" && !strings.HasSuffix(s, "\n") {
		s += "\n"
	}
	return s
}

// checkPieces reads in, whole and in pieces, and compares.
func checkPieces(t tester, in string, o Options, sizes []int) (Message, error) {
	t.Helper()
	whole, err := Read(strings.NewReader(in), o)
	pieces, err2 := Read(&chunked{rest: in, sizes: sizes}, o)
	if reply.Of(err) != reply.Of(err2) {
		t.Fatalf("%q: %v, in pieces of %v: %v", in, err, sizes, err2)
	}
	if whole.Head().String() != pieces.Head().String() || !slices.Equal(whole.head.fields, pieces.head.fields) ||
		string(whole.Bytes()) != string(pieces.Bytes()) || whole.WireSize() != pieces.WireSize() || whole.Form() != pieces.Form() {
		t.Fatalf("%q: %q, in pieces of %v: %q", in, whole.Bytes(), sizes, pieces.Bytes())
	}
	pieces.Body().Release()
	return whole, err
}

// checkRead holds what Read promises against one input.
func checkRead(t tester, in string, sizes []int) {
	t.Helper()
	kept, err := checkPieces(t, in, Options{Lines: Keep}, sizes)
	if err != nil || string(kept.Bytes()) != in {
		t.Fatalf("%q was kept as %q: %v", in, kept.Bytes(), err)
	}
	repaired, err := checkPieces(t, in, Options{Lines: Repair}, sizes)
	if want := canonical(in); err != nil || string(repaired.Bytes()) != want {
		t.Fatalf("%q was repaired to %q, not %q: %v", in, repaired.Bytes(), want, err)
	}
	refused, err := checkPieces(t, in, Options{Lines: Refuse}, sizes)
	if bad := strings.ContainsAny(in, "\r\x00"); bad != (err != nil) || bad && reply.Of(err) != reply.BadLines || !bad && string(refused.Bytes()) != canonical(in) {
		t.Fatalf("%q was taken as %q: %v", in, refused.Bytes(), err)
	}
	for _, m := range []Message{kept, repaired, refused} {
		checkViews(t, m)
		checkStored(t, m)
		h, rest := ParseHead(string(m.Bytes()))
		if !slices.Equal(h.fields, m.head.fields) || h.separator != m.head.separator || rest != string(m.Bytes()[len(h.String()):]) {
			t.Fatalf("%q has head %q, read again %q", m.Bytes(), m.head, h)
		}
		for i := range h.Len() {
			if f := h.Field(i); strings.Contains(f.Value(), "\n") || f.Name() != "" && (!f.Is(f.Name()) || !strings.HasPrefix(f.Text(), f.Name())) {
				t.Fatalf("%q is %q with value %q", f.Text(), f.Name(), f.Value())
			}
		}
		m.Body().Release()
	}
	limited, _ := checkPieces(t, in, Options{Lines: Keep, MaxHead: 20, MaxFields: 3}, sizes)
	if len(limited.Head().String()) > 20+len("\r\n") || limited.Head().Len() > 3 {
		t.Fatalf("%q beyond its limits", limited.Head())
	}
}

// drawMessage is made of the bytes and words that mean something in a message.
func drawMessage(t *rapid.T) string {
	piece := rapid.SampledFrom([]string{
		"\n", "\r\n", "\r", "\x00", " ", "\t", ":", "a", "B", ".", "\x7f", "\xff", "\u20ac",
		"A: b\n", "B : c\r\n", "From ", ">From x\n", "From : x\n", "\n\n", "x\n", " fold\n", "Subject: \u20ac\n",
	})
	return strings.Join(rapid.SliceOfN(piece, 0, 30).Draw(t, "message"), "")
}

func TestReadDoesNotDependOnPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawMessage(t)
		checkRead(t, in, rapid.SliceOfN(rapid.IntRange(1, 7), 1, 5).Draw(t, "sizes"))
	})
}

// applyPlainly is the model of an edit: on a list of field texts.
func applyPlainly(h Head, e FieldEdit) []string {
	var texts []string
	var found []int // indices of the fields of that name
	for i := range h.Len() {
		texts = append(texts, h.Field(i).Text())
		if name := h.Field(i).Name(); isASCII([]byte(name)) && strings.EqualFold(name, e.Name) {
			found = append(found, i)
		}
	}
	text := e.Name + ": " + e.Value + "\n"
	endLast := func() {
		if n := len(texts); n > 0 && !strings.HasSuffix(texts[n-1], "\n") {
			texts[n-1] += "\n"
		}
	}
	add := func() {
		top := 0
		if e.Op == Add {
			top = min(max(e.Nth, 0), len(texts))
		}
		if top == 0 && h.Len() > 0 && h.Field(0).Name() == "" {
			top = 1
		}
		if top == len(texts) {
			endLast()
		}
		texts = slices.Insert(texts, top, text)
	}
	switch {
	case e.Nth > 0 && e.Nth <= len(found):
		found = found[e.Nth-1 : e.Nth]
	case e.Nth < 0 && -e.Nth <= len(found):
		found = found[len(found)+e.Nth : len(found)+e.Nth+1]
	case e.Nth != 0:
		found = nil
	}
	switch {
	case e.Op == Add || e.Op == Replace && len(found) == 0:
		add()
		return texts
	case e.Op == Append:
		endLast()
		return append(texts, text)
	}
	for k, i := range slices.Backward(found) {
		if e.Op == Replace && k == 0 {
			texts[i] = text
		} else {
			texts = slices.Delete(texts, i, i+1)
		}
	}
	return texts
}

// checkEdit makes one edit and holds it against the model and the promises.
func checkEdit(t tester, m Message, e FieldEdit) Message {
	t.Helper()
	before := string(m.Bytes())
	h, err := m.Head().Edit(e)
	edited := m.WithHead(h)
	if string(m.Bytes()) != before {
		t.Fatalf("%q became %q by %q", before, m.Bytes(), e)
	}
	if (err != nil) != (e.Check() != nil) || err != nil && string(edited.Bytes()) != before {
		t.Fatalf("%q by %q is %q: %v", before, e, edited.Bytes(), err)
	}
	if err != nil {
		return m
	}
	var texts []string
	for i := range h.Len() {
		texts = append(texts, h.Field(i).Text())
	}
	if want := applyPlainly(m.Head(), e); !slices.Equal(texts, want) {
		t.Fatalf("%q by %q: fields %q, want %q", before, e, texts, want)
	}
	again, rest := ParseHead(string(edited.Bytes()))
	if body, _ := m.Body().Memory(); !slices.Equal(again.fields, h.fields) || rest != string(body) {
		t.Fatalf("%q by %q is %q, read again with head %q and body %q", before, e, edited.Bytes(), again, rest)
	}
	checkViews(t, edited)
	checkStored(t, edited)
	return edited
}

func TestEditLeavesTheRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := FromString(drawMessage(t))
		for range rapid.IntRange(1, 5).Draw(t, "edits") {
			m = checkEdit(t, m, FieldEdit{
				Op:    EditOp(rapid.IntRange(0, len(editOps)).Draw(t, "op")),
				Name:  rapid.SampledFrom([]string{"A", "a", "B", "From", "X", "", "X:", "X\nY"}).Draw(t, "name"),
				Value: rapid.SampledFrom([]string{"", "v", "v\n w", "\u20ac", "v\n", "v\nBcc: w", "v\r\n w", "v\n \n w"}).Draw(t, "value"),
				Nth:   rapid.IntRange(-3, 3).Draw(t, "nth"),
			})
		}
	})
}
