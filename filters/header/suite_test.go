package header

import (
	"testing"

	"github.com/postern-mta/postern/pipeline/filtertest"
)

// The suite that every filter passes, and what the operations make of odd heads.
func TestSuite(t *testing.T) {
	const add = "[[rule]]\nop = \"add\"\nname = \"X-New\"\nvalue = \"yes\"\n"
	const appended = "[[rule]]\nop = \"append\"\nname = \"X-New\"\nvalue = \"yes\"\n"
	const remove = "[[rule]]\nop = \"remove\"\nname = \"X-Old\"\n"
	const replace = "[[rule]]\nop = \"replace\"\nname = \"X-Old\"\nvalue = \"new\"\n"
	filtertest.Run(t, filtertest.Suite{
		Kind: Kind(), Config: add + remove + replace + "when = 'external'\n" + appended,
		Cases: []filtertest.Case{
			{Name: "add above", Config: add, Message: "A: 1\n\nb\n", WantMessage: "X-New: yes\nA: 1\n\nb\n", WantEdits: []string{"add X-New: yes"}},
			{Name: "append below", Config: appended, Message: "A: 1\n\nb\n", WantMessage: "A: 1\nX-New: yes\n\nb\n"},
			{Name: "remove all of a name", Config: remove, Message: "x-old: 1\nA: 1\nX-OLD: 2\n folded\n\nb\n", WantMessage: "A: 1\n\nb\n"},
			{Name: "remove what is not there", Config: remove, Message: "A: 1\n\nb\n", WantMessage: "A: 1\n\nb\n"},
			{Name: "replace the first", Config: replace, Message: "A: 1\nX-Old: 1\nX-Old: 2\n\nb\n", WantMessage: "A: 1\nX-Old: new\n\nb\n"},
			{Name: "replace what is not there", Config: replace, Message: "A: 1\n\nb\n", WantMessage: "X-Old: new\nA: 1\n\nb\n"},
			{Name: "no head", Config: add, Message: "body only, no colon\n", WantMessage: "X-New: yes\n\nbody only, no colon\n"},
			{Name: "head only", Config: appended, Message: "A: 1\n", WantMessage: "A: 1\nX-New: yes\n"},
			{Name: "head without an end of line", Config: appended, Message: "A: 1", WantMessage: "A: 1\nX-New: yes\n"},
			{Name: "blank first line", Config: add, Message: "\nA: 1\n", WantMessage: "X-New: yes\n\nA: 1\n"},
			{Name: "folded first line", Config: add, Message: " folded\nA: 1\n\nb\n", WantMessage: " folded\nX-New: yes\nA: 1\n\nb\n"},
			{Name: "blank before the colon", Config: remove, Message: "X-Old : 1\nA: 1\n\nb\n", WantMessage: "A: 1\n\nb\n"},
		},
	})
}
