package host

import (
	"bytes"
	"context"
	"fmt"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/plugins/wire"
)

// verdict makes one verdict of the parts of an answer, with their bodies. On an
// error there is none, and no body is held.
func (f *filter) verdict(ctx context.Context, parts []part) (v pipeline.Verdict, err error) {
	total := int64(0)
	for i := range parts {
		p := &parts[i]
		if p.body {
			if p.path == "" {
				p.verdict.Body, err = readBody(ctx, bytes.NewReader(p.inline), f.spool)
			} else {
				p.verdict.Body, err = f.v.shelf.take(ctx, p.path, f.spool)
			}
			if err == nil {
				if total += p.verdict.Body.Size(); total > maxBody {
					err = fmt.Errorf("new bodies of more than %d bytes together", maxBody)
				}
			}
			if err != nil {
				releaseParts(parts)
				return pipeline.Verdict{}, err
			}
		}
	}
	if len(parts) == 0 {
		return v, nil
	}
	v = parts[0].verdict
	for _, p := range parts[1:] {
		v.Others = append(v.Others, p.verdict)
	}
	return v, nil
}

func releaseParts(parts []part) {
	for i := range parts {
		if b := parts[i].verdict.Body; b != nil {
			b.Release() //nolint:errcheck // the spool sweeps what is left behind
			parts[i].verdict.Body = nil
		}
	}
}

// discard removes the files of an answer that does not count.
func (f *filter) discard(r *wire.JudgeReply) {
	for _, v := range r.GetVerdicts() {
		if path := v.GetPath(); path != "" {
			f.v.shelf.discard(path)
		}
	}
}
