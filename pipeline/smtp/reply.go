package smtp

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline/reply"
)

// The bounds of a reply: what a line keeps in bytes, the lines, and the bytes
// of all of it as it came (RFC 5321 §4.5.3.1.5 has lines of 512).
const (
	maxReplyLine  = 2000
	maxReplyLines = 100
	maxReplyBytes = 64 << 10
)

// The ways in which a server's reply is none.
var (
	errReplyTooLong = fmt.Errorf("reply of more than %d bytes or %d lines", maxReplyBytes, maxReplyLines)
	errReplyCode    = errors.New("reply whose code changes between its lines")
	errNoReply      = errors.New("line that is no SMTP reply")
)

// Reply is what a server answered. The zero Reply is no answer.
type Reply struct {
	// Code is the three-digit code, 200 to 599.
	Code int
	// Enhanced is the enhanced status code without its class; Coded is set if
	// there was one that fits the code (RFC 2034 §4).
	Enhanced reply.Enhanced
	Coded    bool
	// Text is the text without codes, its lines separated by LF; each is clean
	// printable ASCII.
	Text string
}

// Class is the reply's permanence. What is neither 2xx nor 5xx is temporary.
func (r Reply) Class() reply.Class {
	switch r.Code / 100 {
	case 2:
		return reply.Success
	case 5:
		return reply.Permanent
	}
	return reply.Temporary
}

// Reply is the answer as Postern keeps it: one line, bounded. A server that
// gave no enhanced code gets X.0.0.
func (r Reply) Reply() reply.Reply {
	made := reply.Make(r.Code, r.Enhanced, r.Text)
	made.Class = r.Class()
	return made
}

// String is the reply in one line, as it would stand on the wire.
func (r Reply) String() string {
	if r.Code == 0 {
		return ""
	}
	b := strconv.AppendInt(nil, int64(r.Code), 10)
	if r.Coded {
		b = append(b, ' ', byte('0'+r.Code/100), '.')
		b = strconv.AppendUint(b, uint64(r.Enhanced.Subject), 10)
		b = append(b, '.')
		b = strconv.AppendUint(b, uint64(r.Enhanced.Detail), 10)
	}
	if r.Text != "" {
		b = append(b, ' ')
		b = append(b, strings.ReplaceAll(r.Text, "\n", " ")...)
	}
	return string(b)
}

// ReadReply reads one reply of a server, of one line or more (RFC 5321 §4.2.1).
// It takes LF for a line end, keeps the first 2,000 bytes of a line, and fails
// if there are more than 100 lines or 64 KiB, if the code changes between
// lines, or if a line is no reply. After an error the connection is of no use.
func (r *Reader) ReadReply() (Reply, error) {
	var rep Reply
	budget := maxReplyBytes
	for n := range maxReplyLines {
		line, err := r.capped(maxReplyLine, &budget)
		if err != nil {
			return Reply{}, err
		}
		code, more, ok := replyCode(line)
		if !ok {
			return Reply{}, fmt.Errorf("%w: %q", errNoReply, reply.Clean(string(line[:min(len(line), 100)]), 100))
		}
		if n == 0 {
			rep.Code = code
		} else if code != rep.Code {
			return Reply{}, errReplyCode
		}
		rep.add(line[min(len(line), 4):], n)
		if !more {
			return rep, nil
		}
	}
	return Reply{}, errReplyTooLong
}

// replyCode reads the code and whether another line follows. Whatever is not a
// hyphen ends the reply, as most clients take it.
func replyCode(line []byte) (code int, more, ok bool) {
	if len(line) < 3 || line[0] < '2' || line[0] > '5' {
		return 0, false, false
	}
	for _, c := range line[:3] {
		if c < '0' || c > '9' {
			return 0, false, false
		}
		code = 10*code + int(c-'0')
	}
	return code, len(line) > 3 && line[3] == '-', true
}

// add adds the text of line n. An enhanced code counts if the first line has
// it, and goes from each line that repeats it.
func (r *Reply) add(text []byte, n int) {
	s := string(text)
	e, length, ok := enhanced(s, r.Code/100)
	switch {
	case ok && n == 0:
		r.Enhanced, r.Coded = e, true
		s = s[length:]
	case ok && r.Coded && e == r.Enhanced:
		s = s[length:]
	}
	s = reply.Clean(s, maxReplyLine)
	if n == 0 {
		r.Text = s
	} else {
		r.Text += "\n" + s
	}
}

// enhanced reads an enhanced status code at the start of a text.
func enhanced(s string, class int) (e reply.Enhanced, length int, ok bool) {
	if len(s) < 5 || s[0] != byte('0'+class) || s[1] != '.' {
		return e, 0, false
	}
	number := func(from int) (n uint16, to int) {
		for to = from; to < len(s) && to < from+3 && s[to] >= '0' && s[to] <= '9'; to++ {
			n = 10*n + uint16(s[to]-'0')
		}
		return n, to
	}
	subject, i := number(2)
	if i == 2 || i == len(s) || s[i] != '.' {
		return e, 0, false
	}
	detail, k := number(i + 1)
	if k == i+1 || k < len(s) && s[k] != ' ' && s[k] != '\t' {
		return e, 0, false
	}
	return reply.Enhanced{Subject: subject, Detail: detail}, k, true
}
