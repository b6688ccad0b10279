package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// Backend knows users and their passwords. name is the user's own name for logs,
// rules and the message's Origin. Every error is a *reply.Error: permanent if
// user and password do not belong together (it is an ErrCredentials then),
// temporary if that could not be found out.
type Backend interface {
	Authenticate(ctx context.Context, s *pipeline.Session, user, password string) (name string, err error)
}

// ErrCredentials is what every error is that tells of a user and a password that
// do not belong together. An error of a Chain may be that and temporary, if
// another of its backends was in trouble.
var ErrCredentials = errors.New("user and password do not belong together")

// Bounds of what a client may say, in bytes.
const (
	MaxUser     = 255
	MaxPassword = 1024
)

// refused is the answer to wrong credentials (RFC 4954 §6), why is for the log.
func refused(why string) error {
	return reply.With(reply.Make(535, reply.Enhanced{Subject: 7, Detail: 8}, "authentication failed"), fmt.Errorf("%w: %s", ErrCredentials, why))
}

// trouble is the answer when nobody can say whether credentials are right
// (RFC 4954 §6).
func trouble(err error) error {
	return reply.With(reply.Make(454, reply.Enhanced{Subject: 7, Detail: 0}, "temporary authentication failure"), err)
}

// plausible refuses what cannot be a user or a password, before anybody works
// on it.
func plausible(user, password string) error {
	switch {
	case user == "" || len(user) > MaxUser:
		return refused("the user's name is empty or too long")
	case !utf8.ValidString(user) || strings.ContainsFunc(user, isControl):
		return refused("the user's name is not clean text")
	case password == "" || len(password) > MaxPassword:
		return refused("the password is empty or too long")
	case strings.Contains(password, "\x00"):
		return refused("the password holds a NUL")
	}
	return nil
}

// isControl reports control characters, the second block of them included.
func isControl(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }

// Normal is a user's name as File compares it: the domain in lower case, the
// local part as it is.
func Normal(user string) string {
	if at := strings.LastIndexByte(user, '@'); at >= 0 {
		return user[:at] + strings.ToLower(user[at:])
	}
	return user
}

// Chain asks its backends in order. The first that knows user and password
// decides. If none does and one was in trouble, the answer is temporary: the
// user may be one of those that it knows.
type Chain []Backend

// Authenticate asks the backends.
func (c Chain) Authenticate(ctx context.Context, s *pipeline.Session, user, password string) (string, error) {
	var errs []error
	temporary := len(c) == 0
	for _, b := range c {
		name, err := b.Authenticate(ctx, s, user, password)
		if err == nil {
			return name, nil
		}
		temporary = temporary || reply.Of(err).Class != reply.Permanent
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	switch {
	case len(errs) == 0:
		return "", trouble(errors.New("there is no backend to ask"))
	case temporary:
		return "", trouble(errors.Join(errs...))
	}
	return "", errs[len(errs)-1]
}

// slots bound how much is done at a time.
type slots chan struct{}

// take waits for a slot until ctx ends.
func (s slots) take(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	default:
	}
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for one of %d others to end: %w", cap(s), ctx.Err())
	}
}

func (s slots) give() { <-s }

// orNumber fills in what was left out.
func orNumber[N int | int64 | uint8 | uint32 | uint64](n *N, otherwise N) {
	if *n <= 0 {
		*n = otherwise
	}
}

func orTime(d *time.Duration, otherwise time.Duration) {
	if *d <= 0 {
		*d = otherwise
	}
}
