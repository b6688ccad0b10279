package smtp

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
)

// The bounds of parameters: how many a command may have, and the lengths of
// ENVID and ORCPT in bytes (RFC 3461 §4.2, §4.4).
const (
	maxParams = 32
	maxEnvID  = 100
	maxORcpt  = 500
)

// The answers to commands that cannot be read.
var (
	badSender    = reply.Reply{Class: reply.Permanent, Code: 501, Enhanced: reply.Enhanced{Subject: 1, Detail: 7}, Text: "bad sender address syntax"}
	badRecipient = reply.Reply{Class: reply.Permanent, Code: 501, Enhanced: reply.Enhanced{Subject: 1, Detail: 3}, Text: "bad recipient address syntax"}
	needsUTF8    = reply.Reply{Class: reply.Permanent, Code: 553, Enhanced: reply.Enhanced{Subject: 6, Detail: 7}, Text: "address needs SMTPUTF8"}
	badParam     = reply.Reply{Class: reply.Permanent, Code: 501, Enhanced: reply.Enhanced{Subject: 5, Detail: 4}, Text: "bad parameter"}
	unknownParam = reply.Reply{Class: reply.Permanent, Code: 555, Enhanced: reply.Enhanced{Subject: 5, Detail: 4}, Text: "parameter not recognized"}
)

// Param is one ESMTP parameter; Name is in capitals.
type Param struct {
	Name, Value string
	// HasValue tells "NAME=" from "NAME".
	HasValue bool
}

var errParam = errors.New("bad parameter")

// ParseParams reads what follows a path: parameters separated by blanks (RFC
// 5321 §4.1.2, esmtp-param). None may come twice.
func ParseParams(s string) ([]Param, error) {
	var all []Param
	seen := map[string]bool{}
	for {
		rest := strings.TrimLeft(s, " \t")
		if rest == "" {
			return all, nil
		}
		if len(rest) == len(s) {
			return nil, fmt.Errorf("%w: no blank before it", errParam)
		}
		end := strings.IndexAny(rest, " \t")
		if end < 0 {
			end = len(rest)
		}
		p, err := parseParam(rest[:end])
		if err != nil {
			return nil, err
		}
		if seen[p.Name] || len(all) == maxParams {
			return nil, fmt.Errorf("%w: %s comes twice, or there are more than %d", errParam, p.Name, maxParams)
		}
		seen[p.Name] = true
		all = append(all, p)
		s = rest[end:]
	}
}

func parseParam(s string) (Param, error) {
	name, value, has := strings.Cut(s, "=")
	for i := 0; i < len(name); i++ {
		if !isAlnum(name[i]) && (name[i] != '-' || i == 0) {
			return Param{}, fmt.Errorf("%w: its name", errParam)
		}
	}
	if name == "" || has && value == "" {
		return Param{}, fmt.Errorf("%w: empty", errParam)
	}
	for i := 0; i < len(value); i++ {
		if c := value[i]; c <= ' ' || c > '~' || c == '=' && !strings.EqualFold(name, "AUTH") {
			return Param{}, fmt.Errorf("%w: value of %s", errParam, strings.ToUpper(name))
		}
	}
	return Param{strings.ToUpper(name), value, has}, nil
}

// Mail is a MAIL command as it was read.
type Mail struct {
	// Sender is the address, "" for <>.
	Sender string
	// Size is the SIZE parameter, 0 if none was given.
	Size int64
	// EightBit is set for BODY=8BITMIME.
	EightBit bool
	// UTF8 and RequireTLS are set for SMTPUTF8 and REQUIRETLS.
	UTF8, RequireTLS bool
	// Ret is FULL, HDRS or ""; EnvID is still xtext.
	Ret, EnvID string
	// Auth is the AUTH parameter, still xtext: "<>" or an address (RFC 4954 §5).
	Auth string
}

// ParseMail reads what follows "MAIL FROM:". Only parameters of the extensions
// offered are known. Errors are *reply.Error.
func ParseMail(args string, offered Extensions) (Mail, error) {
	var m Mail
	args = strings.TrimLeft(args, " ")
	// Whether UTF-8 may stand in the address is said behind it.
	address, rest, err := ParsePath(args, offered.Has(UTF8))
	if err != nil {
		return Mail{}, answered(err, badSender)
	}
	params, err := ParseParams(rest)
	if err != nil {
		return Mail{}, reply.With(badParam, err)
	}
	m.Sender = address
	for _, p := range params {
		if err := m.param(p, offered); err != nil {
			return Mail{}, err
		}
	}
	if !m.UTF8 && !isASCII(address) {
		return Mail{}, reply.With(needsUTF8, ErrUTF8)
	}
	return m, nil
}

func answered(err error, r reply.Reply) error {
	if errors.Is(err, ErrUTF8) {
		r = needsUTF8
	}
	return reply.With(r, err)
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func (m *Mail) param(p Param, offered Extensions) error {
	ok, known := true, offered
	switch p.Name {
	case "SIZE":
		known &= SizeLimit
		m.Size, ok = parseSize(p.Value)
	case "BODY":
		known &= EightBit
		m.EightBit = strings.EqualFold(p.Value, "8BITMIME")
		ok = m.EightBit || strings.EqualFold(p.Value, "7BIT")
	case "SMTPUTF8":
		known &= UTF8
		m.UTF8, ok = true, !p.HasValue
	case "REQUIRETLS":
		known &= RequireTLS
		m.RequireTLS, ok = true, !p.HasValue
	case "RET":
		known &= DSN
		m.Ret = strings.ToUpper(p.Value)
		ok = m.Ret == "FULL" || m.Ret == "HDRS"
	case "ENVID":
		known &= DSN
		m.EnvID = p.Value
		ok = len(p.Value) <= maxEnvID && isCleanXtext(p.Value)
	case "AUTH":
		known &= Auth
		m.Auth = p.Value
		ok = p.Value == "<>" || isCleanXtext(p.Value)
	default:
		known = 0
	}
	if known == 0 {
		return reply.With(unknownParam, fmt.Errorf("%w: %s is not offered", errParam, p.Name))
	}
	if !ok {
		return reply.With(badParam, fmt.Errorf("%w: value of %s", errParam, p.Name))
	}
	return nil
}

// parseSize reads 1*20DIGIT (RFC 1870 §6). What is more than a message can have
// is the largest number.
func parseSize(s string) (n int64, ok bool) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, len(s) <= 20 && (err == nil || errors.Is(err, strconv.ErrRange))
}

// isCleanXtext takes xtext that holds no control character even when decoded:
// decoded values end up in reports, where a line end would be an injection.
func isCleanXtext(s string) bool {
	plain, err := DecodeXtext(s)
	return err == nil && plain != "" && envelope.ValidBytes(plain)
}

// ParseRcpt reads what follows "RCPT TO:". Only parameters of the extensions
// offered are known; utf8 is whether MAIL had SMTPUTF8. Errors are *reply.Error.
func ParseRcpt(args string, offered Extensions, utf8 bool) (envelope.Recipient, error) {
	var r envelope.Recipient
	address, rest, err := ParsePath(strings.TrimLeft(args, " "), utf8)
	if err == nil && address == "" {
		err = bad("no recipient")
	}
	if err != nil {
		return r, answered(err, badRecipient)
	}
	params, err := ParseParams(rest)
	if err != nil {
		return r, reply.With(badParam, err)
	}
	r.Address = address
	for _, p := range params {
		if !offered.Has(DSN) || p.Name != "NOTIFY" && p.Name != "ORCPT" {
			return envelope.Recipient{}, reply.With(unknownParam, fmt.Errorf("%w: %s is not offered", errParam, p.Name))
		}
		if r.DSN == nil {
			r.DSN = new(envelope.DSN)
		}
		ok := false
		if p.Name == "NOTIFY" {
			r.DSN.Notify, ok = parseNotify(p.Value)
		} else {
			r.DSN.ORcpt, ok = p.Value, validORcpt(p.Value)
		}
		if !ok {
			return envelope.Recipient{}, reply.With(badParam, fmt.Errorf("%w: value of %s", errParam, p.Name))
		}
	}
	return r, nil
}

var notifyNames = [...]string{"NEVER", "SUCCESS", "FAILURE", "DELAY"}

// parseNotify reads NOTIFY; NEVER stands alone (RFC 3461 §4.1).
func parseNotify(s string) (n envelope.Notify, ok bool) {
	for word := range strings.SplitSeq(strings.ToUpper(s), ",") {
		found := false
		for i, name := range notifyNames {
			if word == name {
				n |= 1 << i
				found = true
			}
		}
		if !found {
			return 0, false
		}
	}
	return n, n&envelope.NotifyNever == 0 || n == envelope.NotifyNever
}

func formatNotify(n envelope.Notify) string {
	var all []string
	for i, name := range notifyNames {
		if n&(1<<i) != 0 {
			all = append(all, name)
		}
	}
	return strings.Join(all, ",")
}

// validORcpt takes "type;xtext" (RFC 3461 §4.2).
func validORcpt(s string) bool {
	kind, value, ok := strings.Cut(s, ";")
	if !ok || len(s) > maxORcpt || kind == "" {
		return false
	}
	for i := 0; i < len(kind); i++ {
		if !isAlnum(kind[i]) && kind[i] != '-' {
			return false
		}
	}
	return isCleanXtext(value)
}

// validXtext takes what may be written into a command as it is.
func validXtext(s string, most int) bool { return len(s) <= most && isCleanXtext(s) }
