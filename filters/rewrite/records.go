package rewrite

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/postern-mta/postern/rules"
)

// Records are the entries of a file as a cdb has them, in the order of their keys:
// a filter with that cdb in place of the file rewrites alike. With senders the file
// is one for a filter of senders. A pattern has no key: it is an error. Errors name
// file and line.
func Records(path string, senders bool) ([]rules.CDBRecord, error) {
	t, _, err := readTable(path, senders)
	if err != nil {
		return nil, err
	}
	var wrong []error
	for _, e := range t.ordered {
		wrong = append(wrong, fmt.Errorf("%s: a pattern cannot be in a cdb: leave it in a file of its own, as a map behind the cdb", e.where))
	}
	records := make([]rules.CDBRecord, 0, len(t.entries))
	for key, e := range t.entries {
		value := strings.Join(e.targets, ", ")
		if len(value) > maxLine {
			wrong = append(wrong, fmt.Errorf("%s: the right side has more than %d bytes", e.where, maxLine))
		}
		records = append(records, rules.CDBRecord{Key: key, Value: value})
	}
	slices.SortFunc(records, func(a, b rules.CDBRecord) int { return strings.Compare(a.Key, b.Key) })
	if err := errors.Join(wrong...); err != nil {
		return nil, err
	}
	return records, nil
}
