// Package api holds what goes over the admin socket: strings and numbers only,
// so that a client needs nothing else of Postern. The protocol is HTTP with
// JSON bodies on a Unix socket.
//
//	GET  /v1/status         Status
//	GET  /v1/filters        []Filter
//	PUT  /v1/filters/NAME   SetFilter -> Filter
//	POST /v1/reload         Reload
//	GET  /v1/queue          QueuePage; from, skip, max, match, recipients
//	GET  /v1/queue/stats    QueueStats
//	GET  /v1/queue/ID       QueueMessage, with its origin and head; skip
//	GET  /v1/queue/count    QueueCounts; by, match, max
//	POST /v1/queue/hold     QueueSelect -> QueueChanged; likewise release, retry, delete
//	POST /v1/queue/verify   Verify
//	GET  /v1/quarantine     QueuePage of what filters hold; from, skip, max, match, recipients
//	GET  /v1/quarantine/ID  QueueMessage; skip
//	GET  /v1/quarantine/ID/raw   the message as it is stored
//	POST /v1/quarantine/release  QuarantineRelease -> QuarantineReleased
//	POST /v1/quarantine/delete   QueueSelect -> QueueChanged
//	GET  /v1/sites          []Site; from, max
//	GET  /v1/limits         []SiteState; from
//	GET  /v1/limits/held    []SiteHeld
//	GET  /v1/limits/explain SiteExplanation; domain
//	POST /v1/limits/OP      SiteChange -> SiteChanged; limit, suspend, resume, forget
//	GET  /v1/state/FILTER   StatePage; prefix, from (base64url)
//	POST /v1/state/FILTER/get  StateKey -> StatePage of one entry or none
//	POST /v1/state/FILTER   StateChange -> StateChanged
//	GET  /metrics           Prometheus' text format
//
// An answer other than 200 carries an Error.
package api

// Status is the state of the daemon.
type Status struct {
	Version    string `json:"version"`
	PID        int    `json:"pid"`
	Config     string `json:"config"`
	Generation uint64 `json:"generation"`
	// Started is when the daemon started (RFC 3339).
	Started string `json:"started"`
	// Entrances are the names of the listeners, with their addresses.
	Entrances []Entrance `json:"entrances"`
}

// Entrance is one listener.
type Entrance struct {
	Name     string `json:"name"`
	Address  string `json:"address"`
	Sessions int    `json:"sessions"`
}

// Filter is one filter and the mode it is in.
type Filter struct {
	Name string `json:"name"`
	// Chains are the chains that it stands in.
	Chains []string `json:"chains"`
	// Configured is the mode of the configuration, Mode the one in force.
	Configured string `json:"configured"`
	Mode       string `json:"mode"`
	// Until is when an override ends (RFC 3339), "" if none does.
	Until string `json:"until,omitempty"`
}

// SetFilter asks for another mode: enforce, shadow, off, or config for what the
// configuration says.
type SetFilter struct {
	Mode string `json:"mode"`
	// TTL is for how many seconds; 0 means until the daemon restarts.
	TTL int64 `json:"ttl,omitempty"`
	// By is who asks, for the log.
	By string `json:"by,omitempty"`
}

// Reload is the answer to a reload that worked.
type Reload struct {
	Generation uint64   `json:"generation"`
	Warnings   []string `json:"warnings,omitempty"`
}

// Error is any other answer.
type Error struct {
	Error string `json:"error"`
}
