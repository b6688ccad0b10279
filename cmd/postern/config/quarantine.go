package config

import (
	"errors"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
)

// Quarantine is the table [quarantine].
type Quarantine struct {
	Retention   time.Duration `toml:"retention" doc:"for how long a message is kept that a filter holds; then it is deleted, and nobody is told. 0 is for ever"`
	Summary     string        `toml:"summary" doc:"the address that gets a summary, once a day, of what came into quarantine since the last one; there is none where nothing did" unset:"nobody does"`
	SummaryHour int           `toml:"summary_hour" min:"0" doc:"the hour of the summary, 0 to 23, by the system's clock"`
	// User is who the next program runs as, see RunsAs.
	User string `toml:"user" doc:"who, by name or uid, runs the next program of an entrance with a released message or a summary; the daemon must be root, or that user" unset:"the daemon's own user"`

	uid uint32
}

// RunsAs is the uid of User; not ok if it is not set.
func (q *Quarantine) RunsAs() (uid uint32, ok bool) { return q.uid, q.User != "" }

func (l *loader) checkQuarantine() {
	q := &l.Quarantine
	if q.SummaryHour > 23 {
		l.add(l.at("quarantine.summary_hour"), "quarantine.summary_hour = %d: write an hour from 0 to 23", q.SummaryHour)
	}
	if l.written("quarantine.summary") && !l.bad["quarantine.summary"] {
		local, domain, ok := cutAddress(q.Summary)
		if !ok || local == "" || !validHost(domain) || !envelope.ValidBytes(q.Summary) || len(q.Summary) > envelope.MaxAddress {
			l.add(l.at("quarantine.summary"), "quarantine.summary = %s: write an address with a domain", show(q.Summary))
		}
	}
	if l.written("quarantine.summary_hour") && q.Summary == "" && !l.bad["quarantine.summary"] {
		l.warn(l.at("quarantine.summary_hour"), "quarantine.summary_hour does nothing without quarantine.summary")
	}
	l.checkQuarantineUser()
}

func cutAddress(s string) (local, domain string, ok bool) {
	i := strings.LastIndexByte(s, '@')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// checkQuarantineUser finds the user, and whether the daemon will be able to run
// a program as somebody else.
func (l *loader) checkQuarantineUser() {
	q, at := &l.Quarantine, l.at("quarantine.user")
	if q.User == "" || l.bad["quarantine.user"] {
		return
	}
	if uid, err := strconv.ParseUint(q.User, 10, 32); err == nil {
		q.uid = uint32(uid)
	} else if q.uid, err = l.o.LookupUser(q.User); err != nil {
		var unknown user.UnknownUserError
		if errors.As(err, &unknown) {
			l.add(at, "quarantine.user: there is no user %s: make it, or leave quarantine.user out", show(q.User))
			return
		}
		l.add(at, "quarantine.user: user %s cannot be looked up: %v", show(q.User), err)
		return
	}
	if l.User == "" || l.bad["user"] {
		return
	}
	if uid, err := l.o.LookupUser(l.User); err == nil && uid != q.uid && uid != 0 {
		l.add(at, "quarantine.user = %s: the daemon becomes %s when it has started, and may not run a program as another user then; leave quarantine.user out, or name %s", show(q.User), show(l.User), show(l.User))
	}
}
