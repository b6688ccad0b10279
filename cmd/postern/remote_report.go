package main

import (
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/reply"
	esmtp "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// remoteReport writes what came of a delivery as qmail-remote.c does: for each
// recipient r, h or s, as far as the conversation got, then K, Z or D for the
// message, which is for those with an r.
//
// qmail-remote makes one transaction; our exit may make several, for recipients
// beyond what a server takes at a time, and those may end differently. Then the
// message's line speaks for those that fared best, and the others have an s or
// an h with the words that are theirs.
func remoteReport(results []smtp.Result) []byte {
	if len(results) == 0 {
		return []byte(reply.Trouble.RemoteReport() + "\x00")
	}
	// What is said for each recipient and for the message must fit.
	r := remoteWords{limit: min(maxSaid, wire.MaxReport/(len(results)+1)-maxOwn)}
	main, any := mainResult(results)
	last := len(results)
	for last > 0 && any && before(results[last-1]) && sameEnd(results[last-1], results[main]) {
		last-- // nobody was asked about these
	}
	for _, x := range results[:last] {
		switch {
		case refused(x), any && !sameEnd(x, results[main]):
			r.recipient(x)
		default:
			r.b.WriteString("r\x00")
		}
	}
	if !any {
		r.line('D', "Giving up on "+at(results[main]), esmtp.Reply{})
	} else {
		r.message(results[main])
	}
	return []byte(r.b.String())
}

// Bounds in bytes: what of a server's words is told (qmail-remote.c,
// HUGESMTPTEXT), and what stands around it.
const (
	maxSaid = 5000
	maxOwn  = 600
)

// refused reports whether a recipient was refused as such.
func refused(x smtp.Result) bool { return x.Phase == esmtp.RcptTo && x.Reply.Class != reply.Success }

// before reports whether the conversation ended before the recipient's turn.
func before(x smtp.Result) bool { return x.Phase < esmtp.RcptTo || x.Phase == esmtp.After }

// mainResult is the result that the message's line is about: delivered if any
// was, else deferred if any was, else one that failed; none is left if every
// recipient was refused.
func mainResult(results []smtp.Result) (index int, any bool) {
	rank := map[reply.Class]int{reply.Success: 3, reply.Temporary: 2, reply.Permanent: 1}
	best := 0
	for i, x := range results {
		if n := rank[x.Reply.Class]; !refused(x) && n > best {
			index, best, any = i, n, true
		}
	}
	return index, any
}

// sameEnd reports whether the message's line is true for a recipient as well.
func sameEnd(x, main smtp.Result) bool { return x.Reply.Class == main.Reply.Class }

// at is the server's address, as qmail-remote tells it.
func at(x smtp.Result) string {
	if x.Address.IsValid() {
		return x.Address.String()
	}
	return "the server"
}

// remoteWords is a report that is being written.
type remoteWords struct {
	b     strings.Builder
	limit int
}

// said is a server's answer, each line with its code.
func (r *remoteWords) said(a esmtp.Reply) {
	if a.Code == 0 || r.limit <= 0 {
		return
	}
	code, status := strconv.Itoa(a.Code), ""
	if a.Coded {
		status = strconv.Itoa(a.Code/100) + "." + strconv.Itoa(int(a.Enhanced.Subject)) + "." + strconv.Itoa(int(a.Enhanced.Detail)) + " "
	}
	text := ""
	lines := strings.Split(a.Text, "\n")
	for i, line := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
		}
		text += code + sep + status + strings.TrimSpace(line) + "\n"
		if len(text) > r.limit {
			text = text[:r.limit-1] + "\n"
			break
		}
	}
	r.b.WriteString("Remote host said: " + text)
}

// line is a report of one letter, words, and what the server said.
func (r *remoteWords) line(letter byte, words string, a esmtp.Reply) {
	r.b.WriteByte(letter)
	r.b.WriteString(words + ".\n")
	r.said(a)
	r.b.WriteByte(0)
}

// own is a report in our words, which bring their codes.
func (r *remoteWords) own(letter byte, x reply.Reply) {
	r.b.WriteByte(letter)
	r.b.WriteString(x.RemoteReport()[1:])
	r.b.WriteByte(0)
}

// recipient is the report of one who was refused, or whose transaction ended
// otherwise than the main one.
func (r *remoteWords) recipient(x smtp.Result) {
	letter := x.Reply.RecipientReport()
	switch {
	case r.limit <= 0: // too many recipients for words
		r.b.WriteByte(letter)
		r.b.WriteByte(0)
	case !x.Remote:
		r.own(letter, x.Reply)
	case x.Phase == esmtp.RcptTo:
		r.line(letter, at(x)+" does not like recipient", x.Said)
	default:
		r.line(letter, at(x)+ending(x), x.Said)
	}
}

// ending is how qmail-remote calls the end of a transaction.
func ending(x smtp.Result) string {
	switch {
	case x.Reply.Class == reply.Success:
		return " accepted message"
	case x.Phase == esmtp.Data:
		return " failed on DATA command"
	}
	return " failed after I sent the message"
}

// message is the report about the message.
func (r *remoteWords) message(x smtp.Result) {
	letter := x.Reply.Class.Letter()
	switch {
	case x.Remote && x.Phase == esmtp.MailFrom:
		r.line(letter, "Connected to "+at(x)+" but sender was rejected", x.Said)
	case x.Remote:
		r.line(letter, at(x)+ending(x), x.Said)
	case x.Phase == esmtp.Greeting && x.Said.Code != 0:
		r.line(letter, "Connected to "+at(x)+" but greeting failed", x.Said)
	case x.Phase == esmtp.Hello && x.Said.Code != 0:
		r.line(letter, "Connected to "+at(x)+" but my name was rejected", x.Said)
	default:
		r.own(letter, x.Reply)
	}
}
