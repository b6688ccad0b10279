package reply

import "errors"

// Error is an error that knows its answer. Code that fails for a reason the
// peer may hear returns one; every other error is answered as Trouble.
type Error struct {
	// Reply is what the peer hears.
	Reply Reply
	// Err is the detail for the log; it may be nil.
	Err error
}

// Error is the detail, or the reply's words if there is none.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Err.Error()
	}
	return e.Reply.Words()
}

// Unwrap gives the detail.
func (e *Error) Unwrap() error { return e.Err }

// With ties an answer to an error; a nil err is allowed.
func With(r Reply, err error) *Error { return &Error{Reply: r, Err: err} }

// Of is the answer to err: OK for nil, the reply of the first Error in its
// chain, else Trouble. Permanence is thus always claimed, never guessed.
func Of(err error) Reply {
	if err == nil {
		return OK
	}
	var e *Error
	if errors.As(err, &e) && e.Reply.Class != Success {
		return e.Reply
	}
	return Trouble
}
