package smtp

import (
	"strconv"
	"strings"
)

// Extensions is a set of SMTP service extensions.
type Extensions uint32

// The extensions that mean something here.
const (
	Pipelining  Extensions = 1 << iota // RFC 2920
	EightBit                           // 8BITMIME, RFC 6152
	SizeLimit                          // SIZE, RFC 1870
	StartTLS                           // RFC 3207
	DSN                                // RFC 3461
	UTF8                               // SMTPUTF8, RFC 6531
	Chunking                           // RFC 3030
	RequireTLS                         // RFC 8689
	Limits                             // RFC 9422
	Auth                               // RFC 4954
	StatusCodes                        // ENHANCEDSTATUSCODES, RFC 2034
)

var extensionNames = [...]string{
	"PIPELINING", "8BITMIME", "SIZE", "STARTTLS", "DSN", "SMTPUTF8", "CHUNKING", "REQUIRETLS", "LIMITS", "AUTH",
	"ENHANCEDSTATUSCODES",
}

// Has reports whether all of want are in the set.
func (e Extensions) Has(want Extensions) bool { return e&want == want }

// String lists the keywords.
func (e Extensions) String() string {
	var all []string
	for i, name := range extensionNames {
		if e&(1<<i) != 0 {
			all = append(all, name)
		}
	}
	return strings.Join(all, " ")
}

// Capabilities is what a server said in its answer to EHLO.
type Capabilities struct {
	Extensions Extensions
	// Size is the largest message in bytes, 0 if none was named (RFC 1870 §4).
	Size int64
	// MailMax, RcptMax and RcptDomainMax are the LIMITS of RFC 9422 §4; 0 is none.
	MailMax, RcptMax, RcptDomainMax int
	// Auth are the mechanisms, in capitals.
	Auth []string
}

// maxMechanisms is how many mechanisms of AUTH are kept.
const maxMechanisms = 30

// ParseCapabilities reads the answer to EHLO (RFC 5321 §4.1.1.1). Keywords that
// mean nothing here are passed over.
func ParseCapabilities(r Reply) Capabilities {
	var c Capabilities
	_, lines, _ := strings.Cut(r.Text, "\n")
	for line := range strings.SplitSeq(lines, "\n") {
		words := strings.Fields(strings.ToUpper(line))
		if len(words) == 0 {
			continue
		}
		keyword, args := words[0], words[1:]
		// Old servers wrote "AUTH=LOGIN"; it says the same.
		if rest, ok := strings.CutPrefix(keyword, "AUTH="); ok {
			keyword, args = "AUTH", append([]string{rest}, args...)
		}
		for i, name := range extensionNames {
			if keyword == name {
				c.Extensions |= 1 << i
				c.argue(1<<i, args)
			}
		}
	}
	return c
}

func (c *Capabilities) argue(e Extensions, args []string) {
	switch e {
	case SizeLimit:
		if len(args) > 0 {
			if n, err := strconv.ParseInt(args[0], 10, 64); err == nil && n > 0 {
				c.Size = n
			}
		}
	case Auth:
		for _, a := range args[:min(len(args), maxMechanisms-len(c.Auth))] {
			c.Auth = append(c.Auth, strings.Clone(a)) // or all of the answer would be kept
		}
	case Limits:
		limits := map[string]*int{"MAILMAX": &c.MailMax, "RCPTMAX": &c.RcptMax, "RCPTDOMAINMAX": &c.RcptDomainMax}
		for _, a := range args {
			name, value, _ := strings.Cut(a, "=")
			if p := limits[name]; p != nil {
				if n, err := strconv.Atoi(value); err == nil && n > 0 {
					*p = n
				}
			}
		}
	}
}
