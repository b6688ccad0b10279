package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Bounds of what is read of a log: a line, how far in it our own part may
// begin (behind what a supervisor writes first), and a text of it.
const (
	maxShadowLine   = 256 << 10
	maxShadowPrefix = 300
	maxShadowText   = 200
)

// shadowLine is what the report wants of a line of the daemon's log.
type shadowLine struct {
	Time      time.Time
	Msg       string
	ID        string
	MessageID string `json:"message_id"`
	From      string
	To        string
	// Recipients are those that were taken, Refused those that were not.
	Recipients int
	Refused    int `json:"refused_recipients"`
	Answer     string
	Next       *struct {
		Exit   json.RawMessage // a number, or "unknown"
		Signal int
	}
	// Action is what became of a message that was about to leave.
	Action   string
	Shadow   []pipeline.ShadowVerdict
	Enforced string
	// Filter, Mode, Until and By are those of a filter that an operator switched.
	Filter, Mode, Until, By string
}

// The messages of the log lines that count.
const (
	shadowMessage = "message"
	shadowLeaving = "leaving"
	shadowSwitch  = "filter mode set by hand"
)

var errNoShadowLine = errors.New("not a line of the daemon's log")

// readShadowLog hands each line of a log to each; unread counts those that are
// too long. A log that is compressed with gzip is unpacked.
func readShadowLog(in io.Reader, each func(line []byte)) (unread int, err error) {
	r := bufio.NewReaderSize(in, 64<<10)
	if magic, _ := r.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(r)
		if err != nil {
			return 0, err
		}
		defer z.Close()
		r = bufio.NewReaderSize(z, 64<<10)
	}
	var line []byte
	long := false
	for {
		part, err := r.ReadSlice('\n')
		if long = long || len(line)+len(part) > maxShadowLine; !long {
			line = append(line, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if long {
			unread++
		} else if len(line) > 0 {
			each(line)
		}
		line, long = line[:0], false
		if errors.Is(err, io.EOF) {
			return unread, nil
		}
		if err != nil {
			return unread, err
		}
	}
}

// parseShadowLine reads a line in either format. Lines of other programs, and
// of other things that the daemon tells, are errNoShadowLine.
func parseShadowLine(b []byte) (l shadowLine, err error) {
	b = bytes.TrimRight(b, "\r\n")
	begin := b[:min(len(b), maxShadowPrefix)]
	text, object := bytes.Index(begin, []byte("time=")), bytes.Index(begin, []byte(`{"time":`))
	switch {
	case object >= 0 && (text < 0 || object < text):
		err = json.Unmarshal(b[object:], &l)
	case text >= 0:
		err = l.parseText(string(b[text:]))
	default:
		return l, errNoShadowLine
	}
	if err != nil && (l.Msg == shadowMessage || bytes.Contains(b, []byte(`"msg":"`+shadowMessage+`"`))) {
		return l, err // one that was cut off, or changed
	}
	if err != nil || l.Msg != shadowMessage && l.Msg != shadowLeaving && l.Msg != shadowSwitch {
		return l, errNoShadowLine
	}
	for _, s := range []*string{&l.ID, &l.MessageID, &l.From, &l.To, &l.Filter, &l.Mode, &l.Until, &l.By} {
		*s = pipeline.LogText(*s, maxShadowText)
	}
	for i := range l.Shadow {
		v := &l.Shadow[i]
		v.Filter, v.Stage, v.Reason = pipeline.LogText(v.Filter, 100), pipeline.LogText(v.Stage, 100), pipeline.LogText(v.Reason, maxShadowText)
		v.Recipients, v.Edits = max(v.Recipients, 0), max(v.Edits, 0)
	}
	return l, nil
}

// shadowKeys are the keys of the text format.
var shadowKeys = map[string]func(l *shadowLine, value string) error{
	"time":               func(l *shadowLine, v string) (err error) { l.Time, err = time.Parse(time.RFC3339Nano, v); return err },
	"msg":                func(l *shadowLine, v string) error { l.Msg = v; return nil },
	"id":                 func(l *shadowLine, v string) error { l.ID = v; return nil },
	"message_id":         func(l *shadowLine, v string) error { l.MessageID = v; return nil },
	"from":               func(l *shadowLine, v string) error { l.From = v; return nil },
	"to":                 func(l *shadowLine, v string) error { l.To = v; return nil },
	"recipients":         func(l *shadowLine, v string) (err error) { l.Recipients, err = strconv.Atoi(v); return err },
	"refused_recipients": func(l *shadowLine, v string) (err error) { l.Refused, err = strconv.Atoi(v); return err },
	"answer":             func(l *shadowLine, v string) error { l.Answer = v; return nil },
	"next.exit":          func(l *shadowLine, v string) error { return l.next(json.RawMessage(v), 0) },
	"next.signal": func(l *shadowLine, v string) error {
		n, err := strconv.Atoi(v)
		return errors.Join(err, l.next(nil, n))
	},
	"action":                func(l *shadowLine, v string) error { l.Action = v; return nil },
	pipeline.LogKeyShadow:   func(l *shadowLine, v string) error { return json.Unmarshal([]byte(v), &l.Shadow) },
	pipeline.LogKeyEnforced: func(l *shadowLine, v string) error { l.Enforced = v; return nil },
	"filter":                func(l *shadowLine, v string) error { l.Filter = v; return nil },
	"mode":                  func(l *shadowLine, v string) error { l.Mode = v; return nil },
	"until":                 func(l *shadowLine, v string) error { l.Until = v; return nil },
	"by":                    func(l *shadowLine, v string) error { l.By = v; return nil },
}

func (l *shadowLine) next(exit json.RawMessage, signal int) error {
	l.Next = &struct {
		Exit   json.RawMessage
		Signal int
	}{exit, signal}
	return nil
}

// parseText reads a line of slog's text format.
func (l *shadowLine) parseText(s string) error {
	for s = strings.TrimLeft(s, " "); s != ""; s = strings.TrimLeft(s, " ") {
		key, rest, ok := strings.Cut(s, "=")
		if strings.HasPrefix(s, `"`) { // a key that slog had to quote is none of ours
			quoted, err := strconv.QuotedPrefix(s)
			if err != nil || !strings.HasPrefix(s[len(quoted):], "=") {
				return fmt.Errorf("key: %w", errNoShadowLine)
			}
			key, rest, ok = quoted, s[len(quoted)+1:], true
		}
		if !ok {
			return fmt.Errorf("key without a value: %w", errNoShadowLine)
		}
		var value string
		if strings.HasPrefix(rest, `"`) {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return fmt.Errorf("value of %s: %w", reply.Clean(key, 50), err)
			}
			if value, err = strconv.Unquote(quoted); err != nil {
				return fmt.Errorf("value of %s: %w", reply.Clean(key, 50), err)
			}
			s = rest[len(quoted):]
		} else {
			value, s, _ = strings.Cut(rest, " ")
		}
		if set := shadowKeys[key]; set != nil {
			if err := set(l, value); err != nil {
				return fmt.Errorf("value of %s: %w", reply.Clean(key, 50), err)
			}
		}
	}
	return nil
}

// fact is what became of the message.
func (l *shadowLine) fact() shadowFact {
	if l.Msg == shadowLeaving {
		return factOf(l.Action)
	}
	class, known := l.class()
	switch {
	case known && class == reply.Permanent:
		return wasRefused
	case known && class == reply.Temporary:
		return wasDeferred
	case known: // quarantined and discarded look like success from outside
		if f := factOf(l.Enforced); f == wasQuarantined || f == wasDiscarded {
			return f
		}
		return wasAccepted
	case l.Recipients == 0 && l.Refused > 0:
		if factOf(l.Enforced) == wasDeferred {
			return wasDeferred
		}
		return wasRefused
	}
	return wasGivenUp
}

// class is the class of the answer, as the caller heard it.
func (l *shadowLine) class() (c reply.Class, known bool) {
	if l.Answer != "" {
		c, known := map[byte]reply.Class{'2': reply.Success, '4': reply.Temporary, '5': reply.Permanent}[l.Answer[0]]
		return c, known
	}
	if l.Next == nil {
		return 0, false
	}
	if exit, err := strconv.Atoi(string(l.Next.Exit)); err == nil && exit >= 0 && exit < 256 {
		return reply.FromExit(exit, "").Class, true
	}
	return reply.Temporary, l.Next.Signal > 0
}
