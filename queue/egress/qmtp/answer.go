package qmtp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline/reply"
)

// MaxAnswer is the longest answer in bytes that is read.
const MaxAnswer = 8192

// The ways in which an answer is none.
var (
	errNetstring = errors.New("the answer is no netstring")
	errTooLong   = fmt.Errorf("the answer is longer than %d bytes", MaxAnswer)
	errLetter    = errors.New("the answer begins with none of K, Z and D")
)

// The codes that stand for qmail's letters.
var letters = map[byte]int{'K': 250, 'Z': 451, 'D': 554}

// ReadAnswer reads one answer: a netstring of K, Z or D and a text, which may hold
// an enhanced code as qmail writes it, "(#5.1.1)". It reads nothing beyond.
func ReadAnswer(r *bufio.Reader) (reply.Reply, error) {
	n, digits := 0, 0
	for {
		b, err := r.ReadByte()
		switch {
		case err != nil:
			return reply.Reply{}, err
		case b == ':' && digits > 0:
			return readText(r, n)
		case b < '0' || b > '9':
			return reply.Reply{}, errNetstring
		}
		digits++
		if n = n*10 + int(b-'0'); n > MaxAnswer || digits > 10 {
			return reply.Reply{}, errTooLong
		}
	}
}

func readText(r *bufio.Reader, n int) (reply.Reply, error) {
	text := make([]byte, n+1)
	if _, err := io.ReadFull(r, text); err != nil {
		return reply.Reply{}, err
	}
	if text[n] != ',' {
		return reply.Reply{}, errNetstring
	}
	code := letters[text[0]]
	if code == 0 || n == 0 {
		return reply.Reply{}, errLetter
	}
	words, enhanced := cutCode(string(text[1:n]), text[0])
	if words == "" {
		words = "the server gave no reason"
	}
	return reply.Make(code, enhanced, words), nil
}

// classes are the first digits of enhanced codes.
var classes = map[byte]string{'K': "2", 'Z': "4", 'D': "5"}

// cutCode takes the enhanced code off the end of a text, or its beginning, if it is of the letter's
// class.
func cutCode(text string, letter byte) (words string, e reply.Enhanced) {
	text = strings.TrimSpace(text)
	if code, rest, ok := strings.Cut(text, " "); ok { // in front, as mailfront has it
		if e, ok := parseCode(code, letter); ok {
			return strings.TrimSpace(rest), e
		}
	}
	i := strings.LastIndex(text, "(#")
	if i < 0 || !strings.HasSuffix(text, ")") {
		return text, e
	}
	e, ok := parseCode(text[i+2:len(text)-1], letter)
	if !ok {
		return text, e
	}
	return strings.TrimSpace(text[:i]), e
}

func parseCode(code string, letter byte) (e reply.Enhanced, ok bool) {
	parts := strings.Split(code, ".")
	if len(parts) != 3 || parts[0] != classes[letter] {
		return e, false
	}
	subject, err := strconv.ParseUint(parts[1], 10, 16)
	detail, err2 := strconv.ParseUint(parts[2], 10, 16)
	if err != nil || err2 != nil || subject > 999 || detail > 999 {
		return e, false
	}
	return reply.Enhanced{Subject: uint16(subject), Detail: uint16(detail)}, true
}
