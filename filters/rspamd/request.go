package rspamd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/servers"
)

// The bounds of a question and an answer: recipients that rspamd is told, bytes
// of an answer with and without its HTTP header, bytes of an answer that are
// told, and how long rspamd may take to close a connection.
const (
	maxRecipients = 100
	maxAnswer     = 1 << 20
	maxHTTP       = maxAnswer + 64<<10
	maxTold       = 120
	closeTime     = 500 * time.Millisecond
)

// request is the head of a question about the first size bytes of a message
// (https://rspamd.com/doc/architecture/protocol.html).
func (f *Filter) request(tx *pipeline.Transaction, size int64) string {
	var b strings.Builder
	field := func(name, value string) {
		if value != "" && len(value) <= 2000 {
			b.WriteString(name + ": " + clean(value) + "\r\n")
		}
	}
	b.WriteString("POST /checkv2 HTTP/1.1\r\n")
	field("Host", "localhost")
	field("Connection", "close")
	field("Content-Length", strconv.FormatInt(size, 10))
	field("Password", f.password)
	field("Settings-ID", f.o.Settings)
	s := tx.Session
	if s.Peer.IsValid() {
		field("IP", s.Peer.Addr().Unmap().WithZone("").String())
	}
	field("Helo", s.Helo)
	field("Hostname", s.PeerName)
	field("User", s.User)
	field("MTA-Name", f.host)
	field("Queue-Id", tx.ID)
	field("From", "<"+tx.Envelope.Sender+">")
	for i, n := range tx.Active {
		if i == maxRecipients {
			break
		}
		field("Rcpt", "<"+tx.Envelope.Recipients[n].Address+">")
	}
	field("Deliver-To", f.user(tx))
	b.WriteString("\r\n")
	return b.String()
}

// clean makes the value of a field of what others say of themselves.
func clean(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return '?'
		}
		return c
	}, s)
}

// user is for whom rspamd is told that the message is, "" for nobody.
func (f *Filter) user(tx *pipeline.Transaction) string {
	switch f.o.User {
	case "none":
		return ""
	case "recipient":
		if len(tx.Active) == 1 {
			return tx.Envelope.Recipients[tx.Active[0]].Address
		}
		return ""
	}
	return f.o.User
}

// ask has a rspamd judge the first size bytes of a message.
func ask(ctx context.Context, s *servers.Server, head string, body io.ReaderAt, size int64) (answer, error) {
	c, err := s.Dial(ctx)
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	if err := c.Send(head, body, size); err != nil {
		return answer{}, c.Reason(ctx, err, maxHTTP, func(b []byte) error {
			_, why := readAnswer(bufio.NewReader(strings.NewReader(string(b))))
			return why
		})
	}
	b, err := whole(ctx, c)
	if err != nil {
		return answer{}, err
	}
	return parseAnswer(b)
}

// ping asks whether a rspamd works.
func ping(ctx context.Context, s *servers.Server) (about string, err error) {
	c, err := s.Dial(ctx)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	b, err := whole(ctx, c)
	if err == nil && strings.TrimSpace(string(b)) != "pong" {
		err = fmt.Errorf("rspamd answers %q to /ping", reply.Clean(string(b), maxTold))
	}
	return Name, err
}

// whole reads the one answer that comes on a connection.
func whole(ctx context.Context, c *servers.Conn) ([]byte, error) {
	r := bufio.NewReader(io.LimitReader(c, maxHTTP))
	b, err := readAnswer(r)
	if err != nil {
		return nil, err
	}
	if ctx.Err() == nil && r.Buffered() == 0 {
		// One that leaves the connection open has answered all the same.
		at := time.Now().Add(closeTime)
		if until, ok := ctx.Deadline(); ok && until.Before(at) {
			at = until
		}
		if err := c.SetReadDeadline(at); err != nil {
			return nil, err
		}
	}
	if _, err := r.ReadByte(); err == nil {
		return nil, errors.New("rspamd answers more than once")
	} else if err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("after rspamd's answer: %w", err)
	}
	return b, nil
}

// readAnswer reads an HTTP response with a length. One with a status other than
// 200 is servers.Refused.
func readAnswer(r *bufio.Reader) ([]byte, error) {
	response, err := http.ReadResponse(r, &http.Request{Method: http.MethodPost})
	if err != nil {
		return nil, fmt.Errorf("rspamd's answer: %s", reply.Clean(err.Error(), maxTold))
	}
	defer response.Body.Close()
	switch n := response.ContentLength; {
	case response.StatusCode != http.StatusOK:
		return nil, servers.Refused(fmt.Errorf("rspamd answers %s", reply.Clean(response.Status, maxTold)))
	case n < 0:
		return nil, errors.New("rspamd's answer does not say how long it is")
	case n > maxAnswer:
		return nil, fmt.Errorf("rspamd answers more than %d bytes", maxAnswer)
	default:
		b := make([]byte, n)
		if _, err := io.ReadFull(response.Body, b); err != nil {
			return nil, fmt.Errorf("rspamd's answer is cut off: %w", err)
		}
		return b, nil
	}
}
