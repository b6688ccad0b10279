package move

import (
	"strconv"
	"strings"

	"github.com/postern-mta/postern/filters/spamassassin"
	"github.com/postern-mta/postern/pipeline"
)

// What simscan does with spam (simscan.c: check_spam): messages of 250000 bytes
// and more are not looked at, and nothing that comes with RELAYCLIENT.
const (
	maxSpam     = 249_999
	notRelayed  = "not (relay or auth)"
	notScored   = `not ("SPAMASSASSIN" in symbols)`
	defaultHits = 10 // of --enable-spam-hits
)

// maxRules is how many rules a filter of kind rule has.
const maxRules = 1000

// flagged stands for a level that is SpamAssassin's own.
const flagged = ""

// spam makes the filter that asks spamd, and where recipients differ one that
// judges by its score.
func (s *scanner) spam() error {
	spam := s.option(optSpam, no)
	prefix := notRelayed + " and "
	q := query{options: map[string]option{optSpam: spam}, want: map[string]string{optSpam: yes}}
	when, err := q.rules(prefix, s.f)
	if err == nil && len(when) > 1 { // what is scored is not to be scored again
		when, err = q.rules(prefix+notScored+" and ", s.f)
	}
	if err != nil || len(when) == 0 {
		return err
	}
	hits, pass := s.levels()
	alone := len(spam.of)+len(hits.of)+len(pass.of) == 0
	refuse := ""
	if alone && hits.value != flagged && pass.value == no {
		refuse = hits.value
	}
	user := s.spamUser()
	for _, rule := range when {
		b := s.im.add(s.f, "spam", spamassassin.Name)
		b.line("when = %s", quote(rule))
		if len(s.im.o.Spamd) > 0 {
			b.line("address = %s", quoteAll(s.im.o.Spamd))
		}
		if user != "" {
			b.line("user = %s", quote(user))
		}
		b.line("max = %d # what is larger is not looked at", maxSpam)
		b.line("fields = \"all\" # SpamAssassin's own rewriting (subject, report_safe) is not done")
		if refuse != "" {
			b.line("refuse = %s", refuse)
		}
	}
	if refuse != "" || alone && pass.value == yes {
		return nil
	}
	return s.refusals(spam, hits, pass)
}

// spamUser is whose preferences count, "" if nothing is said.
func (s *scanner) spamUser() string {
	user := s.option(optSpamUser, "").value
	if user == "" {
		return ""
	}
	l := s.line(optSpamUser, user)
	if _, err := spamassassin.New(pipeline.Env{}, spamassassin.Options{User: user}); err != nil {
		s.f.none(l, "%s is no name that spamd can be given. Instead: write user into the spam filter.", show("spamuser="+user))
		return ""
	}
	s.f.note(l, "simscan named the user for messages to one recipient only; here he is named for all.")
	return user
}

// levels are from which score on mail is refused, and whether spam passes.
func (s *scanner) levels() (hits, pass option) {
	hits, pass = s.option(optHits, flagged), s.option(optPass, no)
	said := hits.value != flagged || len(hits.of) > 0
	switch {
	case s.hits != nil && hits.value == flagged:
		hits.value = strconv.FormatFloat(*s.hits, 'f', -1, 64)
	case said && hits.value == flagged:
		hits.value = strconv.Itoa(defaultHits)
		s.f.remark("nobody without spam_hits has a level in this file; simscan has one built in, %d if nothing else was told it (--enable-spam-hits). Import with --spam-hits if yours has another.", defaultHits)
	case !said:
		s.f.remark("there is no spam_hits in this file, so what SpamAssassin calls spam is refused, as by a simscan that was built without --enable-spam-hits. Import with --spam-hits 10, or what yours was built with, if it was.")
	}
	if hits.value != flagged {
		if pass.value == yes || len(pass.of) > 0 {
			s.f.remark("a simscan that goes by spam_hits does not look at spam_passthru, and neither is it done here: what reaches its level is refused.")
		}
		pass = option{value: no}
	}
	return hits, pass
}

// refusals makes a filter of rules that refuse spam for each recipient by
// himself.
func (s *scanner) refusals(spam, hits, pass option) error {
	type refusal struct{ level, rule string }
	var all []refusal
	for _, level := range hits.values() {
		beyond := "score >= " + level
		if level == flagged {
			beyond = `header("X-Spam-Flag") == "YES"`
		}
		q := query{
			options: map[string]option{optSpam: spam, optHits: hits, optPass: pass},
			want:    map[string]string{optSpam: yes, optHits: level, optPass: no},
		}
		rules, err := q.rules(beyond+" and ", s.f)
		if err != nil {
			return err
		}
		for _, r := range rules {
			all = append(all, refusal{level, r})
		}
	}
	for len(all) > 0 {
		n := min(len(all), maxRules)
		b := s.im.add(s.f, "spam-refused", "rule")
		b.text("", "The score is SpamAssassin's as long as no filter before it gives one: put those that do, as dnsbl, behind this one.")
		b.line(`when = '"SPAMASSASSIN" in symbols' # what was scored`)
		for _, r := range all[:n] {
			b.line("\n[[filter.%s.rule]]", s.f.made[len(s.f.made)-1])
			b.line("when = %s", quote(r.rule))
			b.line("each = true")
			b.line(`action = "reject"`)
			b.line(`reply = "554 5.7.1 this message is considered spam"`)
			b.line("reason = %s", quote(strings.TrimSpace("spam "+r.level)))
		}
		all = all[n:]
	}
	return nil
}
