// Plugin is a plugin of Postern for the benchmark of foreign filters: it adds a
// field, having been given the head; or, with the argument "body", having read
// the whole body.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/postern-mta/postern/plugins/sdk"
)

var buffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

func main() {
	p := sdk.Plugin[sdk.None]{
		Name: "seen", Version: "1", Doc: "adds a field", Needs: sdk.NeedsHead, Edits: sdk.EditsHead,
		Message: func(_ context.Context, _ *sdk.None, m *sdk.Message) (sdk.Verdict, error) {
			if m.Get("From") == "" {
				return sdk.Continue(), fmt.Errorf("a head of %d bytes without From", m.HeadSize)
			}
			return sdk.Continue().AddField("X-Seen", "yes"), nil
		},
	}
	if len(os.Args) > 1 && os.Args[1] == "body" {
		p.Needs, p.Message = sdk.NeedsBody, read
	}
	sdk.Main(p)
}

func read(_ context.Context, _ *sdk.None, m *sdk.Message) (sdk.Verdict, error) {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{m.Body()}, *b)
	if err == nil && n != m.BodySize {
		err = fmt.Errorf("%d bytes of a body of %d", n, m.BodySize)
	}
	if err != nil {
		return sdk.Continue(), err
	}
	return sdk.Continue().AddField("X-Seen", "yes"), nil
}
