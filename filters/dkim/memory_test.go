package dkim

import (
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/message"
)

// endless is a body of one line again and again, which looks at the memory in
// use while it is read.
type endless struct {
	line  string // again and again, or reading it takes too long
	size  int64
	reads int
	most  uint64
}

func (e *endless) ReadAt(p []byte, off int64) (int, error) {
	if e.reads++; e.reads%64 == 0 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		e.most = max(e.most, m.HeapAlloc)
	}
	n := 0
	for n < len(p) && off+int64(n) < e.size {
		at := int((off + int64(n)) % int64(len(e.line)))
		n += copy(p[n:min(int64(len(p)), e.size-off)], e.line[at:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Memory does not grow with the size of a body, whatever it is made of.
func TestMemoryIsFlat(t *testing.T) {
	const size, room = 8 << 20, 5 << 20
	key := Key{Domain: "example.org", Selector: "sel", Signer: testKey(t, 0)}
	z := zone{}
	z.publish(t, key)
	for _, c := range []struct{ name, form, line string }{
		{"text", relaxed, strings.Repeat("x", 70) + "\n"},
		{"one line", relaxed, "x"},
		{"blank lines", relaxed, " \t\n"},
		{"line ends", simple, "\n"},
		{"CR", simple, "\r"},
		{"long runs", simple, strings.Repeat("\n", 15<<10) + "x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			body := &endless{line: strings.Repeat(c.line, chunk/len(c.line)+1), size: size}
			h, _ := message.ParseHead("From: joe@example.org\nSubject: x\n\n")
			m := message.New(h, message.StoredBody{At: body, Size: size, LFs: size / int64(len(c.line)) * int64(strings.Count(c.line, "\n"))}.Open())
			runtime.GC()
			var before runtime.MemStats
			runtime.ReadMemStats(&before)
			s := &Signer{HeaderForm: c.form, BodyForm: c.form}
			value, err := s.Sign(context.Background(), m, key)
			if err == nil {
				edited, edit := h.Edit(message.FieldEdit{Op: message.Add, Name: FieldName, Value: value})
				if edit != nil {
					t.Fatal(edit)
				}
				v := &Verifier{Look: z.look}
				results, _, err := v.Verify(context.Background(), m.WithHead(edited))
				if err != nil || results[0].Result != Pass {
					t.Errorf("%v, %v", results, err)
				}
			} else if !errors.Is(err, errBlank) {
				t.Error(err)
			}
			if body.most > before.HeapAlloc+room {
				t.Errorf("%d MiB are in use for a body of %d MiB", (body.most-before.HeapAlloc)>>20, size>>20)
			}
		})
	}
}
