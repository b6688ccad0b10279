package spamassassin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/servers"
	"github.com/postern-mta/postern/pipeline/spam"
)

// The bounds of an answer: its bytes, its header's lines, the rules that it
// names, and what of it is told.
const (
	maxAnswer = 64 << 10
	maxLines  = 32
	maxRules  = 500
	maxTold   = 120
)

// request is a question to spamd about the first size bytes of a message.
type request struct {
	user string // "" for none
	body message.Message
	size int64
}

// answer is what spamd says of a message.
type answer struct {
	spam            bool
	score, required float64
	rules           []string
}

// ask has a spamd score the message (spamd/PROTOCOL in SpamAssassin's sources).
func (q *request) ask(ctx context.Context, s *servers.Server) (answer, error) {
	c, err := s.Dial(ctx)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	head := "SYMBOLS SPAMC/1.5\r\nContent-length: " + strconv.FormatInt(q.size, 10) + "\r\n"
	if q.user != "" {
		head += "User: " + q.user + "\r\n"
	}
	if err := c.Send(head+"\r\n", q.body.Reader(), q.size); err != nil {
		return answer{}, c.Reason(ctx, err, maxAnswer, func(b []byte) error {
			_, why := parseAnswer(b)
			return why
		})
	}
	if err := c.CloseWrite(); err != nil {
		return answer{}, err
	}
	b, err := c.Rest(maxAnswer)
	if err != nil {
		return answer{}, err
	}
	return parseAnswer(b)
}

// ping asks whether a spamd works.
func ping(ctx context.Context, s *servers.Server) (about string, err error) {
	c, err := s.Dial(ctx)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := c.Write([]byte("PING SPAMC/1.5\r\n\r\n")); err != nil {
		return "", err
	}
	b, err := c.Rest(maxAnswer)
	if err != nil {
		return "", err
	}
	version, code, word, err := parseStatus(strings.TrimRight(string(b), "\r\n"))
	if err != nil || code != 0 || word != "PONG" {
		return "", fmt.Errorf("spamd answers %q to PING", reply.Clean(string(b), maxTold))
	}
	return version, nil
}

// parseAnswer reads everything that spamd sent from the end of a message until it
// closed: exactly one answer to SYMBOLS. One with a code other than 0 is
// servers.Refused.
func parseAnswer(b []byte) (a answer, err error) {
	if len(b) == 0 {
		return a, errors.New("spamd closes the connection without an answer")
	}
	head, body, whole := bytes.Cut(b, []byte("\r\n\r\n"))
	lines := strings.SplitN(string(head), "\r\n", maxLines+1)
	_, code, word, err := parseStatus(lines[0])
	switch {
	case err != nil:
		return a, err
	case code != 0:
		return a, servers.Refused(fmt.Errorf("spamd answers %d %s", code, reply.Clean(word, maxTold)))
	case !whole:
		return a, fmt.Errorf("spamd's answer is cut off: %q", reply.Clean(string(b), maxTold))
	case len(lines) > maxLines:
		return a, fmt.Errorf("spamd's answer has more than %d lines above it", maxLines)
	}
	seen := map[string]string{}
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ":")
		name = strings.ToLower(name)
		if _, twice := seen[name]; !ok || twice {
			return a, fmt.Errorf("spamd's answer has a line that does not belong there: %q", reply.Clean(line, maxTold))
		}
		seen[name] = strings.TrimSpace(value)
	}
	if n, err := strconv.ParseUint(seen["content-length"], 10, 32); err != nil || n != uint64(len(body)) {
		return a, fmt.Errorf("spamd's answer has %d bytes, and says that it has %q", len(body), reply.Clean(seen["content-length"], maxTold))
	}
	if err := a.parseSpam(seen["spam"]); err != nil {
		return a, err
	}
	return a, a.parseRules(strings.TrimSuffix(string(body), "\r\n"))
}

// parseStatus reads "SPAMD/1.1 0 EX_OK".
func parseStatus(line string) (version string, code int, word string, err error) {
	parts := strings.SplitN(line, " ", 3)
	if len(parts) == 3 && strings.HasPrefix(parts[0], "SPAMD/") && spam.Name(parts[0][len("SPAMD/"):]) == parts[0][len("SPAMD/"):] {
		if n, err := strconv.ParseUint(parts[1], 10, 8); err == nil {
			return parts[0], int(n), parts[2], nil
		}
	}
	return "", 0, "", fmt.Errorf("spamd answers %q", reply.Clean(line, maxTold))
}

// parseSpam reads "True ; 15.0 / 5.0".
func (a *answer) parseSpam(line string) error {
	word, numbers, _ := strings.Cut(line, ";")
	score, required, _ := strings.Cut(numbers, "/")
	var err error
	if a.score, err = number(score); err == nil {
		a.required, err = number(required)
	}
	switch word = strings.TrimSpace(word); {
	case err != nil:
	case word == "True" || word == "Yes":
		a.spam = true
	case word != "False" && word != "No":
		err = errors.New("neither True nor False")
	}
	if err != nil {
		return fmt.Errorf("spamd answers \"Spam: %s\": %w", reply.Clean(line, maxTold), err)
	}
	return nil
}

// number reads a score: digits with a point.
func number(s string) (float64, error) {
	s = strings.TrimSpace(s)
	if s == "" || strings.Trim(s, "+-.0123456789") != "" || strings.ContainsAny(s, "eEnNxX_pP") {
		return 0, errors.New("no number")
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !spam.Sound(f) {
		return 0, errors.New("a number out of bounds")
	}
	return f, nil
}

// parseRules reads "A,B,C"; there may be none.
func (a *answer) parseRules(list string) error {
	if list == "" {
		return nil
	}
	for name := range strings.SplitSeq(list, ",") {
		if name == "" || spam.Name(name) != name {
			return fmt.Errorf("spamd answers a rule %q", reply.Clean(name, maxTold))
		}
		if a.rules = append(a.rules, name); len(a.rules) > maxRules {
			return fmt.Errorf("spamd answers more than %d rules", maxRules)
		}
	}
	return nil
}
