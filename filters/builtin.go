// Package filters is the list of the filters that come with Postern. Each is a
// package of its own, whose documentation is its manual; none knows another.
package filters

import (
	"github.com/postern-mta/postern/filters/badaddress"
	"github.com/postern-mta/postern/filters/clamav"
	"github.com/postern-mta/postern/filters/dkim"
	"github.com/postern-mta/postern/filters/dnsbl"
	"github.com/postern-mta/postern/filters/execban"
	"github.com/postern-mta/postern/filters/greylist"
	"github.com/postern-mta/postern/filters/header"
	"github.com/postern-mta/postern/filters/pattern"
	"github.com/postern-mta/postern/filters/ratelimit"
	"github.com/postern-mta/postern/filters/rcptcheck"
	"github.com/postern-mta/postern/filters/recipients"
	"github.com/postern-mta/postern/filters/rewrite"
	"github.com/postern-mta/postern/filters/rspamd"
	"github.com/postern-mta/postern/filters/rule"
	"github.com/postern-mta/postern/filters/score"
	"github.com/postern-mta/postern/filters/sender"
	"github.com/postern-mta/postern/filters/spamassassin"
	"github.com/postern-mta/postern/filters/tap"
	"github.com/postern-mta/postern/pipeline"
)

// Kinds are the built-in filters, in the order of their names.
func Kinds() []pipeline.Kind {
	return []pipeline.Kind{
		badaddress.Kind(), clamav.Kind(), dkim.SignKind(), dkim.VerifyKind(), dnsbl.Kind(), execban.Kind(), greylist.Kind(), header.Kind(),
		pattern.Kind(), ratelimit.Kind(), rcptcheck.Kind(), recipients.Kind(), rewrite.Kind(), rspamd.Kind(), rule.Kind(), score.Kind(), sender.Kind(),
		spamassassin.Kind(), tap.Kind(),
	}
}
