package smtp

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/emersion/go-sasl"
)

// The bounds of a login: how often the server may ask, and how long the command
// may be with what the mechanism says first (RFC 4954 §4 has longer lines for
// AUTH alone; some servers have not).
const (
	maxChallenges = 10
	maxAuth       = 510
)

// Login logs in with AUTH (RFC 4954). Whether the connection is private enough
// for what the mechanism says is for the caller to ask before. A refusal is an
// *Error of phase Login with its Reply, after which the connection is as it was.
// No error holds anything of what the mechanism said.
func (c *Client) Login(ctx context.Context, mechanism sasl.Client) error {
	defer c.watch(ctx)()
	if !c.Usable() {
		return &Error{Phase: Login, Err: errors.New("the connection cannot carry a login")}
	}
	name, first, err := mechanism.Start()
	if err != nil {
		return &Error{Phase: Login, Err: fmt.Errorf("SASL: %w", err)}
	}
	command := "AUTH " + name
	late := false // what the mechanism says first waits for the first challenge
	if first != nil {
		said := "="
		if len(first) > 0 {
			said = base64.StdEncoding.EncodeToString(first)
		}
		if late = len(command)+1+len(said) > maxAuth; !late {
			command += " " + said
		}
	}
	rep, failed := c.ask(Login, c.o.Timeouts.Login, command)
	for range maxChallenges {
		switch {
		case failed != nil:
			return failed
		case rep.Code == 235:
			return nil
		case rep.Code != 334:
			return c.refused(rep)
		}
		answer := first
		if !late {
			if answer, err = respond(mechanism, rep); err != nil {
				return c.cancelLogin(err)
			}
		}
		late = false
		rep, failed = c.ask(Login, c.o.Timeouts.Login, base64.StdEncoding.EncodeToString(answer))
	}
	return c.cancelLogin(errors.New("the server asks too often"))
}

// respond is the mechanism's answer to a challenge.
func respond(mechanism sasl.Client, rep Reply) ([]byte, error) {
	challenge, err := base64.StdEncoding.DecodeString(strings.TrimSpace(rep.Text))
	if err != nil {
		return nil, errors.New("the server's challenge is not base64")
	}
	answer, err := mechanism.Next(challenge)
	if err != nil {
		return nil, fmt.Errorf("SASL: %w", err)
	}
	return answer, nil
}

// refused is an answer to a login that is no yes.
func (c *Client) refused(rep Reply) error {
	if class := rep.Code / 100; class != 4 && class != 5 {
		return c.fail(Login, Reply{}, fmt.Errorf("AUTH was answered with %d", rep.Code))
	}
	return c.fail(Login, rep, nil)
}

// cancelLogin ends a login that cannot go on (RFC 4954 §4).
func (c *Client) cancelLogin(cause error) error {
	rep, failed := c.ask(Login, c.o.Timeouts.Login, "*")
	if failed != nil {
		return failed
	}
	if rep.Code/100 == 4 || rep.Code/100 == 5 {
		return &Error{Phase: Login, Reply: rep, Err: cause}
	}
	return c.fail(Login, Reply{}, cause)
}
