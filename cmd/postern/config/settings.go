package config

import (
	"errors"
	"log/slog"
	"reflect"
	"strconv"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/state"
	"github.com/postern-mta/postern/queue/dsn"
	"github.com/postern-mta/postern/queue/egress/smtp"
	"github.com/postern-mta/postern/queue/schedule"
)

// The defaults of places.
const (
	DefaultControl     = "/var/qmail/control"
	DefaultState       = "/var/lib/postern"
	DefaultQueueSocket = "/run/postern/queue.sock"
	DefaultAdminSocket = "/run/postern/admin.sock"
	// DefaultRemoteSocket is for the qmail-remote shim.
	DefaultRemoteSocket = "/run/postern/remote.sock"
)

// The chains with a meaning of their own.
const (
	// InboundChain is the chain of a listener that names none.
	InboundChain = "inbound"
	// DeliveryChain is for messages that leave; no listener may name it.
	DeliveryChain = "delivery"
)

// The values of next that are no path.
const (
	NextQueue   = "queue"   // our own queue
	NextDiscard = "discard" // nowhere: for measuring
	NextDeliver = "deliver" // our own exit, for what a qmail-remote is to send
	NextQMQP    = "qmqp"    // the servers of control/qmqpservers
)

// Settings is the configuration file with its defaults filled in. The doc and
// unset tags of its fields are the manual; Reference gives them as a list.
// Paths are absolute.
type Settings struct {
	// Hostname is our name.
	Hostname string `toml:"hostname" doc:"the name of this host, for greetings, Received fields and reports" unset:"control/me, else the system's host name"`
	// Control is the qmail control directory, "" for none.
	Control string `toml:"control" path:"dir" doc:"qmail's control directory, whose files are read as defaults; an empty text means none" unset:"/var/qmail/control if it is there"`
	// Trusted are the users whose word about a connection is believed.
	Trusted []User `toml:"trusted" doc:"users, by name or uid, whose environment (TCPREMOTEIP, RELAYCLIENT and so on) is believed when they call qmail-queue; anybody else is a local user" unset:"those of root, qmaild, alias and vpopmail that exist"`
	// User is who the daemon becomes if it is started by root.
	User string `toml:"user" doc:"the user that the daemon becomes if root starts it, once it has made its directories" unset:"it stays who it is"`
	// State is the folder for what must outlive a restart.
	State string `toml:"state" path:"dir" doc:"the folder for spool, secret and kept copies; it belongs to one daemon"`
	// Domains are those that strangers may send to.
	Domains []string `toml:"domains" doc:"the domains that mail is taken for; .example.org means every domain below example.org. In place of the lists in the control directory" unset:"control/rcpthosts and morercpthosts; control/locals and virtualdomains are ours too"`

	Log    Log    `toml:"log" doc:"the log"`
	Limits Limits `toml:"limits" doc:"bounds of what is taken in"`
	Admin  Admin  `toml:"admin" doc:"the operator's door"`
	// Queue and Bounce are about our own queue.
	Queue  Queue  `toml:"queue" doc:"our own queue, for next = queue"`
	Bounce Bounce `toml:"bounce" doc:"the reports about what could not be delivered"`
	// Quarantine is about what filters hold.
	Quarantine Quarantine `toml:"quarantine" doc:"what filters hold, in our own queue, also where next is a path"`
	// Mailbox has a Maildir for each address, or for @domain.
	Mailbox map[string]string `toml:"mailbox" doc:"local mailboxes: an address, or @domain for every other address of a domain, and the path of its Maildir, in which %l stands for the local part and %d for the domain"`
	// Route has the server for a domain, .suffix, or "" for all.
	Route map[string]RouteTo `toml:"route" doc:"servers for domains, in place of their MX: example.org, .example.org for all below it, or an empty name for every other, and where to (see to), a list of that, or a table with the keys below; an empty text means the MX" unset:"control/smtproutes"`
	// Outbound and TLS are about connections to other servers.
	Outbound Outbound        `toml:"outbound" doc:"how mail leaves over the network"`
	TLS      map[string]*TLS `toml:"tls" keys:"names" doc:"how connections to other servers are protected: [tls.default] for all, and tables for some domains" unset:"opportunistic for all"`
	// Site, Provider, Address and Source are limits of what is sent, and Source is
	// where it leaves from.
	Site     map[string]*Site     `toml:"site" keys:"names" doc:"limits of what is sent: [site.default] for the hosts of each domain, and tables for groups that share their limits" unset:"20 connections, 100 new ones a minute, 100 messages a second, 100 messages and 1000 recipients a connection; control/supplsX and concurrencysupplX are groups"`
	Provider map[string]*Provider `toml:"provider" keys:"names" doc:"limits that all sites of a provider share, over those of the shipped table, key by key" unset:"the shipped table: postern site providers"`
	Address  Addresses            `toml:"address" doc:"limits of addresses that are connected to"`
	Source   map[string]*Source   `toml:"source" keys:"names" doc:"addresses of ours that mail leaves from, a table for each, with the limits of all that does; [source.default] is for the one that the system chooses" unset:"the one that the system chooses, without limits"`
	// Pool are sources for some mail.
	Pool map[string]*Pool `toml:"pool" keys:"names" doc:"which mail leaves from which sources: [pool.default] is for all mail that is in no other pool. A message is in the first pool of the file whose rule matches it, else in the one that names its sender's address, domain, or nearest domain above" unset:"control/domainbindings and outgoingip, else all mail leaves from the address that the system chooses"`
	// Certificate and ACME are about TLS, Auth about logins.
	Certificate map[string]*Certificate `toml:"certificate" keys:"names" doc:"certificates of the SMTP entrances, a table for each"`
	ACME        ACME                    `toml:"acme" doc:"certificates from an authority that speaks ACME (RFC 8555)"`
	Auth        map[string]*Auth        `toml:"auth" keys:"names" doc:"what users log in by, a table for each"`
	// Listen are the entrances, by name.
	Listen map[string]*Listen `toml:"listen" keys:"names" doc:"the entrances, each a table with a name" unset:"one entrance, [listen.queue]"`
	// Chain has the names of the filters of each chain, in order.
	Chain map[string][]string `toml:"chain" keys:"names" doc:"the chains: for each the names of its filters, in their order. The one called delivery is for messages that leave" unset:"inbound, with tap if there is a control/taps, else without filters"`
	// Plugin are the filters that are programs of their own, by name.
	Plugin map[string]*Plugin `toml:"plugin" keys:"names" doc:"filters that are programs of their own, a table for each; its name is a kind of filter then, whose keys the plugin tells: see postern plugin list"`
	// ChainOptions is what chains have besides their filters.
	ChainOptions map[string]*ChainOptions `toml:"chain_options" keys:"names" doc:"what a chain has besides its filters, a table for each"`
	// Filter are the filters' tables, by name; a filter that a chain names and
	// that has no table is in here too.
	Filter map[string]*Filter `toml:"filter" keys:"names" doc:"the filters, each a table with a name that chains use"`
}

// Log is the table [log].
type Log struct {
	Format string `toml:"format" oneof:"text|json" doc:"text (key=value) or json, one line for each event, to standard error"`
	Level  string `toml:"level" oneof:"debug|info|warn|error" doc:"the least level that is written"`
}

// Limits is the table [limits]. A message that is over a limit is refused
// before it is judged.
type Limits struct {
	Recipients int   `toml:"recipients" min:"1" doc:"the most recipients of one message"`
	Message    int64 `toml:"message" unit:"bytes" min:"0" doc:"the longest message; 0 is no limit" unset:"control/databytes, else no limit"`
	Head       int64 `toml:"head" unit:"bytes" min:"1024" doc:"the longest head of a message"`
	Fields     int   `toml:"fields" min:"1" doc:"the most header fields of a message"`
	Sessions   int   `toml:"sessions" min:"1" doc:"the most sessions at one time, over all entrances; further callers are put off"`

	StateEntries int64 `toml:"state_entries" min:"1000" doc:"the most that each filter may remember (greylist, ratelimit), in entries: beyond, those that would expire soonest make room. It counts from the next start"`
	StateSize    int64 `toml:"state_size" unit:"bytes" min:"65536" doc:"likewise in bytes of keys and values"`
}

// Admin is the table [admin].
type Admin struct {
	Socket string `toml:"socket" path:"file" doc:"the Unix socket of the operator's commands; only root and the daemon's user may use it"`
}

// Listen is a table [listen.NAME].
type Listen struct {
	// Name is the table's.
	Name string

	Socket     string           `toml:"socket" path:"file" doc:"the Unix socket that a shim calls: this makes the entrance one for the shim" unset:"/run/postern/queue.sock for [listen.queue], /run/postern/remote.sock for [listen.remote]"`
	SocketMode string           `toml:"socket_mode" doc:"who may call, as the socket's permissions in octal"`
	Chain      string           `toml:"chain" doc:"the chain for what comes in" unset:"inbound"`
	Local      string           `toml:"local" doc:"the chain for callers that are not trusted: local users, cron, bounces" unset:"the same as chain"`
	Next       string           `toml:"next" doc:"where a message goes that the chain lets through: the path of the site's own qmail-queue, queue (ours), another server at once, like qmqp:host or smtp://host:port, which answers for itself (see route.NAME.to; several with blanks between), qmqp (those of control/qmqpservers), or discard (nowhere, for measuring); for qmail-remote the path of the site's own qmail-remote, or deliver (by ourselves)" unset:"queue, where the queue is built in"`
	NextMode   handoff.NextMode `toml:"next_mode" doc:"exec: the shim becomes the next program, which saves a process and keeps its pid; wait: it waits, so that the log has the program's exit code; auto: exec where the kernel tells the exit code all the same (Linux 6.15), else wait. A message with copies is always waited for"`
	Lines      message.Lines    `toml:"lines" doc:"what becomes of carriage returns and NUL bytes: repair, refuse, or keep" unset:"repair where next is queue or deliver, else keep"`
	Dialect    wire.Dialect     `toml:"dialect" doc:"how the caller's qmail wants a refusal worded: auto, netqmail (fd 4), notqmail (fd 6), sagredo (fd 4 or ERROR_FD), indimail (fd 2 or ERROR_FD, exit 88), none (plain exit codes, as for mailfront)"`
	Slow       time.Duration    `toml:"slow" doc:"how long the shim waits for an answer once it has handed the message over; longer than the deadline of its chains" unset:"a minute more than that deadline; an hour more where next is deliver"`

	Remote
	SMTP

	mode uint32
	// straight is next, where that names servers.
	straight []smtp.Hop
}

// Mode is the permissions of the socket.
func (l *Listen) Mode() uint32 { return l.mode }

func (l *Listen) prepare() { *l = Listen{SocketMode: "0666", SMTP: prepareSMTP()} }

// ChainOptions is a table [chain_options.NAME].
type ChainOptions struct {
	Deadline time.Duration  `toml:"deadline" doc:"the longest that all filters together may take at the message stage; then the sender is told to try again"`
	Mixed    pipeline.Mixed `toml:"mixed" doc:"the answer where some recipients accept and others refuse: bounce stores it for those who accept and reports the others, reject refuses it for all, auto is reject for strangers and bounce for our own users"`
}

func (o *ChainOptions) prepare() { o.Deadline = pipeline.DefaultDeadline }

// Filter is a table [filter.NAME]: the keys that every filter has. The keys of
// its kind are in Reference.
type Filter struct {
	// Name is the table's.
	Name string

	Kind    string            `toml:"kind" doc:"the kind of filter" unset:"the table's name"`
	When    string            `toml:"when" doc:"a rule that must match for the filter to run, like size < 50 * MB" unset:"always"`
	Timeout time.Duration     `toml:"timeout" doc:"the longest that one call of the filter may take"`
	OnError *pipeline.OnError `toml:"on_error" doc:"what becomes of a message when the filter fails: defer puts it off, continue goes on without the filter" unset:"by kind"`
	Always  *bool             `toml:"always" doc:"run even where an earlier filter has accepted the message" unset:"by kind"`
	Mode    pipeline.Mode     `toml:"mode" doc:"enforce; shadow: it runs and is logged but decides nothing; or off"`

	own     *node // the kind's keys
	written bool  // it has a table
}

func (f *Filter) prepare() { *f = Filter{Timeout: pipeline.DefaultTimeout, written: true} }

func (f *Filter) keep(others *node) { f.own = others }

// defaults are the settings of an empty file, as far as they depend on nothing.
func defaults() Settings {
	return Settings{
		State:      DefaultState,
		Log:        Log{Format: "text", Level: "info"},
		Limits:     Limits{Recipients: 100_000, Head: message.DefaultMaxHead, Fields: message.DefaultMaxFields, Sessions: 500, StateEntries: state.DefaultEntries, StateSize: state.DefaultBytes},
		Admin:      Admin{Socket: DefaultAdminSocket},
		Queue:      Queue{Lifetime: schedule.DefaultLifetime, Retry: "qmail", Remote: 200, Local: 10, Domain: schedule.DefaultSiteLimit, LowSpace: 256 << 20},
		ACME:       ACME{Directory: "https://acme-v02.api.letsencrypt.org/directory", Address: ":80", Fallback: "none"},
		Outbound:   Outbound{Family: "both", EightBit: "convert", Keep: 5 * time.Second, Wait: 30 * time.Second, Messages: 100},
		Address:    Addresses{Default: Address{IPv4Prefix: 32, IPv6Prefix: 64}},
		Quarantine: Quarantine{Retention: 30 * 24 * time.Hour, SummaryHour: 7},
		Bounce:     Bounce{Format: "mime", External: "verified", MaxOriginal: dsn.DefaultMaxOriginal, Warn: 4 * time.Hour},
	}
}

// SlogLevel is the least level that is written.
func (l Log) SlogLevel() slog.Level { return logLevels[l.Level] }

// User is somebody in the list of trusted users.
type User struct {
	Name string // as it is written: a name or a uid
	UID  uint32
}

// String is the user as it would be written.
func (u User) String() string {
	if u.Name == "" || u.Name == strconv.FormatUint(uint64(u.UID), 10) {
		return strconv.FormatUint(uint64(u.UID), 10)
	}
	return strconv.Quote(u.Name)
}

func (User) wants() string { return "a user's name or uid" }

// UnmarshalText keeps the name: only Load can look it up.
func (u *User) UnmarshalText(text []byte) error {
	if len(text) == 0 || len(text) > 256 {
		return errors.New("write a user's name or uid")
	}
	u.Name = string(text)
	return nil
}

// topLevel are the keys that stand before the first table.
func topLevel(key string) bool {
	for _, f := range fieldsOf(reflect.TypeFor[Settings]()) {
		if f.name == key {
			return f.wanted(f.typ) != "a table"
		}
	}
	return false
}
