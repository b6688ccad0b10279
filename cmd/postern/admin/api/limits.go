package api

// SiteState is a site that mail was sent to lately, from a source.
type SiteState struct {
	Site string `json:"site"`
	// Source is our address, "" for the system's choice.
	Source   string   `json:"source,omitempty"`
	Provider string   `json:"provider,omitempty"`
	Groups   []string `json:"groups,omitempty"`
	// Queued are the recipients that wait for the site, from whatever source, or are
	// being delivered to it.
	Queued int `json:"queued"`
	SiteControl
	// Binding is what keeps the next connection or message from this source, nil if
	// nothing does.
	Binding *SiteRefusal `json:"binding,omitempty"`
	// Silent are servers of it that did not answer lately.
	Silent []SiteSilent `json:"silent,omitempty"`
}

// SiteControl is what was found out about a site.
type SiteControl struct {
	// Connections are open, of which the server has taken Accepted; Allowed is the
	// most that there may be for what it answered, and Ceiling what worked when it
	// last refused one, 0 if it never did.
	Connections int `json:"connections"`
	Accepted    int `json:"accepted"`
	Allowed     int `json:"allowed"`
	Ceiling     int `json:"ceiling,omitempty"`
	// Probing is set while more than the ceiling is tried, Probe when it will be.
	Probing bool   `json:"probing,omitempty"`
	Probe   string `json:"probe,omitempty"`
	// Rate is the most messages a second, 0 for no limit; Measured what went lately.
	Rate     float64 `json:"rate,omitempty"`
	Measured float64 `json:"measured"`
	// Failures are those to reach it, running.
	Failures int `json:"failures,omitempty"`
	// Suspended is until when its answers have stopped us, Since from when on, and Why
	// which.
	Since     string `json:"since,omitempty"`
	Suspended string `json:"suspended,omitempty"`
	Why       string `json:"why,omitempty"`
	// Moves are the last changes, the oldest first; in a list only the last one.
	Moves []SiteMove `json:"moves,omitempty"`
	// Said is the last answer that said anything about limits, or why the last
	// connection came to nothing.
	Said *SiteSaid `json:"said,omitempty"`
}

// SiteSaid is what was heard from a site. Class is what it says about limits: count,
// rate, blocked, greylisted or down.
type SiteSaid struct {
	Time  string `json:"time"`
	Class string `json:"class"`
	Text  string `json:"text"`
}

// SiteMove is a change of what a site is allowed, and the answer behind it.
type SiteMove struct {
	Time string `json:"time"`
	What string `json:"what"`
	From string `json:"from,omitempty"`
	To   string `json:"to"`
	Why  string `json:"why"`
}

// SiteLimit is one limit that counts for a domain.
type SiteLimit struct {
	// Level is source, provider, group, site, address, or adapted for what was found
	// out; Name is what of that.
	Level string `json:"level"`
	Name  string `json:"name"`
	// What is limited: connections, new connections, messages, messages a connection,
	// recipients a connection. Limit is "none" where it was lifted; Used is what there
	// is now, or was so far.
	What  string `json:"what"`
	Limit string `json:"limit,omitempty"`
	Used  string `json:"used,omitempty"`
	// From says where the limit comes from.
	From string `json:"from,omitempty"`
	// Tightest is set for the least of the limits of connections, Binds if it is what
	// keeps the next connection now.
	Tightest bool   `json:"tightest,omitempty"`
	Binds    bool   `json:"binds,omitempty"`
	Until    string `json:"until,omitempty"`
}

// SiteRefusal is what keeps the next connection or message.
type SiteRefusal struct {
	Level string `json:"level"`
	Name  string `json:"name"`
	What  string `json:"what"`
	Limit string `json:"limit,omitempty"`
	// Until is "" where it lasts until something ends, or an operator lifts it; Since is
	// when a suspension began.
	Since string `json:"since,omitempty"`
	Until string `json:"until,omitempty"`
	Why   string `json:"why,omitempty"`
}

// SiteSilent is a server that did not answer.
type SiteSilent struct {
	// Address is with the port; Host is "" where it has no name.
	Address string `json:"address"`
	Host    string `json:"host,omitempty"`
	// Failures are those that count, Last the latest of them.
	Failures int    `json:"failures"`
	Last     string `json:"last"`
	// Until is up to when it is passed over, "" while it is still tried.
	Until string `json:"until,omitempty"`
}

// SiteHeld is an operator's word: a suspension, or limits.
type SiteHeld struct {
	Level     string `json:"level"`
	Name      string `json:"name"`
	Suspended bool   `json:"suspended,omitempty"`
	SiteBounds
	// Since is when it was said, Until "" if it holds until it is taken back.
	Since string `json:"since,omitempty"`
	Until string `json:"until,omitempty"`
	Why   string `json:"why,omitempty"`
}

// SiteBounds are limits as the configuration writes them: a number, a rate, or
// "none"; "" is not set.
type SiteBounds struct {
	Connections             string `json:"connections,omitempty"`
	ConnectionRate          string `json:"connection_rate,omitempty"`
	MessageRate             string `json:"message_rate,omitempty"`
	MessagesPerConnection   string `json:"messages_per_connection,omitempty"`
	RecipientsPerConnection string `json:"recipients_per_connection,omitempty"`
}

// SiteExplanation is everything that decides about mail for a domain.
type SiteExplanation struct {
	// Domain is "" where a site was asked about.
	Domain   string   `json:"domain,omitempty"`
	Site     string   `json:"site"`
	Provider string   `json:"provider,omitempty"`
	Groups   []string `json:"groups,omitempty"`
	Source   string   `json:"source,omitempty"`
	// Routed is set if a route names the hosts.
	Routed bool     `json:"routed,omitempty"`
	Hosts  []string `json:"hosts"`
	// Addresses are those of the hosts, as far as they are found.
	Addresses []string     `json:"addresses"`
	Limits    []SiteLimit  `json:"limits"`
	Binding   *SiteRefusal `json:"binding,omitempty"`
	Control   SiteControl  `json:"control"`
	// Sources are what mail for it may leave from, where there is more than the address
	// that the system chooses; Limits and Control are those of Source, the first of the
	// default pool, and Binding keeps all of that pool.
	Sources []SiteSource `json:"sources,omitempty"`
	// Silent are servers of it that did not answer lately.
	Silent []SiteSilent `json:"silent,omitempty"`
	// Held are the operators' words about any of this.
	Held []SiteHeld `json:"held,omitempty"`
	// Queue is what waits for the site; nil if nothing does.
	Queue *Site `json:"queue,omitempty"`
	// Calls are those of qmail-remote, and clients of cut_through, that wait in line for
	// room.
	Calls int `json:"calls,omitempty"`
}

// SiteSource is one of our addresses, towards a site.
type SiteSource struct {
	Name string `json:"name"`
	// Pools are those that it is in.
	Pools []string `json:"pools"`
	// Connections are open, of Allowed that there may be for what the site answers.
	Connections int `json:"connections"`
	Allowed     int `json:"allowed"`
	// Binding is what keeps it from being chosen, nil if nothing does.
	Binding *SiteRefusal `json:"binding,omitempty"`
	// Avoided is until when it is passed over there, because its address could not be
	// used.
	Avoided string        `json:"avoided,omitempty"`
	Warmup  *SourceWarmup `json:"warmup,omitempty"`
}

// SourceWarmup is a source that is being brought into use.
type SourceWarmup struct {
	// Day is that of the plan, of Days; less than 1 before it begins.
	Day  int `json:"day"`
	Days int `json:"days"`
	// Most is how many messages may be begun today, to each provider or to To, and Used
	// how many were, to To.
	Most int    `json:"most"`
	Used int    `json:"used"`
	To   string `json:"to,omitempty"`
}

// Source is one of our addresses.
type Source struct {
	Name  string   `json:"name"`
	IPv4  string   `json:"ipv4,omitempty"`
	IPv6  string   `json:"ipv6,omitempty"`
	Hello string   `json:"hello"`
	Pools []string `json:"pools"`
	// Connections are open, to all sites.
	Connections int           `json:"connections"`
	Warmup      *SourceWarmup `json:"warmup,omitempty"`
	// Suspended says where nothing leaves from it now.
	Suspended []SourceSuspended `json:"suspended,omitempty"`
	// Avoided is until when it is passed over because its address is not this machine's.
	Avoided string `json:"avoided,omitempty"`
}

// SourceSuspended is a place that a source may not send to.
type SourceSuspended struct {
	// Level is provider or site; source means everywhere.
	Level string `json:"level"`
	Name  string `json:"name"`
	Until string `json:"until,omitempty"`
	Why   string `json:"why,omitempty"`
}

// SiteChange is an operator's word about a domain's site, or about a provider,
// group, site, address or source.
type SiteChange struct {
	// Level is domain (the site of that domain), or one of a SiteLimit.
	Level string `json:"level"`
	Name  string `json:"name"`
	SiteBounds
	// For is in seconds, 0 until it is taken back.
	For    int64  `json:"for,omitempty"`
	Reason string `json:"reason,omitempty"`
	By     string `json:"by"`
}

// SiteChanged is what a SiteChange did.
type SiteChanged struct {
	Level string `json:"level"`
	Name  string `json:"name"`
	Until string `json:"until,omitempty"`
	// Changed is false where there was nothing to take back or to forget.
	Changed bool `json:"changed"`
	// Unkept is why the change could not be written down, "" if it was: it holds, and
	// a restart will forget it.
	Unkept string `json:"unkept,omitempty"`
	// Forgotten is what was, and of how much.
	Forgotten *SiteForgotten `json:"forgotten,omitempty"`
}

// SiteForgotten is what was forgotten of a site or an address.
type SiteForgotten struct {
	// Learned are what was found out from answers, one for each source that the site
	// was sent to from.
	Learned int `json:"learned,omitempty"`
	// Silent are the addresses that had not answered, and are tried again.
	Silent []string `json:"silent,omitempty"`
	// Answers are how many answers of the DNS were dropped, and Names about what.
	Answers int      `json:"answers,omitempty"`
	Names   []string `json:"names,omitempty"`
}

// Provider is a provider of the table, for reading it.
type Provider struct {
	Name  string   `json:"name"`
	Match []string `json:"match"`
	SiteBounds
	// Source says where the figures are known from.
	Source string `json:"source,omitempty"`
}
