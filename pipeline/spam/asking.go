package spam

import (
	"errors"
	"fmt"
	"strings"

	"github.com/postern-mta/postern/pipeline/reply"
)

// Asking is what the options of filters that have servers score a message have in
// common, each with words of its own in its documentation. The keys are connections,
// max, large and user.
type Asking struct {
	// Connections is how many messages a server is given at a time, at most Most.
	Connections, Most int
	// Max is the largest message that is scored, in bytes.
	Max int64
	// Large is what is done with a larger one: skip or prefix.
	Large string
	// User is for whom it is scored: none, recipient, or a name.
	User string
}

const (
	maxMax  = 1 << 30
	maxWord = 200
)

// Check looks at options. With an error comes the key that it is about.
func (a Asking) Check() (key string, err error) {
	switch {
	case a.Connections < 1 || a.Connections > a.Most:
		return "connections", fmt.Errorf("%d: write a number from 1 to %d", a.Connections, a.Most)
	case a.Max < 1 || a.Max > maxMax:
		return "max", fmt.Errorf("%d: write a number from 1 to %d", a.Max, maxMax)
	case a.Large != "skip" && a.Large != "prefix":
		return "large", fmt.Errorf("%q: write skip or prefix", reply.Clean(a.Large, 80))
	case !IsWord(a.User):
		return "user", errors.New("write none, recipient, or the name of a user: printable ASCII without blanks")
	}
	return "", nil
}

// IsWord reports whether a name can stand in a request to a scorer: printable ASCII
// without blanks, at most 200 bytes.
func IsWord(s string) bool {
	return s != "" && len(s) <= maxWord && !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' })
}
