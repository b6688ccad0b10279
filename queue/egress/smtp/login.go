package smtp

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/emersion/go-sasl"

	wire "github.com/postern-mta/postern/pipeline/smtp"
)

// Credentials are what we log in by at a server (AUTH, RFC 4954).
type Credentials struct {
	User, Password string
	// Token is a bearer token (RFC 7628), used in place of Password if it is set.
	Token string
	// Mechanisms are those that may be used, in capitals; none means all: PLAIN,
	// LOGIN and CRAM-MD5 for a password, OAUTHBEARER and XOAUTH2 for a token.
	Mechanisms []string
	// Clear lets them go over a connection without TLS. Without it the policy for the
	// server is Required at least.
	Clear bool
}

// digest is different for credentials that connections must not share.
func (c *Credentials) digest() string {
	if c == nil {
		return ""
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %t", c.User, c.Password, c.Token, c.Mechanisms, c.Clear))
	return string(sum[:])
}

// The mechanisms, the best first where the server is who it should be. To anybody
// else CRAM-MD5 tells least.
var (
	byPassword = [...]string{"PLAIN", "LOGIN", "CRAM-MD5"}
	toAnybody  = [...]string{"CRAM-MD5", "PLAIN", "LOGIN"}
	byToken    = [...]string{"OAUTHBEARER", "XOAUTH2"}
)

// mechanism is the one to log in by with a server that offers these.
func (c *Credentials) mechanism(offered []string, verified bool) (sasl.Client, error) {
	order := byPassword[:]
	switch {
	case c.Token != "":
		order = byToken[:]
	case !verified:
		order = toAnybody[:]
	}
	for _, name := range order {
		if !slices.Contains(offered, name) || len(c.Mechanisms) > 0 && !slices.Contains(c.Mechanisms, name) {
			continue
		}
		switch name {
		case "PLAIN":
			return sasl.NewPlainClient("", c.User, c.Password), nil
		case "LOGIN":
			return &loginClient{c: c}, nil
		case "CRAM-MD5":
			return cramClient{c}, nil
		case "OAUTHBEARER":
			return sasl.NewOAuthBearerClient(&sasl.OAuthBearerOptions{Username: c.User, Token: c.Token}), nil
		case "XOAUTH2":
			return bearerClient{c}, nil
		}
	}
	return nil, fmt.Errorf("the server offers %s, of which none can be used", offeredList(offered))
}

func offeredList(all []string) string {
	if len(all) == 0 {
		return "no way to log in"
	}
	return "AUTH " + strings.Join(all[:min(len(all), 10)], " ")
}

// loginClient is LOGIN: the user's name and the password, each when asked, in
// whatever words (draft-murchison-sasl-login).
type loginClient struct {
	c     *Credentials
	asked int
}

// Start says nothing first, which not all servers understand.
func (*loginClient) Start() (string, []byte, error) { return "LOGIN", nil, nil }

// Next answers.
func (l *loginClient) Next([]byte) ([]byte, error) {
	l.asked++
	switch l.asked {
	case 1:
		return []byte(l.c.User), nil
	case 2:
		return []byte(l.c.Password), nil
	}
	return nil, errors.New("the server asks too often")
}

// cramClient is CRAM-MD5 (RFC 2195).
type cramClient struct{ c *Credentials }

// Start waits for the challenge.
func (cramClient) Start() (string, []byte, error) { return "CRAM-MD5", nil, nil }

// Next answers the challenge.
func (m cramClient) Next(challenge []byte) ([]byte, error) {
	mac := hmac.New(md5.New, []byte(m.c.Password))
	mac.Write(challenge)
	return []byte(m.c.User + " " + hex.EncodeToString(mac.Sum(nil))), nil
}

// bearerClient is XOAUTH2, the forerunner of OAUTHBEARER.
type bearerClient struct{ c *Credentials }

// Start says it all.
func (b bearerClient) Start() (string, []byte, error) {
	return "XOAUTH2", []byte("user=" + b.c.User + "\x01auth=Bearer " + b.c.Token + "\x01\x01"), nil
}

// Next hears why not; an empty answer ends it.
func (bearerClient) Next([]byte) ([]byte, error) { return []byte{}, nil }

// errLogin: we could not log in.
var errLogin = errors.New("the login failed")

// errNoClear: there is no TLS, and the credentials may not go without.
var errNoClear = errors.New("the connection is in clear, where this login is not sent")

// cannotLogin makes an error of phase auth.
func cannotLogin(err error) error {
	var e *wire.Error
	if errors.As(err, &e) {
		return fmt.Errorf("%w: %w", errLogin, err)
	}
	return fmt.Errorf("%w: %w", errLogin, &wire.Error{Phase: wire.Login, Err: err})
}
