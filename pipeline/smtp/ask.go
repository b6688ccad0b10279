package smtp

import (
	"context"
	"errors"
	"fmt"
)

// Ask asks whether the server would take a report, mail from nobody, for each of
// some recipients, and sends none: it says MAIL and RCPT, and stops. It returns the
// answers to RCPT, in order. An error is an *Error: an address that cannot be
// written, MAIL refused, or a connection that failed. What it has asked for is
// forgotten with the next call of Transaction, Ask or Reset.
func (c *Client) Ask(ctx context.Context, recipients ...string) ([]Reply, error) {
	defer c.watch(ctx)()
	if !c.Usable() {
		return nil, &Error{Phase: After, Err: errors.New("the connection cannot carry a question")}
	}
	commands := make([]string, len(recipients))
	for i, r := range recipients {
		path, err := FormatPath(r, false)
		if err != nil || r == "" {
			return nil, &Error{Phase: MailFrom, Err: fmt.Errorf("recipient %d: %w", i+1, errors.Join(ErrAddress, err))}
		}
		commands[i] = "RCPT TO:" + path
	}
	if c.dirty {
		if err := c.reset(); err != nil {
			return nil, err
		}
	}
	c.dirty = true
	rep, failed := c.ask(MailFrom, c.o.Timeouts.Mail, "MAIL FROM:<>")
	if failed != nil {
		return nil, failed
	}
	if rep.Code/100 != 2 {
		return nil, &Error{Phase: MailFrom, Reply: rep}
	}
	var answers []Reply
	for _, command := range commands {
		if rep, failed = c.ask(RcptTo, c.o.Timeouts.Rcpt, command); failed != nil {
			return answers, failed
		}
		answers = append(answers, rep)
		if rep.Code == 421 {
			return answers, &Error{Phase: RcptTo, Reply: rep}
		}
	}
	return answers, nil
}
