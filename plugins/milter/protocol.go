package milter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	gomilter "github.com/emersion/go-milter"

	"github.com/postern-mta/postern/pipeline/reply"
)

// What go-milter has no name for (libmilter/mfdef.h).
const (
	answerProgress     = 'p' // SMFIR_PROGRESS
	answerShutdown     = '4' // SMFIR_SHUTDOWN
	answerConnFail     = 'f' // SMFIR_CONN_FAIL
	answerAddRcptParam = '2' // SMFIR_ADDRCPT_PAR
)

// The versions of the protocol that we speak. Between them came only flags,
// which are negotiated one by one.
const (
	oldest = 2
	newest = 6
)

const (
	// maxData bounds what a milter may say in one piece, other than a body, and
	// maxChunk a piece of a new body, both in bytes. libmilter says at most 64 KiB.
	maxData  = 80 << 10
	maxChunk = 1 << 20
	// maxProgress bounds how often a milter may say that it is still at work.
	maxProgress = 10_000
	// maxMacros bounds the names in a list of macros that a milter wants.
	maxMacros = 100
)

// The actions and the protocol flags that we offer. Of the flags SMFIP_RCPT_REJ is
// missing: recipients that were refused before are not a filter's business.
const (
	allActions = gomilter.OptAddHeader | gomilter.OptChangeHeader | gomilter.OptChangeBody | gomilter.OptQuarantine | gomilter.OptSetSymList |
		gomilter.OptAddRcpt | gomilter.OptRemoveRcpt | gomilter.OptChangeFrom | gomilter.OptAddRcptWithArgs
	allFlags = gomilter.OptNoConnect | gomilter.OptNoHelo | gomilter.OptNoMailFrom | gomilter.OptNoRcptTo | gomilter.OptNoBody |
		gomilter.OptNoHeaders | gomilter.OptNoEOH | gomilter.OptNoUnknown | gomilter.OptNoData | gomilter.OptSkip |
		gomilter.OptNoHeaderReply | gomilter.OptNoConnReply | gomilter.OptNoHeloReply | gomilter.OptNoMailReply | gomilter.OptNoRcptReply |
		gomilter.OptNoDataReply | gomilter.OptNoUnknownReply | gomilter.OptNoEOHReply | gomilter.OptNoBodyReply | gomilter.OptHeaderLeadingSpace
)

// macroStages is how many stages have macros, for tables indexed by
// gomilter.Stage; noMacros is the stage of a command without.
const (
	macroStages = int(gomilter.StageEOH) + 1
	noMacros    = gomilter.Stage(macroStages)
)

// command is a row of the table of what a milter is told.
type command struct {
	code gomilter.Code
	name string // for logs
	// macros is the stage of the macros that go before it.
	macros gomilter.Stage
	// not is the flag by which a milter wants none of it, mute the one by which it
	// does not answer.
	not, mute gomilter.OptProtocol
}

var (
	cmdConnect = command{gomilter.CodeConn, "connect", gomilter.StageConnect, gomilter.OptNoConnect, gomilter.OptNoConnReply}
	cmdHelo    = command{gomilter.CodeHelo, "helo", gomilter.StageHelo, gomilter.OptNoHelo, gomilter.OptNoHeloReply}
	cmdMail    = command{gomilter.CodeMail, "mail", gomilter.StageMailFrom, gomilter.OptNoMailFrom, gomilter.OptNoMailReply}
	cmdRcpt    = command{gomilter.CodeRcpt, "rcpt", gomilter.StageRcptTo, gomilter.OptNoRcptTo, gomilter.OptNoRcptReply}
	cmdData    = command{gomilter.CodeData, "data", gomilter.StageData, gomilter.OptNoData, gomilter.OptNoDataReply}
	cmdHeader  = command{gomilter.CodeHeader, "header", noMacros, gomilter.OptNoHeaders, gomilter.OptNoHeaderReply}
	cmdEOH     = command{gomilter.CodeEOH, "end of header", gomilter.StageEOH, gomilter.OptNoEOH, gomilter.OptNoEOHReply}
	cmdBody    = command{gomilter.CodeBody, "body", noMacros, gomilter.OptNoBody, gomilter.OptNoBodyReply}
	cmdEOM     = command{gomilter.CodeEOB, "end of message", gomilter.StageEOM, 0, 0}
)

// terms are what was negotiated with a milter.
type terms struct {
	version uint32
	actions gomilter.OptAction
	flags   gomilter.OptProtocol
	// macros are the names that it wants at a stage; nil means the usual ones.
	macros [macroStages][]string
}

// has reports whether a flag is set.
func (t *terms) has(flag gomilter.OptProtocol) bool { return t.flags&flag != 0 }

// offer is the data of our SMFIC_OPTNEG.
func offer() []byte {
	b := binary.BigEndian.AppendUint32(nil, newest)
	b = binary.BigEndian.AppendUint32(b, uint32(allActions))
	return binary.BigEndian.AppendUint32(b, uint32(allFlags))
}

// parseTerms reads a milter's answer to an offer. What it asks for that was not
// offered it would count on.
func parseTerms(b []byte) (t terms, err error) {
	if len(b) < 12 {
		return terms{}, fmt.Errorf("it negotiates with %d bytes", len(b))
	}
	t.version = binary.BigEndian.Uint32(b)
	t.actions = gomilter.OptAction(binary.BigEndian.Uint32(b[4:]))
	t.flags = gomilter.OptProtocol(binary.BigEndian.Uint32(b[8:]))
	switch {
	case t.version < oldest || t.version > newest:
		return terms{}, fmt.Errorf("it speaks version %d of the protocol, not %d to %d", t.version, oldest, newest)
	case t.actions&^allActions != 0:
		return terms{}, fmt.Errorf("it wants to do what it may not here (actions %#x, of which %#x were offered)", uint32(t.actions), uint32(allActions))
	case t.flags&^allFlags != 0:
		return terms{}, fmt.Errorf("it wants what we cannot do (flags %#x, of which %#x were offered)", uint32(t.flags), uint32(allFlags))
	}
	for b = b[12:]; len(b) > 0; {
		if t.actions&gomilter.OptSetSymList == 0 {
			return terms{}, errors.New("it lists macros, which it did not ask for")
		}
		end := bytes.IndexByte(b[min(4, len(b)):], 0)
		if len(b) < 4 || end < 0 || binary.BigEndian.Uint32(b) >= uint32(macroStages) {
			return terms{}, errors.New("it lists macros in a form that cannot be read")
		}
		names := strings.FieldsFunc(string(b[4:4+end]), func(c rune) bool { return c == ' ' || c == ',' || c == '\t' })
		if len(names) > maxMacros {
			return terms{}, fmt.Errorf("it wants more than %d macros at a stage", maxMacros)
		}
		t.macros[binary.BigEndian.Uint32(b)] = append([]string{}, names...)
		b = b[4+end+1:]
	}
	return t, nil
}

// answer is what a milter says to a command.
type answer struct {
	code  gomilter.ActionCode
	reply reply.Reply // of ActReplyCode
}

// goesOn reports whether the milter wants to be told more.
func (a answer) goesOn() bool { return a.code == gomilter.ActContinue || a.code == gomilter.ActSkip }

var goOn = answer{code: gomilter.ActContinue}

// parseAnswer reads an answer that ends a command.
func parseAnswer(code byte, data []byte) (answer, error) {
	a := answer{code: gomilter.ActionCode(code)}
	switch a.code {
	case gomilter.ActContinue, gomilter.ActAccept, gomilter.ActReject, gomilter.ActTempFail, gomilter.ActDiscard, gomilter.ActSkip, answerShutdown, answerConnFail:
		return a, nil
	case gomilter.ActReplyCode:
		r, err := parseReply(data)
		a.reply = r
		return a, err
	}
	return answer{}, fmt.Errorf("it answers %q, which is no answer here", string(rune(code)))
}

// parseReply makes one clean line of a reply, which may be several lines of SMTP,
// each with its codes. A percent sign comes doubled (smfi_setreply).
func parseReply(data []byte) (reply.Reply, error) {
	text, _, _ := strings.Cut(string(data), "\x00")
	words := make([]string, 0, 1)
	var first reply.Reply
	for i, line := range strings.Split(strings.TrimRight(text, "\r\n"), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if len(line) > 3 && line[3] == '-' {
			line = line[:3] + " " + line[4:]
		}
		r, ok := reply.Parse(line)
		if !ok && len(line) > 4 { // an enhanced code of another class
			r, ok = reply.Parse(line[:4])
			r.Text = line[4:]
		}
		if !ok || r.Class == reply.Success || i > 0 && r.Code != first.Code {
			return reply.Reply{}, fmt.Errorf("it replies %q", reply.Clean(line, 200))
		}
		if i == 0 {
			first = r
		}
		words = append(words, r.Text)
		if i > maxReplyLines {
			return reply.Reply{}, errors.New("it replies too many lines")
		}
	}
	return reply.Make(first.Code, first.Enhanced, strings.ReplaceAll(strings.Join(words, " "), "%%", "%")), nil
}

const maxReplyLines = 100

// change is one modification of a message.
type change struct {
	code  byte
	nth   uint32
	name  string // of a field, or an address
	value string
}

// needs is the table from a modification to what must have been negotiated.
var needs = map[byte]gomilter.OptAction{
	byte(gomilter.ActAddHeader):    gomilter.OptAddHeader,
	byte(gomilter.ActInsertHeader): gomilter.OptAddHeader,
	byte(gomilter.ActChangeHeader): gomilter.OptChangeHeader,
	byte(gomilter.ActChangeFrom):   gomilter.OptChangeFrom,
	byte(gomilter.ActAddRcpt):      gomilter.OptAddRcpt,
	answerAddRcptParam:             gomilter.OptAddRcptWithArgs,
	byte(gomilter.ActDelRcpt):      gomilter.OptRemoveRcpt,
	byte(gomilter.ActReplBody):     gomilter.OptChangeBody,
	byte(gomilter.ActQuarantine):   gomilter.OptQuarantine,
}

// parseChange reads a modification other than a piece of a body.
func parseChange(code byte, data []byte) (change, error) {
	c := change{code: code}
	indexed := code == byte(gomilter.ActInsertHeader) || code == byte(gomilter.ActChangeHeader)
	if indexed {
		if len(data) < 4 {
			return change{}, errors.New("it changes a header field, and does not say which")
		}
		c.nth, data = binary.BigEndian.Uint32(data), data[4:]
	}
	name, rest, ended := bytes.Cut(data, []byte{0})
	if !ended {
		return change{}, errors.New("it sends half a modification")
	}
	c.name = string(name)
	if indexed || code == byte(gomilter.ActAddHeader) {
		value, _, ended := bytes.Cut(rest, []byte{0})
		if !ended {
			return change{}, errors.New("it sends half a header field")
		}
		c.value = string(value)
	}
	return c, nil
}
