package config

import (
	"path/filepath"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/rules"
)

// Remote are the keys of a table [listen.NAME] that are about qmail-remote.
type Remote struct {
	Program string `toml:"program" oneof:"qmail-queue|qmail-remote" doc:"which shim calls at this socket: qmail-queue hands mail in, qmail-remote takes it out" unset:"qmail-remote for [listen.remote], else qmail-queue"`
	Ours    string `toml:"ours" doc:"for qmail-remote: a rule for mail without a mark of ours, like sender endsWith \"@example.org\" and uid == 501; what it matches counts as ours and is signed. uid is that of who queued it, -1 for the network" unset:"nothing but the bounces of qmail-send"`
	Argv    string `toml:"argv" oneof:"qmail|indimail" doc:"for qmail-remote: how its arguments are laid out; indimail passes QQEH and the size before the recipients" unset:"qmail"`
	Mark    *bool  `toml:"mark" doc:"for qmail-queue with a program as next: put an encrypted field into the message, by which the qmail-remote shim knows whose it is, and takes off again" unset:"true where there is an entrance for qmail-remote"`

	ours *rules.Rule
}

// The programs.
const (
	programQueue  = "qmail-queue"
	programRemote = "qmail-remote"
)

// IsRemote reports whether the entrance is for the qmail-remote shim.
func (l *Listen) IsRemote() bool { return l.Program == programRemote && !l.IsSMTP() }

// OursRule is Ours, compiled; nil if there is none.
func (r *Remote) OursRule() *rules.Rule { return r.ours }

// Indimail reports whether arguments are laid out as indimail has them.
func (r *Remote) Indimail() bool { return r.Argv == "indimail" }

// Marks reports whether the messages that the entrance hands on are marked.
func (r *Remote) Marks() bool { return r.Mark != nil && *r.Mark }

// remoteKeys are the keys for qmail-remote alone, queueKeys those for
// qmail-queue alone.
var (
	remoteKeys = []string{"ours", "argv"}
	queueKeys  = []string{"mark", "chain", "local", "next_mode", "dialect"}
)

// deliverySlack is how much longer than its filters a delivery may take: RFC
// 5321 §4.5.3.2 allows ten minutes after the dot, and much before it.
const deliverySlack = time.Hour

// leastDelivery is how much longer it must at least be allowed to take: what is
// broken off while a server thinks after the dot, for ten minutes at most, may
// have been delivered, and will be again.
const leastDelivery = 15 * time.Minute

// checkPrograms tells the two sorts of shims apart, and looks where marks are
// wanted.
func (l *loader) checkPrograms() {
	remote := false
	for _, name := range sorted(l.Listen) {
		listen, path := l.Listen[name], "listen."+name
		if listen.Program == "" {
			listen.Program = programQueue
			if name == "remote" && !l.written(path+".address") {
				listen.Program = programRemote
			}
		}
		remote = remote || listen.IsRemote()
	}
	for _, name := range sorted(l.Listen) {
		if listen := l.Listen[name]; listen.Mark == nil {
			wanted := remote && !listen.IsRemote()
			listen.Mark = &wanted
		}
	}
}

// checkRemote completes and checks an entrance for qmail-remote.
func (l *loader) checkRemote(listen *Listen, path string) {
	for _, key := range queueKeys {
		if l.written(path + "." + key) {
			l.add(l.at(path+"."+key), "%s.%s is for the qmail-queue shim, and [%s] is for qmail-remote, whose mail goes through the chain %s: remove it", path, key, path, DeliveryChain)
		}
	}
	l.checkSocketMode(listen, path)
	l.checkRemoteNext(listen, path)
	if !l.written(path + ".lines") {
		listen.Lines = message.Keep
		if listen.Next == NextDeliver {
			listen.Lines = message.Repair
		}
	}
	if listen.Next == NextDeliver && listen.Lines == message.Keep {
		l.add(l.at(path+".lines"), `%s.lines = "keep": what we deliver by SMTP has no bare carriage returns and NUL bytes; write "repair" or "refuse"`, path)
	}
	if listen.Ours != "" && !l.bad[path+".ours"] {
		rule, err := rules.Compile(pipeline.Facts(), listen.Ours)
		if err != nil {
			l.add(l.at(path+".ours"), "%s.ours: %v", path, err)
		}
		listen.ours = rule
	}
	l.checkRemoteSlow(listen, path)
}

func (l *loader) checkRemoteSlow(listen *Listen, path string) {
	deadline := l.chainOptions(DeliveryChain).Deadline
	if !l.written(path + ".slow") {
		listen.Slow = deadline + slack
		if listen.Next == NextDeliver {
			listen.Slow = deadline + deliverySlack
		}
	}
	if least := deadline + leastDelivery; listen.Next == NextDeliver && !l.bad[path+".slow"] && listen.Slow > deadline && listen.Slow < least {
		l.add(l.at(path+".slow"), "%s.slow = %s: a delivery by ourselves needs %s at least, the deadline of the chain %s, %s, and %s for the server: what is broken off after the message was sent may arrive twice", path, formatDuration(listen.Slow), formatDuration(least), DeliveryChain, formatDuration(deadline), formatDuration(leastDelivery))
	}
	if most := wire.TotalWait * time.Millisecond; !l.bad[path+".slow"] && (listen.Slow <= deadline || listen.Slow > most) {
		l.add(l.at(path+".slow"), "%s.slow = %s: it must be longer than the deadline of the chain %s, %s, and at most %s", path, formatDuration(listen.Slow), DeliveryChain, formatDuration(deadline), formatDuration(most))
	}
}

func (l *loader) checkRemoteNext(listen *Listen, path string) {
	key := path + ".next"
	at := l.at(key)
	switch {
	case l.bad[key] || listen.Next == NextDeliver:
	case listen.Next == "":
		l.add(at, "%s is missing: write the path of the site's own qmail-remote, like \"/var/qmail/bin/qmail-remote.orig\", or %q to deliver by ourselves", key, NextDeliver)
	case listen.Next == NextQueue || listen.Next == NextDiscard:
		l.add(at, "%s = %q: what qmail-remote sends is in a queue already; write the path of the site's own qmail-remote, or %q", key, listen.Next, NextDeliver)
	case strings.HasPrefix(filepath.Base(listen.Next), programQueue):
		l.add(at, "%s = %q: that is a qmail-queue, and its exit code would bounce all mail; write the path of the site's own qmail-remote, or %q", key, listen.Next, NextDeliver)
	default:
		l.nextProgram(listen, key, NextDeliver)
	}
}
