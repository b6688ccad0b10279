package spp

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Bounds of what a program may write. One that writes more has failed.
const (
	maxOutput   = 256 << 10 // bytes
	maxCommand  = 16 << 10  // bytes of a line
	maxCommands = 1000
)

// The commands, which are the first letters of a line (qmail-spp.c:spp).
const (
	cmdAccept = 'A' // switch the programs off for the rest of the session
	cmdChange = 'C' // another address
	cmdDrop   = 'D' // hang up without a word
	cmdError  = 'E' // refuse
	cmdHeader = 'H' // a line of the header
	cmdLater  = 'L' // refuse a later command
	cmdNext   = 'N' // no more programs for this command
	cmdOK     = 'O' // likewise, and none of the checks that follow
	cmdPrint  = 'P' // say something
	cmdReject = 'R' // refuse and hang up
	cmdSet    = 'S' // set a variable
	cmdUnset  = 'U' // unset it
)

// command is one line of what a program wrote.
type command struct {
	letter byte
	text   string
}

// last reports whether nothing is read behind the command.
func (c command) last() bool { return strings.IndexByte("ANOERD", c.letter) >= 0 }

// parseCommands reads what a program wrote, up to its last command. unknown are
// the first letters of lines that say nothing. A line without its end is one,
// too; what stands behind a NUL is nothing, as in C.
func parseCommands(output []byte) (all []command, unknown string, err error) {
	for len(output) > 0 {
		var line []byte
		line, output, _ = bytes.Cut(output, []byte{'\n'})
		line, _, _ = bytes.Cut(line, []byte{0})
		line = bytes.TrimSuffix(line, []byte{'\r'})
		if len(line) == 0 {
			continue
		}
		if len(line) > maxCommand {
			return nil, unknown, fmt.Errorf("it wrote a line of %d bytes, at most %d", len(line), maxCommand)
		}
		if strings.IndexByte("ACDEHLNOPRSU", line[0]) < 0 {
			if strings.IndexByte(unknown, line[0]) < 0 {
				unknown += string(line[:1])
			}
			continue
		}
		if len(all) == maxCommands {
			return nil, unknown, fmt.Errorf("it wrote more than %d commands", maxCommands)
		}
		c := command{line[0], string(line[1:])}
		all = append(all, c)
		if c.last() {
			break
		}
	}
	return all, unknown, nil
}

// splitCode cuts the code of a reply off, as in "550 text" and "550-text"; it is
// 0 if there is none.
func splitCode(text string) (code int, words string) {
	if len(text) < 3 || len(text) > 3 && text[3] != ' ' && text[3] != '-' {
		return 0, text
	}
	n, err := strconv.ParseUint(text[:3], 10, 16)
	if err != nil || n < 200 || n > 599 {
		return 0, text
	}
	if len(text) > 3 {
		words = text[4:]
	}
	return int(n), words
}

// parseReply makes an answer of a program's text, whose enhanced code may stand
// behind the code or in parentheses at its end. A text without a code puts off:
// nobody has said that the refusal is for good.
func parseReply(text string) reply.Reply {
	code, words := splitCode(text)
	if code == 0 {
		return reply.Make(451, reply.Enhanced{Subject: 7}, words)
	}
	r, ok := reply.Parse(strconv.Itoa(code) + " " + words)
	if !ok { // the enhanced code is of another class, or the code is none of an answer's
		r = reply.Make(code, reply.Enhanced{}, words)
	}
	if r.Enhanced == (reply.Enhanced{}) && r.Class != reply.Success {
		r.Enhanced = reply.Enhanced{Subject: 7, Detail: 1} // a policy of this site (RFC 3463 §3.8)
		// That is how a caller of qmail-queue is told, too.
		if t := reply.FromExit(reply.CustomExits[0], string(r.Class.Letter())+r.Text); len(r.Text) > 1 && t.Text != r.Text {
			r.Enhanced, r.Text = t.Enhanced, t.Text
		}
	}
	return r
}

// parseRemark is a text to be printed, without the code, which is that of the
// answer it stands in front of.
func parseRemark(text string) string {
	_, words := splitCode(text)
	return reply.Clean(words, reply.MaxText)
}

// headerFields are the fields of header lines; one that begins with a blank
// continues the one before. What is not ASCII becomes a question mark.
func headerFields(lines []string) (all []message.FieldEdit, err error) {
	for _, line := range lines {
		line = printable(line)
		if line[0] == ' ' || line[0] == '\t' {
			if len(all) == 0 {
				return nil, errors.New("its header begins with a line that continues none")
			}
			if strings.TrimSpace(line) != "" {
				all[len(all)-1].Value += "\n" + line
			}
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("%q is no header field", reply.Clean(line, 80))
		}
		all = append(all, message.FieldEdit{Op: message.Add, Name: strings.TrimRight(name, " \t"), Value: strings.Trim(value, " \t")})
	}
	for _, f := range all {
		if err := f.Check(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// printable is a line without anything that does not belong into a header.
func printable(line string) string {
	return strings.Map(func(r rune) rune {
		if r != '\t' && (r < ' ' || r > '~') {
			return '?'
		}
		return r
	}, line)
}

// variable is a variable's assignment, "NAME=VALUE".
func variable(text string) (name, value string, err error) {
	name, value, ok := strings.Cut(text, "=")
	if !ok || name == "" {
		return "", "", fmt.Errorf("%q sets no variable", reply.Clean(text, 80))
	}
	return name, value, nil
}

// refusal is what E and R make of a text at an event. ok is false if the command
// is not to be refused: its code says yes.
func refusal(e event, c command) (v pipeline.Verdict, ok bool, err error) {
	r := parseReply(c.text)
	v.Reply = r
	switch {
	case r.Class == reply.Permanent:
		v.Action = pipeline.Reject
	case r.Class == reply.Temporary:
		v.Action = pipeline.Defer
	case c.letter == cmdReject: // "221 bye"
		v.Action, v.Reply = pipeline.Defer, reply.Make(421, reply.Enhanced{Subject: 7, Detail: 1}, r.Text)
	case e == atConnection || e == atHelo:
		return v, false, nil
	case e == atRcpt || e == atPass:
		v.Action, v.Reply = pipeline.Discard, reply.Reply{}
	default:
		return v, false, fmt.Errorf("it answers %s with %q, which is no refusal", e, reply.Clean(c.text, 80))
	}
	if c.letter == cmdReject {
		v.HangUp = pipeline.HangUpAfter
	}
	return v, true, nil
}
