// Package reply holds what Postern answers: one table that ties a verdict to
// the SMTP reply, the qmail-queue exit code and the qmail-remote report that
// say the same thing.
//
// It promises that the three never disagree about permanence: an answer that
// is temporary in one tongue is temporary in all of them, and whatever is not
// plainly permanent is temporary. Texts that leave this package are one line
// of printable ASCII.
package reply

import (
	"strconv"
	"strings"
)

// Class is the permanence of an answer. The zero Class is Temporary, so that
// an answer nobody filled in never bounces mail.
type Class uint8

// The classes of an answer (RFC 5321 §4.2.1).
const (
	Temporary Class = iota
	Success
	Permanent
)

// String names the class for logs.
func (c Class) String() string {
	switch c {
	case Success:
		return "success"
	case Permanent:
		return "permanent"
	}
	return "temporary"
}

// Letter is qmail's letter for the class: K, Z or D (qmail-remote.c).
func (c Class) Letter() byte {
	switch c {
	case Success:
		return 'K'
	case Permanent:
		return 'D'
	}
	return 'Z'
}

// Enhanced is an enhanced status code without its class digit, which follows
// from the reply (RFC 3463 §2): subject and detail.
type Enhanced struct{ Subject, Detail uint16 }

// Reply is one answer. Replies are values and are compared with ==.
type Reply struct {
	// Class is the permanence; it rules when the other fields disagree.
	Class Class
	// Code is the SMTP code; 0 means the default of the class (250, 451, 554).
	Code int
	// Enhanced is the enhanced status code; zero means 0.0 ("other").
	Enhanced Enhanced
	// Text is what the peer hears, without codes. Empty means the text of the
	// class. Make cleans it; a Text set by hand is cleaned when it is written.
	Text string
	// Exit is the qmail-queue exit code that says the same; 0 means the
	// default of the class (0, 71, 31).
	Exit uint8
}

// MaxText bounds Text in bytes, so that code, enhanced code and text fit one
// SMTP reply line (RFC 5321 §4.5.3.1.5).
const MaxText = 480

// Make returns a reply of the given SMTP code, with its text cleaned. A code
// outside 200..599 makes a temporary reply.
func Make(code int, enhanced Enhanced, text string) Reply {
	r := Reply{Class: classOf(code), Code: code, Enhanced: enhanced, Text: Clean(text, MaxText)}
	if code < 200 || code > 599 {
		r.Code = 0
	}
	return r
}

func classOf(code int) Class {
	switch {
	case code >= 200 && code < 400:
		return Success
	case code >= 500 && code < 600:
		return Permanent
	}
	return Temporary
}

// Parse reads an SMTP reply as administrators write it in a configuration:
// "554 5.7.1 text", the enhanced code and the text being optional. ok is false
// if the code is missing, is neither 4xx nor 5xx nor 2xx, or disagrees with
// the enhanced code's class.
func Parse(s string) (r Reply, ok bool) {
	word, rest, _ := strings.Cut(strings.TrimSpace(s), " ")
	code, err := strconv.Atoi(word)
	if err != nil || code < 200 || code > 599 || code/100 == 3 {
		return Reply{}, false
	}
	first, tail, _ := strings.Cut(strings.TrimSpace(rest), " ")
	enhanced, class, found := parseEnhanced(first)
	if found {
		if class != code/100 {
			return Reply{}, false
		}
		rest = tail
	}
	return Make(code, enhanced, strings.TrimSpace(rest)), true
}

func parseEnhanced(s string) (e Enhanced, class int, ok bool) {
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return Enhanced{}, 0, false
	}
	var n [3]int
	for i, p := range parts {
		v, err := strconv.Atoi(p)
		if err != nil || v < 0 || v > 999 || len(p) > 3 {
			return Enhanced{}, 0, false
		}
		n[i] = v
	}
	return Enhanced{uint16(n[1]), uint16(n[2])}, n[0], true
}

// SMTPCode is the reply's three-digit code, always of its class.
func (r Reply) SMTPCode() int {
	if r.Code != 0 && classOf(r.Code) == r.Class {
		return r.Code
	}
	return byClass[r.Class].Code
}

// EnhancedCode is the enhanced status code in full, "5.7.1" (RFC 3463 §2).
func (r Reply) EnhancedCode() string {
	digit := [...]string{Temporary: "4", Success: "2", Permanent: "5"}[r.Class]
	return digit + "." + strconv.Itoa(int(r.Enhanced.Subject)) + "." + strconv.Itoa(int(r.Enhanced.Detail))
}

// Words is the text alone, clean, never empty.
func (r Reply) Words() string {
	if t := Clean(r.Text, MaxText); t != "" {
		return t
	}
	return byClass[r.Class].Text
}

// SMTP is the reply as one line without its CRLF: "554 5.7.1 text".
func (r Reply) SMTP() string {
	return strconv.Itoa(r.SMTPCode()) + " " + r.EnhancedCode() + " " + r.Words()
}

// QueueExit is the exit code with which a qmail-queue says the same
// (qmail-queue.8): 0 for success, 11 to 40 for a permanent no, anything else
// for later.
func (r Reply) QueueExit() uint8 {
	if r.Exit != 0 && FromExit(int(r.Exit), "").Class == r.Class {
		return r.Exit
	}
	return byClass[r.Class].Exit
}

// QueueText is the custom error text for a caller of qmail-queue that reads
// one: the letter D or Z, the words, and the enhanced code as qmail writes it,
// "Dmessage refused (#5.7.1)". It is cut to max bytes, the enhanced code kept.
// Success has no text.
func (r Reply) QueueText(max int) string {
	if r.Class == Success {
		return ""
	}
	tail := " (#" + r.EnhancedCode() + ")"
	return string(r.Class.Letter()) + Clean(r.Words(), max-1-len(tail)) + tail
}

// RemoteReport is the message report of qmail-remote, without its NUL
// (qmail-remote.c): the letter K, Z or D, the words and a newline.
func (r Reply) RemoteReport() string {
	return string(r.Class.Letter()) + r.Words() + " (#" + r.EnhancedCode() + ")\n"
}

// RecipientReport is the letter of qmail-remote's recipient report: r for
// accepted, s for a temporary refusal, h for a permanent one.
func (r Reply) RecipientReport() byte {
	switch r.Class {
	case Success:
		return 'r'
	case Permanent:
		return 'h'
	}
	return 's'
}

// String is SMTP, for logs and tests.
func (r Reply) String() string { return r.SMTP() }

// Clean makes one line of printable ASCII of at most max bytes out of s:
// every other byte becomes a question mark, runs of white space one blank, and
// what is too long is cut. It is the last step before a text reaches a peer, a
// header or a caller.
func Clean(s string, max int) string {
	if isClean(s, max) {
		return s
	}
	var b strings.Builder
	blank := false
	for i := 0; i < len(s) && b.Len() < max; i++ {
		c := s[i]
		switch {
		case c == ' ' || c == '\t' || c == '\r' || c == '\n':
			blank = true
			continue
		case c < 0x20 || c > 0x7e:
			c = '?'
		}
		if blank && b.Len() > 0 {
			if b.Len()+1 == max {
				break // a line that ends in a blank is none
			}
			b.WriteByte(' ')
		}
		blank = false
		b.WriteByte(c)
	}
	return b.String()
}

func isClean(s string, max int) bool {
	if len(s) > max || len(s) > 0 && (s[0] == ' ' || s[len(s)-1] == ' ') {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] > 0x7e || s[i] == ' ' && s[i-1] == ' ' {
			return false
		}
	}
	return true
}
