package config

import (
	"strings"

	"github.com/postern-mta/postern/queue/egress/smtp"
)

// Straight are the servers that the mail of a qmail-queue shim's entrance goes to
// at once, in the order in which they are tried; nil where its next is another.
func (l *Listen) Straight() []smtp.Hop { return l.straight }

// isStraight reports whether a next names servers, and not a program.
func isStraight(next string) bool {
	return strings.Contains(next, ":") && !strings.HasPrefix(next, "/") && !strings.HasPrefix(next, ".")
}

// straightNext reads a next that names servers.
func (l *loader) straightNext(listen *Listen, key string) {
	at := l.at(key)
	for _, text := range strings.Fields(listen.Next) {
		h, err := smtp.ParseHop(text)
		switch {
		case err != nil:
			l.add(at, "%s: %s: %v", key, show(text), err)
			return
		case h.IsMX():
			l.add(at, "%s: %s names no host", key, show(text))
			return
		case h.Transport == smtp.Discard:
			l.add(at, "%s: %s: write %q to throw mail away", key, show(text), NextDiscard)
			return
		}
		listen.straight = append(listen.straight, h)
	}
	if len(listen.straight) > maxHops {
		l.add(at, "%s names %d servers, at most %d", key, len(listen.straight), maxHops)
	}
}

// qmqpNext takes the servers of qmail-qmqpc, an address a line (qmail-qmqpc.8); a name,
// or a port behind a colon, may stand there, too.
func (l *loader) qmqpNext(listen *Listen, key string) {
	lines, _ := l.Files.Lines("qmqpservers")
	if len(lines) == 0 {
		l.add(l.at(key), "%s = %q: there is no server in control/qmqpservers; write one there, an address a line, or name it here, like %q", key, NextQMQP, "qmqp:192.0.2.1")
	}
	for _, line := range lines {
		at := l.Files.at("qmqpservers", line.No)
		h, err := smtp.ParseHop(smtp.QMQP.String() + ":" + line.Text)
		switch {
		case err != nil:
			l.add(at, "%s is no server: %v", show(line.Text), err)
			return
		case len(listen.straight) == maxHops:
			l.warn(at, "is more than %d servers, which are all that are tried", maxHops)
			return
		}
		listen.straight = append(listen.straight, h)
	}
}
