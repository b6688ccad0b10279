package smtp

import (
	"encoding/base64"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// reading is a second SMTP server, as plain as can be: it has all that a client
// says in one string, cuts that by the rules of RFC 5321 and its kin, and notes
// what is answered and which messages are taken. It shares nothing with the
// server: what the server makes of the same bytes must be the same.
type reading struct {
	lmtp, repair, auth bool

	in     string // what is not read yet
	closed bool

	greeted, esmtp, login bool
	inMail, utf8          bool
	sender                string
	rcpts                 []string
	chunked               bool // a BDAT of the message was taken
	content               strings.Builder

	// answers are the first digits of the replies, in their order.
	answers  []byte
	messages []message5321
}

// message5321 is a message that was taken, its lines ended by LF.
type message5321 struct {
	sender  string
	rcpts   []string
	content string
}

// readSession reads a whole session.
func (r *reading) readSession(in string) {
	r.in = in
	r.say('2')
	if in != "" && strings.IndexByte("\r\n\t", in[0]) < 0 && (in[0] < ' ' || in[0] > '~') {
		r.close('5')
	}
	for !r.closed {
		if line, ok := r.line(2048); ok {
			r.command(line)
		}
	}
}

func (r *reading) say(digit byte) { r.answers = append(r.answers, digit) }

func (r *reading) close(digit byte) {
	r.say(digit)
	r.closed = true
}

// line is the next line, if it may be one.
func (r *reading) line(bound int) (string, bool) {
	line, rest, ended := strings.Cut(r.in, "\r\n")
	switch {
	case !ended:
		if len(line) > bound+1 {
			r.say('5')
		}
		r.closed = true
		return "", false
	case len(line) > bound:
		r.say('5')
	case strings.ContainsAny(line, "\r\n\x00"):
		r.say('5')
		r.closed = len(line) >= 4 && strings.EqualFold(line[:4], "BDAT")
	}
	r.in = rest
	return line, len(line) <= bound && !strings.ContainsAny(line, "\r\n\x00")
}

func upper(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'a' && c <= 'z' {
			b[i] = c - 32
		}
	}
	return string(b)
}

var (
	helloName    = regexp.MustCompile(`^[!-~]{1,255}$`)
	foreignVerbs = []string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PRI"}
)

func (r *reading) command(line string) {
	verb, args, _ := strings.Cut(line, " ")
	args = strings.Trim(args, " \t")
	verb = upper(verb)
	switch hello := "EHLO"; {
	case strings.HasPrefix(line, "SSH-") || slices.Contains(foreignVerbs, verb):
		r.close('5')
		return
	case verb == "LHLO" && r.lmtp, verb == hello && !r.lmtp, verb == "HELO" && !r.lmtp:
		if !helloName.MatchString(args) {
			r.say('5')
			return
		}
		r.forget()
		r.greeted, r.esmtp = true, verb != "HELO"
		r.say('2')
		return
	}
	switch verb {
	case "MAIL":
		r.mail(args)
	case "RCPT":
		r.rcpt(args)
	case "DATA":
		r.data(args)
	case "BDAT":
		r.bdat(args)
	case "AUTH":
		r.authenticate(args)
	case "RSET", "QUIT":
		if args != "" {
			r.say('5')
			return
		}
		r.forget()
		r.say('2')
		r.closed = verb == "QUIT"
	case "VRFY":
		r.sayIf(args != "")
	case "NOOP", "HELP":
		r.say('2')
	default:
		r.say('5')
	}
}

func (r *reading) sayIf(ok bool) {
	if ok {
		r.say('2')
	} else {
		r.say('5')
	}
}

// forget ends the transaction.
func (r *reading) forget() {
	r.inMail, r.utf8, r.sender, r.rcpts, r.chunked = false, false, "", nil, false
	r.content.Reset()
}

const (
	atoms    = "-A-Za-z0-9!#$%&'*+/=?^_`{|}~."
	beyond   = `\x{A0}-\x{10FFFF}`
	label    = "[A-Za-z0-9_" + beyond + "-]+"
	literal  = `\[[A-Za-z0-9.:_-]+\]`
	xchars   = `(?:[!-*,-<>-~]|\+[2-6][0-9A-F]|\+7[0-9A-E]|\+[89A-F][0-9A-F])+`
	quoted   = `"(?:[ !#-\[\]-~` + beyond + `]|\\[ -~])*"`
	domain   = "(?:" + label + `(?:\.` + label + `)*\.?|` + literal + ")"
	ascii    = `(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|` + literal + ")"
	anyRoute = "((?:@" + ascii + ",)*@" + ascii + ":)?"
)

var (
	pathForm    = regexp.MustCompile("^<(?:" + anyRoute + "((?:[" + atoms + beyond + "]+|" + quoted + ")@(" + domain + ")|[" + atoms + beyond + "]+)?)>")
	paramName   = regexp.MustCompile(`^[A-Z0-9][A-Z0-9-]*$`)
	sizeForm    = regexp.MustCompile(`^[0-9]{1,20}$`)
	bodyForm    = regexp.MustCompile(`^(?:7BIT|8BITMIME)$`)
	retForm     = regexp.MustCompile(`^(?:FULL|HDRS)$`)
	xtextForm   = regexp.MustCompile(`^` + xchars + `$`)
	notifyForm  = regexp.MustCompile(`^(?:NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY))*)$`)
	orcptForm   = regexp.MustCompile(`^[A-Za-z0-9-]+;` + xchars + `$`)
	routeDomain = regexp.MustCompile(ascii)
)

// path reads a path; params are what follows it.
func path(s string) (address, params string, ok bool) {
	s = strings.TrimLeft(s, " ")
	// A byte that is no UTF-8 would look like U+FFFD to the expression.
	m := pathForm.FindStringSubmatchIndex(s)
	if m == nil || !utf8.ValidString(s[:m[1]]) {
		return "", "", false
	}
	group := func(n int) string {
		if m[2*n] < 0 {
			return ""
		}
		return s[m[2*n]:m[2*n+1]]
	}
	for _, d := range routeDomain.FindAllString(group(1), -1) {
		if len(d) > 255 {
			return "", "", false
		}
	}
	if len(group(3)) > 255 || len(group(2)) > 1002 || group(1) != "" && group(2) == "" {
		return "", "", false
	}
	return group(2), s[m[1]:], true
}

// parameters reads what follows a path, each as its table has it.
func (r *reading) parameters(s string, table map[string]func(string) bool) (names []string, ok bool) {
	if s != "" && s[0] != ' ' && s[0] != '\t' {
		return nil, false
	}
	for _, word := range strings.FieldsFunc(s, func(c rune) bool { return c == ' ' || c == '\t' }) {
		name, value, has := strings.Cut(word, "=")
		name = upper(name)
		valid := table[name]
		if !paramName.MatchString(name) || slices.Contains(names, name) || valid == nil || !r.esmtp || has && value == "" || !has && value != "" {
			return nil, false
		}
		if has == (name == "SMTPUTF8") || !valid(upperUnless(name, value)) {
			return nil, false
		}
		names = append(names, name)
	}
	return names, len(names) <= 32
}

// upperUnless makes words in any case comparable; identifiers stay.
func upperUnless(name, value string) string {
	if name == "ENVID" || name == "ORCPT" || name == "AUTH" {
		return value
	}
	return upper(value)
}

func (r *reading) mail(args string) {
	ok := r.greeted && !r.inMail && len(args) >= 5 && upper(args[:5]) == "FROM:"
	if !ok {
		r.say('5')
		return
	}
	table := map[string]func(string) bool{
		"SIZE": sizeForm.MatchString, "BODY": bodyForm.MatchString, "RET": retForm.MatchString,
		"SMTPUTF8": func(string) bool { return true },
		"ENVID":    func(v string) bool { return len(v) <= 100 && xtextForm.MatchString(v) },
	}
	if r.auth {
		table["AUTH"] = func(v string) bool { return v == "<>" || xtextForm.MatchString(v) }
	}
	address, params, ok := path(args[5:])
	names, ok2 := r.parameters(params, table)
	utf := slices.Contains(names, "SMTPUTF8")
	if !ok || !ok2 || !utf && !isPlain(address) {
		r.say('5')
		return
	}
	r.inMail, r.sender, r.utf8 = true, address, utf
	r.say('2')
}

func isPlain(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func (r *reading) rcpt(args string) {
	if !r.inMail || r.chunked || len(args) < 3 || upper(args[:3]) != "TO:" {
		r.say('5')
		return
	}
	address, params, ok := path(args[3:])
	_, ok2 := r.parameters(params, map[string]func(string) bool{
		"NOTIFY": notifyForm.MatchString,
		"ORCPT":  func(v string) bool { return len(v) <= 500 && orcptForm.MatchString(v) },
	})
	if !ok || !ok2 || address == "" || !r.utf8 && !isPlain(address) {
		r.say('5')
		return
	}
	r.rcpts = append(r.rcpts, address)
	r.say('2')
}

func (r *reading) data(args string) {
	if len(r.rcpts) == 0 || r.chunked || args != "" {
		r.say('5')
		return
	}
	r.say('3')
	var lines []string
	for {
		line, rest, ended := strings.Cut(r.in, "\r\n")
		if !ended {
			r.closed = true
			return
		}
		if r.in = rest; line == "." {
			break
		}
		lines = append(lines, strings.TrimPrefix(line, "."))
	}
	r.take(append(lines, ""))
}

// take takes a message, or refuses it for its lines. What stands behind the last
// line end is the last of them.
func (r *reading) take(lines []string) {
	bare := false
	for _, l := range lines {
		bare = bare || strings.ContainsAny(l, "\r\n\x00")
	}
	text := strings.ReplaceAll(strings.ReplaceAll(strings.Join(lines, "\n"), "\x00", ""), "\r", "\n")
	if text != "" && text[len(text)-1] != '\n' {
		text += "\n"
	}
	for range r.rcpts {
		r.sayIf(!bare || r.repair)
		if !r.lmtp {
			break
		}
	}
	if !bare || r.repair {
		r.messages = append(r.messages, message5321{r.sender, r.rcpts, text})
	}
	r.forget()
}

var bdatForm = regexp.MustCompile(`^ *([0-9]{1,18})(?: +(LAST))? *$`)

func (r *reading) bdat(args string) {
	m := bdatForm.FindStringSubmatch(upper(args))
	if m == nil {
		r.close('5')
		return
	}
	size, _ := strconv.Atoi(m[1]) //nolint:errcheck // 18 digits are a number
	switch {
	case size > maxSkip && len(r.rcpts) == 0:
		r.close('5')
		return
	case size > len(r.in):
		r.closed = true
		return
	}
	chunk := r.in[:size]
	r.in = r.in[size:]
	if len(r.rcpts) == 0 {
		r.say('5')
		return
	}
	r.chunked = true
	r.content.WriteString(chunk)
	if m[2] == "" {
		r.say('2')
		return
	}
	r.take(strings.Split(r.content.String(), "\r\n"))
}

func (r *reading) authenticate(args string) {
	mechanism, initial, has := strings.Cut(args, " ")
	if args == "" || !r.auth || !r.greeted || !r.esmtp || r.inMail || r.login {
		r.say('5')
		return
	}
	decode := func(s string) (string, bool) {
		if s == "=" {
			return "", true
		}
		b, err := base64.StdEncoding.Strict().DecodeString(s)
		return string(b), err == nil
	}
	ask := func() (string, bool) {
		r.say('3')
		line, ok := r.line(4096)
		if !ok {
			return "", false
		}
		said, ok := decode(line)
		if !ok || line == "*" {
			r.say('5')
			return "", false
		}
		return said, true
	}
	var first string
	ok := true
	if has {
		if first, ok = decode(strings.TrimLeft(initial, " ")); !ok {
			r.say('5')
			return
		}
	}
	mechanism = upper(mechanism)
	if mechanism != "PLAIN" && mechanism != "LOGIN" {
		r.say('5')
		return
	}
	if !has {
		if first, ok = ask(); !ok {
			return
		}
	}
	parts := []string{"", first, ""}
	if mechanism == "PLAIN" {
		if parts = strings.Split(first, "\x00"); len(parts) != 3 {
			r.say('5')
			return
		}
	} else if parts[2], ok = ask(); !ok {
		return
	}
	switch {
	case parts[0] != "" && parts[0] != parts[1], parts[1] == "", parts[2] == "" || strings.ContainsRune(parts[2], 0) || !utf8.ValidString(parts[2]):
		r.say('5')
	case parts[1] == "trouble" && len(parts[2]) <= maxCredential:
		r.say('4')
	case parts[1] == "joe" && parts[2] == "secret":
		r.login = true
		r.say('2')
	default:
		r.say('5')
	}
}
