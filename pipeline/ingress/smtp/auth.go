package smtp

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/emersion/go-sasl"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// The bounds of a login in bytes: a response's line, and a user's name and
// password (RFC 4616 §2 has 255 characters for each).
const (
	maxResponse   = 4096
	maxCredential = 1020
)

// auth answers AUTH (RFC 4954).
func (n *session) auth(args []byte) {
	o := &n.srv.o
	mechanism, initial, has := strings.Cut(string(args), " ")
	switch {
	case o.Auth == nil:
		n.bad(notImplemented)
	case n.facts.User != "":
		n.bad(loggedIn)
	case !n.esmtp:
		n.bad(helloFirst)
	case !n.offersAuth():
		n.bad(authNeedsTLS)
	default:
		var response []byte
		if has {
			var ok bool
			if response, ok = decodeResponse([]byte(strings.TrimLeft(initial, " "))); !ok {
				n.bad(authBadCode)
				return
			}
		}
		var user, password string
		server := mechanismOf(strings.ToUpper(mechanism), &user, &password)
		if server == nil {
			n.bad(authUnknown)
			return
		}
		if n.converse(server, response) {
			n.login(user, password)
		}
	}
}

// errAuthzID: somebody wants to act for somebody else.
var errAuthzID = errors.New("the authorization identity is another user's")

// mechanismOf is the server's side of a mechanism, which fills in what it is
// told; nil if there is none of that name.
func mechanismOf(name string, user, password *string) sasl.Server {
	switch name {
	case sasl.Plain:
		return sasl.NewPlainServer(func(identity, u, p string) error {
			if *user, *password = u, p; identity != "" && identity != u {
				return errAuthzID
			}
			return nil
		})
	case sasl.Login:
		return &loginServer{user: user, password: password}
	}
	return nil
}

// converse exchanges challenges and responses, and reports whether a user and a
// password came of it.
func (n *session) converse(server sasl.Server, response []byte) bool {
	for {
		challenge, done, err := server.Next(response)
		switch {
		case errors.Is(err, errAuthzID):
			n.loginFailed(authFailed)
			return false
		case err != nil:
			n.bad(authBadCode)
			return false
		case done:
			return true
		}
		n.say("334 " + base64.StdEncoding.EncodeToString(challenge) + "\r\n")
		line, ok := n.readResponse()
		if !ok {
			return false
		}
		if response, ok = decodeResponse(line); !ok {
			n.bad(authBadCode)
			return false
		}
		if response == nil {
			response = []byte{}
		}
	}
}

// readResponse reads a line that is none of the commands.
func (n *session) readResponse() ([]byte, bool) {
	line, ok := n.readCommand(maxResponse)
	if !ok {
		return nil, false
	}
	n.transcribe("C: ", []byte("(secret)"))
	if bytes.Equal(line, []byte("*")) {
		n.bad(authCancelled)
		return nil, false
	}
	return line, true
}

// decodeResponse decodes base64 strictly; "=" is an empty initial response.
func decodeResponse(line []byte) ([]byte, bool) {
	if bytes.Equal(line, []byte("=")) {
		return []byte{}, true
	}
	out := make([]byte, base64.StdEncoding.DecodedLen(len(line)))
	k, err := base64.StdEncoding.Strict().Decode(out, line)
	return out[:k], err == nil && bytes.IndexByte(line, '\n') < 0 && bytes.IndexByte(line, '\r') < 0
}

// login has a user and a password checked, and begins the session anew for the
// user.
func (n *session) login(user, password string) {
	if !isCredential(user) || !isCredential(password) {
		n.loginFailed(authFailed)
		return
	}
	ctx, cancel := context.WithTimeoutCause(n.srv.ctx, n.srv.o.Timeouts.Judge, errSlow)
	defer cancel()
	name, err := n.srv.o.Auth.Authenticate(ctx, n.show(), user, password)
	if err == nil && name == "" {
		err = errors.New("the user has no name")
	}
	if err != nil {
		r := authTrouble
		var known *reply.Error
		if errors.As(err, &known) {
			r = reply.Of(err)
		}
		n.rec.loginErr, n.rec.loginUser = err, user
		n.loginFailed(r)
		return
	}
	n.learn(func(s *pipeline.Session) { s.User, s.Standing = name, pipeline.Authenticated })
	n.rejudge()
	n.offered = n.extensions()
	n.say(saidLogin)
}

func isCredential(s string) bool {
	return s != "" && len(s) <= maxCredential && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// loginFailed answers, and ends the session after too many.
func (n *session) loginFailed(r reply.Reply) {
	if n.logins++; n.logins >= n.srv.o.Limits.Logins {
		n.answer(r)
		n.hangUp("too many failed logins", tooManyLogins)
		return
	}
	n.answer(r)
}

// loginServer is the server's side of LOGIN, which no standard has: it asks for
// the user, then for the password.
type loginServer struct {
	user, password *string
	asked          int
}

// Next takes a response, nil if there is none yet.
func (l *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	switch l.asked {
	case 0:
		l.asked = 1
		if response == nil {
			return []byte("Username:"), false, nil
		}
		return l.Next(response)
	case 1:
		*l.user, l.asked = string(response), 2
		return []byte("Password:"), false, nil
	case 2:
		*l.password, l.asked = string(response), 3
		return nil, true, nil
	}
	return nil, false, sasl.ErrUnexpectedClientResponse
}
