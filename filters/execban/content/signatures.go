package content

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
)

// Signatures are the prefixes of qmail's control/signatures: each line is
// compared with the first line of the content of a part as it stands there, not
// decoded (the viruscan patch of qmail-smtpd); an asterisk stands for any one
// byte (qmail-ldap). They do not change and may be used by many at a time.
type Signatures struct {
	all [256][]string // by the first byte
	any []string      // that begin with an asterisk
	n   int
}

const (
	maxSignature  = 1024 // bytes
	maxSignatures = 100_000
)

// ParseSignatures reads a file of signatures as qmail reads its control files:
// blanks at the end of a line go, empty lines and those that begin with # are
// left out. An error names the line.
func ParseSignatures(r io.Reader) (*Signatures, error) {
	s := &Signatures{}
	lines := bufio.NewScanner(r)
	for number := 1; lines.Scan(); number++ {
		line := string(bytes.TrimRight(lines.Bytes(), " \t\r\x00"))
		switch {
		case line == "" || line[0] == '#':
			continue
		case len(line) > maxSignature:
			return nil, fmt.Errorf("line %d: a signature of %d bytes; at most %d", number, len(line), maxSignature)
		case s.n == maxSignatures:
			return nil, fmt.Errorf("line %d: more than %d signatures", number, maxSignatures)
		case len(bytes.Trim([]byte(line), "*")) == 0:
			return nil, fmt.Errorf("line %d: a signature of asterisks only would match every message", number)
		}
		s.n++
		if line[0] == '*' {
			s.any = append(s.any, line)
		} else {
			s.all[line[0]] = append(s.all[line[0]], line)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("after %d signatures: %w", s.n, err)
	}
	return s, nil
}

// Len is how many signatures there are; a nil *Signatures has none.
func (s *Signatures) Len() int {
	if s == nil {
		return 0
	}
	return s.n
}

// Match is the signature that a line begins with, which must be longer than it,
// as viruscan has it; "" if there is none. The line comes with or without its
// end.
func (s *Signatures) Match(line []byte) string {
	if s == nil || len(line) == 0 {
		return ""
	}
	for _, list := range [...][]string{s.all[line[0]], s.any} {
		for _, sig := range list {
			if begins(line, sig) {
				return sig
			}
		}
	}
	return ""
}

func begins(line []byte, sig string) bool {
	if len(sig) >= len(line) {
		return false
	}
	for i := range len(sig) {
		if sig[i] != line[i] && sig[i] != '*' {
			return false
		}
	}
	return true
}
