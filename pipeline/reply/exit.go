package reply

import "strings"

// exitRange is a row of the exit table: what the callers of qmail-queue make
// of an exit code (qmail.c:qmail_close, qmail-queue.8). Later rows win.
type exitRange struct {
	first, last int
	reply       Reply
}

// exits is what the next program's exit code means. Codes outside every row
// are temporary. 100 is not permanent here, unlike in RCPTCHECK and .qmail.
var exits = []exitRange{
	{0, 0, OK},
	{11, 40, Reply{Permanent, 554, Enhanced{3, 0}, "qq permanent problem", 0}},
	{11, 11, Reply{Permanent, 554, Enhanced{1, 3}, "envelope address too long for qq", 0}},
	{31, 31, Reply{Permanent, 554, Enhanced{3, 0}, "mail server permanently rejected message", 0}},
	{51, 51, Reply{Temporary, 451, Enhanced{3, 0}, "qq out of memory", 0}},
	{52, 52, Reply{Temporary, 451, Enhanced{3, 0}, "qq timeout", 0}},
	{53, 53, Reply{Temporary, 451, Enhanced{3, 0}, "qq write error or disk full", 0}},
	{54, 54, Reply{Temporary, 451, Enhanced{3, 0}, "qq read error", 0}},
	{55, 55, Reply{Temporary, 451, Enhanced{3, 0}, "qq unable to read configuration", 0}},
	{56, 56, Reply{Temporary, 451, Enhanced{3, 0}, "qq trouble making network connection", 0}},
	{61, 61, Reply{Temporary, 451, Enhanced{3, 0}, "qq trouble in home directory", 0}},
	{62, 66, Reply{Temporary, 451, Enhanced{3, 0}, "qq trouble creating files in queue", 0}},
	{71, 71, Reply{Temporary, 451, Enhanced{3, 0}, "mail server temporarily rejected message", 0}},
	{72, 72, Reply{Temporary, 451, Enhanced{4, 1}, "connection to mail server timed out", 0}},
	{73, 73, Reply{Temporary, 451, Enhanced{4, 1}, "connection to mail server rejected", 0}},
	{74, 74, Reply{Temporary, 451, Enhanced{4, 2}, "communication with mail server failed", 0}},
	{81, 81, Reply{Temporary, 451, Enhanced{3, 0}, "qq internal bug", 0}},
	{91, 91, Reply{Temporary, 451, Enhanced{3, 0}, "qq internal bug", 0}},
	{115, 115, Reply{Permanent, 554, Enhanced{1, 3}, "envelope address too long for qq", 0}},
	{120, 120, Reply{Temporary, 451, Enhanced{3, 0}, "unable to exec qq", 0}},
}

// CustomExits are the codes that say "read my text on the error descriptor":
// 82 in netqmail, notqmail and sagredo's qmail, 88 in sagredo's and indimail.
var CustomExits = [...]int{82, 88}

// FromExit is what a caller of qmail-queue tells its peer when that program
// exits with code, having written text on the error descriptor ("" if none).
// The text counts only with a custom exit code and from three bytes up; its
// letter D means permanent, anything else temporary. Negative codes stand for
// a program that died of a signal.
func FromExit(code int, text string) Reply {
	if code < 0 {
		return Reply{Temporary, 451, Enhanced{3, 0}, "qq crashed", 81}
	}
	r := Reply{Temporary, 451, Enhanced{3, 0}, "qq temporary problem", 0}
	for _, row := range exits {
		if code >= row.first && code <= row.last {
			r = row.reply
		}
	}
	if isCustom(code) && len(text) > 2 {
		r = fromText(text)
	}
	if code > 0 && code < 256 && r.Class != Success {
		r.Exit = uint8(code)
	}
	return r
}

func isCustom(code int) bool {
	for _, c := range CustomExits {
		if code == c {
			return true
		}
	}
	return false
}

// fromText reads a custom error text: a letter, the words, and perhaps an
// enhanced code in parentheses at the end, "(#5.7.1)".
func fromText(text string) Reply {
	code := 451
	if text[0] == 'D' {
		code = 554
	}
	words := Clean(text[1:], MaxText)
	enhanced := Enhanced{3, 0}
	if i := strings.LastIndex(words, "(#"); i >= 0 && strings.HasSuffix(words, ")") {
		e, class, ok := parseEnhanced(words[i+2 : len(words)-1])
		if ok && class == code/100 {
			enhanced = e
			words = strings.TrimSpace(words[:i])
		}
	}
	return Make(code, enhanced, words)
}
