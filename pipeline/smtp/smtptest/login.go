package smtptest

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"strings"

	"github.com/postern-mta/postern/pipeline/smtp"
)

// logins are the mechanisms that the server knows. Each gets what the client said
// first and a way to ask for more, and gives the user and whether he is known.
var logins = map[string]func(c *session, first string, ask func(string) (string, error)) (string, bool, error){
	"PLAIN":       loginPlain,
	"LOGIN":       loginLogin,
	"CRAM-MD5":    loginCRAM,
	"XOAUTH2":     loginBearer,
	"OAUTHBEARER": loginBearer,
}

func (c *session) doAuth(_, args string) error {
	name, first, _ := strings.Cut(args, " ")
	name = strings.ToUpper(name)
	if st := c.step(Auth, name); st != nil {
		return c.act(st, st.Reply)
	}
	login := logins[name]
	if login == nil || c.user != "" {
		return c.say("504 5.5.4 no such mechanism")
	}
	if first == "=" {
		first = ""
	}
	said, err := base64.StdEncoding.DecodeString(first)
	if err != nil {
		return c.say("501 5.5.2 not base64")
	}
	user, known, err := login(c, string(said), c.ask)
	switch {
	case err != nil:
		return err
	case !known:
		return c.say("535 5.7.8 who are you?")
	}
	c.user = user
	return c.say("235 2.7.0 welcome")
}

// ask asks the client in a login.
func (c *session) ask(challenge string) (string, error) {
	if err := c.say("334 " + base64.StdEncoding.EncodeToString([]byte(challenge))); err != nil {
		return "", err
	}
	if err := c.flush(); err != nil {
		return "", err
	}
	line, err := c.r.Line(16 * smtp.MaxCommand)
	if err != nil {
		return "", err
	}
	said, err := base64.StdEncoding.DecodeString(string(line))
	if err != nil {
		return "", nil //nolint:nilerr // nobody is known by that
	}
	return string(said), nil
}

func (c *session) knows(user, password string) bool {
	want, ok := c.s.o.Users[user]
	return ok && subtle.ConstantTimeCompare([]byte(want), []byte(password)) == 1
}

func loginPlain(c *session, first string, ask func(string) (string, error)) (string, bool, error) {
	var err error
	if first == "" {
		if first, err = ask(""); err != nil {
			return "", false, err
		}
	}
	parts := strings.Split(first, "\x00")
	if len(parts) != 3 {
		return "", false, nil
	}
	return parts[1], c.knows(parts[1], parts[2]), nil
}

func loginLogin(c *session, user string, ask func(string) (string, error)) (string, bool, error) {
	var err error
	if user == "" {
		if user, err = ask("Username:"); err != nil {
			return "", false, err
		}
	}
	password, err := ask("Password:")
	return user, err == nil && c.knows(user, password), err
}

func loginCRAM(c *session, _ string, ask func(string) (string, error)) (string, bool, error) {
	challenge := "<1.2@" + c.s.o.Name + ">"
	said, err := ask(challenge)
	if err != nil {
		return "", false, err
	}
	i := strings.LastIndexByte(said, ' ')
	if i < 0 {
		return "", false, nil
	}
	mac := hmac.New(md5.New, []byte(c.s.o.Users[said[:i]]))
	mac.Write([]byte(challenge))
	_, there := c.s.o.Users[said[:i]]
	return said[:i], there && said[i+1:] == hex.EncodeToString(mac.Sum(nil)), nil
}

// loginBearer takes "user=U^Aauth=Bearer TOKEN^A^A" and the form of RFC 7628,
// where the token is the password.
func loginBearer(c *session, first string, ask func(string) (string, error)) (string, bool, error) {
	var err error
	if first == "" {
		if first, err = ask(""); err != nil {
			return "", false, err
		}
	}
	var user, token string
	for part := range strings.SplitSeq(first, "\x01") {
		if rest, ok := strings.CutPrefix(part, "user="); ok {
			user = rest
		}
		if rest, ok := strings.CutPrefix(part, "n,a="); ok {
			user = strings.TrimSuffix(rest, ",")
		}
		if rest, ok := strings.CutPrefix(part, "auth=Bearer "); ok {
			token = rest
		}
	}
	if c.knows(user, token) {
		return user, true, nil
	}
	_, err = ask(`{"status":"400"}`)
	return user, false, err
}
