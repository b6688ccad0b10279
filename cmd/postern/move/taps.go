package move

import (
	"strings"

	"github.com/postern-mta/postern/filters/tap"
	"github.com/postern-mta/postern/pipeline"
)

// maxTaps is how many rules a filter tap has.
const maxTaps = 4096

// taps makes a filter tap of control/taps.
func (im *importer) taps(f *file) error {
	var rules []lineText
	for _, l := range f.parsed() {
		if len(rules) == maxTaps {
			f.none(l, "it and the lines behind it make more than %d taps, which one filter holds. Instead: a second filter of kind tap with them.", maxTaps)
			break
		}
		if _, err := tap.New(pipeline.Env{Secret: noSecret}, tap.Options{Rules: []string{l.text}}); err != nil {
			f.none(l, "this tap copied what qmail found its expression in, or nothing, if the expression is wrong; here a wrong line is an error: %v. Instead: write it anew.", err)
			continue
		}
		rules = append(rules, lineText{l, l.text})
	}
	if len(rules) == 0 {
		f.about = append(f.about, "There is no tap in it.")
		return nil
	}
	f.remark("a copy is a message of its own with an empty sender here, marked so that it is never tapped again; in qmail it is one more recipient of the message, and the sender hears of an archive that is full. With compat = true it is as in qmail.")
	b := im.add(f, "tap", "tap")
	b.lines("rules", f, rules)
	return nil
}

// noSecret stands in where a filter is only made to see whether it can be.
func noSecret(purpose string) []byte { return []byte(strings.Repeat("x", 32)) }
