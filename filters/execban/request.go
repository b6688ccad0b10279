package execban

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/postern-mta/postern/filters/execban/archive"
	"github.com/postern-mta/postern/filters/execban/content"
	"github.com/postern-mta/postern/pipeline/mime"
)

// request is what the worker is told beside the message: the same for every
// message of a filter.
type request struct {
	// Extensions are those of own classes, by extension.
	Extensions map[string]string `json:",omitempty"`
	// Signatures is a file of signatures.
	Signatures string `json:",omitempty"`
	// Strictness is from which severity on a finding about the structure makes
	// a message unscannable.
	Strictness strictness
	Archive    archive.Limits
	Parts      int
	Time       time.Duration
}

// encode writes a request for newScanner.
func (r *request) encode() ([]byte, error) { return json.Marshal(r) }

// orders are a request made ready.
type orders struct {
	request
	signatures *content.Signatures
	spare      sync.Pool // of *[]byte, of inMemory bytes
}

func parseRequest(b []byte) (*orders, error) {
	r := &orders{}
	if err := json.Unmarshal(b, &r.request); err != nil {
		return nil, fmt.Errorf("the filter's request: %w", err)
	}
	var err error
	if r.Signatures != "" {
		if r.signatures, err = content.ParseSignatures(strings.NewReader(r.Signatures)); err != nil {
			return nil, fmt.Errorf("the filter's signatures: %w", err)
		}
	}
	return r, nil
}

// strictness is a mime.Severity, or never.
type strictness uint8

const never = strictness(mime.Contradiction) + 1

func parseStrictness(s string) (strictness, bool) {
	if s == "never" {
		return never, true
	}
	v, ok := mime.ParseSeverity(s)
	return strictness(v), ok
}
