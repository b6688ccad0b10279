// Package rspamd is the filter "rspamd": it has rspamd judge a message, and does
// what a table says about rspamd's action.
//
//	[filter.rspamd]
//	address = ["tcp:127.0.0.1:11333"]
//	milter  = true                     # change the header as rspamd says
//
//	[filter.rspamd.action]
//	reject   = "quarantine"            # in place of refuse
//	greylist = "defer"
//
// # What is asked
//
// The message as it stands goes to /checkv2 of rspamd's normal worker, or of its
// proxy, with what is known of client and envelope: address, names, login, sender,
// the first hundred recipients, our name of the message. With user = "recipient" it is told for
// whom the message is, if that is one only whom the filter is asked about
// (Deliver-To: settings and statistics of a user); any other word but "none" is
// the name that it is told each time. "settings" is the id of settings in
// rspamd's own configuration. A password is read from the file "password_file".
//
// # What becomes of the message
//
// What "action" says of the action that rspamd chose:
//
//   - refuse, defer: the sender hears "text", or what rspamd has to say
//   - quarantine: it is held for the postmaster
//   - discard: it is taken from the sender and thrown away
//   - header: it is marked as spam in its header
//   - subject: likewise, and its subject is marked, as rspamd says or with "tag"
//   - pass: nothing
//
// Actions of rspamd's own configuration stand in "custom"; one that stands
// nowhere is a failure.
//
// The marks are X-Spam-Flag, X-Spam-Score and X-Spam-Status; fields of these
// names that were there are taken off. Where a filter "score" behind this one
// marks, write fields = "none" here. With milter = true the fields are added and
// removed that rspamd lists for that (milter_headers); those that keep mail from
// going round in circles stay, whatever it lists.
//
// The score is the symbol RSPAMD; each of rspamd's symbols is one without
// points, RSPAMD_BAYES_SPAM, which rules may ask for and "score" may weigh.
//
// # Large messages
//
// A message of more than "max" bytes goes on unjudged, which the log says, and
// has the symbol RSPAMD_SKIPPED. With large = "prefix" its first "max" bytes are
// judged.
//
// # Several rspamds
//
// Messages go to the one that has the least to do, at most "connections" at a
// time to each, with a connection of its own for each message. If one fails, the
// next is asked, within the time of the call. One that failed is left alone for
// a while, 5 s at most, and must answer /ping before it gets mail again.
//
// # When it fails
//
// Whatever is not exactly one well-formed answer to the whole message is a
// failure, redirections included, and so is having no rspamd. By default the
// message goes on then, without marks of ours, and with those that it came with;
// on_error = "defer" puts it off.
package rspamd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/servers"
	"github.com/postern-mta/postern/pipeline/spam"
)

// Name is the filter's name in the configuration.
const Name = "rspamd"

// Options are the filter's part of the configuration. Zero values mean the
// defaults of Kind.
type Options struct {
	Address     []string `toml:"address" doc:"the rspamds: unix:PATH or tcp:HOST:PORT" unset:"tcp:127.0.0.1:11333"`
	Connections int      `toml:"connections" doc:"how many messages each rspamd is given at a time" min:"1"`
	Max         int64    `toml:"max" doc:"the largest message that is judged; not above rspamd's max_message" unit:"bytes" min:"1"`
	// Large is skip if it is "".
	Large string `toml:"large" doc:"what is done with a larger one: skip lets it go on unjudged, prefix has its beginning judged" oneof:"skip|prefix"`
	// User is none if it is "".
	User         string            `toml:"user" doc:"for whom rspamd is told that the message is: none, recipient (if there is only one), or a name"`
	Settings     string            `toml:"settings" doc:"id of settings in rspamd's configuration that apply" unset:"none"`
	PasswordFile string            `toml:"password_file" doc:"file whose first line is the password that rspamd wants" unset:"none"`
	Milter       bool              `toml:"milter" doc:"add and remove header fields as rspamd says"`
	Text         string            `toml:"text" doc:"what the sender of a message that is refused or put off hears" unset:"what rspamd says"`
	Action       Actions           `toml:"action" doc:"what is done when rspamd chose an action"`
	Custom       map[string]string `toml:"custom" doc:"likewise for actions of your own, whose names are the keys"`
	spam.Marks
}

// Actions say what is done when rspamd chose an action.
type Actions struct {
	Reject         string `toml:"reject" doc:"rspamd: reject" oneof:"refuse|defer|quarantine|discard|header|subject|pass"`
	SoftReject     string `toml:"soft_reject" doc:"rspamd: soft reject" oneof:"refuse|defer|quarantine|discard|header|subject|pass"`
	Greylist       string `toml:"greylist" doc:"rspamd: greylist" oneof:"refuse|defer|quarantine|discard|header|subject|pass"`
	AddHeader      string `toml:"add_header" doc:"rspamd: add header" oneof:"refuse|defer|quarantine|discard|header|subject|pass"`
	RewriteSubject string `toml:"rewrite_subject" doc:"rspamd: rewrite subject" oneof:"refuse|defer|quarantine|discard|header|subject|pass"`
	Quarantine     string `toml:"quarantine" doc:"rspamd: quarantine" oneof:"refuse|defer|quarantine|discard|header|subject|pass"`
	Discard        string `toml:"discard" doc:"rspamd: discard" oneof:"refuse|defer|quarantine|discard|header|subject|pass"`
	NoAction       string `toml:"no_action" doc:"rspamd: no action" oneof:"refuse|defer|quarantine|discard|header|subject|pass"`
}

// named lists the actions by rspamd's words, with their keys.
func (a *Actions) named() [8]struct {
	word, key string
	does      *string
} {
	return [...]struct {
		word, key string
		does      *string
	}{
		{"reject", "reject", &a.Reject},
		{"soft reject", "soft_reject", &a.SoftReject},
		{"greylist", "greylist", &a.Greylist},
		{"add header", "add_header", &a.AddHeader},
		{"rewrite subject", "rewrite_subject", &a.RewriteSubject},
		{"quarantine", "quarantine", &a.Quarantine},
		{"discard", "discard", &a.Discard},
		{"no action", "no_action", &a.NoAction},
	}
}

// The defaults, and the bounds of a configuration. rspamd's own max_message is
// 50 MiB.
const (
	defaultAddress     = "tcp:127.0.0.1:11333"
	defaultConnections = 10
	defaultMax         = 20 << 20
	maxWord            = 200
	maxCustom          = 100
)

// The names of the filter's findings.
const (
	symbolScore   = "RSPAMD"
	symbolSkipped = "RSPAMD_SKIPPED"
	symbolPrefix  = "RSPAMD_"
)

func defaults() Options {
	return Options{
		Connections: defaultConnections, Max: defaultMax, Large: "skip", User: "none", Marks: spam.Marks{Fields: "spam"},
		Action: Actions{
			Reject: "refuse", SoftReject: "defer", Greylist: "pass", AddHeader: "header", RewriteSubject: "subject",
			Quarantine: "quarantine", Discard: "quarantine", NoAction: "pass",
		},
	}
}

// Kind is the filter's entry in the list of filters.
func Kind() pipeline.Kind {
	return pipeline.KindOf(Name, defaults, New)
}

// Filter is the rspamd filter. It is its own instance, remembers only which
// rspamds failed, and is safe for concurrent use.
type Filter struct {
	o        Options
	host     string
	password string
	does     map[string]deed // by rspamd's action
	rspamds  *servers.Set
}

// New makes a rspamd filter. It uses the environment's Log, Now and Host, reads
// the file with the password, and asks no rspamd yet. Its errors say by a method
// Key which key they are about.
func New(env pipeline.Env, o Options) (*Filter, error) {
	o.fill()
	f := &Filter{host: env.Host}
	var err error
	if f.rspamds, err = servers.New(o.Address, servers.Options{Noun: Name, Connections: o.Connections, Ping: ping, Log: env.Log, Now: env.Now}); err != nil {
		return nil, err
	}
	for _, check := range [...]func() (string, error){o.check, o.Marks.Check} {
		if key, err := check(); err != nil {
			return nil, pipeline.AtKey(key, err)
		}
	}
	if o.PasswordFile != "" {
		if f.password, err = readPassword(o.PasswordFile); err != nil {
			return nil, pipeline.AtKey("password_file", err)
		}
	}
	if f.does, err = o.deeds(); err != nil {
		return nil, err
	}
	f.o = o
	return f, nil
}

// fill puts defaults where there is nothing.
func (o *Options) fill() {
	d := defaults()
	if len(o.Address) == 0 {
		o.Address = []string{defaultAddress}
	}
	if o.Connections == 0 {
		o.Connections = d.Connections
	}
	if o.Max == 0 {
		o.Max = d.Max
	}
	if o.Large == "" {
		o.Large = d.Large
	}
	if o.User == "" {
		o.User = d.User
	}
	mine, other := o.Action.named(), d.Action.named()
	for i := range mine {
		if *mine[i].does == "" {
			*mine[i].does = *other[i].does
		}
	}
}

func (o *Options) check() (key string, err error) {
	asking := spam.Asking{Connections: o.Connections, Most: servers.MaxConnections, Max: o.Max, Large: o.Large, User: o.User}
	switch key, err := asking.Check(); {
	case err != nil:
		return key, err
	case o.Settings != "" && !spam.IsWord(o.Settings):
		return "settings", errors.New("write an id: printable ASCII without blanks")
	case len(o.Text) > maxWord || reply.Clean(o.Text, maxWord) != o.Text:
		return "text", fmt.Errorf("write one line of printable ASCII, at most %d bytes", maxWord)
	}
	return "", nil
}

// maxPassword bounds the file with the password in bytes.
const maxPassword = 4096

func readPassword(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	line = strings.TrimSuffix(line, "\r")
	if len(b) > maxPassword || line == "" || reply.Clean(line, maxPassword) != line {
		return "", fmt.Errorf("%s: its first line is to be a password of printable ASCII", path)
	}
	return line, nil
}

// deeds is the table of what is done.
func (o *Options) deeds() (map[string]deed, error) {
	does := map[string]deed{}
	add := func(word, key, is string) error {
		d, ok := parseDeed(is)
		if !ok {
			return pipeline.AtKey(key, fmt.Errorf("%q: write refuse, defer, quarantine, discard, header, subject or pass", reply.Clean(is, 80)))
		}
		does[word] = d
		return nil
	}
	if len(o.Custom) > maxCustom {
		return nil, pipeline.AtKey("custom", fmt.Errorf("more than %d actions", maxCustom))
	}
	for word, is := range o.Custom {
		for _, a := range o.Action.named() {
			if a.word == word {
				return nil, pipeline.AtKey("custom."+word, fmt.Errorf("it is no action of your own: write %s under \"action\"", a.key))
			}
		}
		if err := add(word, "custom."+word, is); err != nil {
			return nil, err
		}
	}
	for _, a := range o.Action.named() {
		if err := add(a.word, "action."+a.key, *a.does); err != nil {
			return nil, err
		}
	}
	return does, nil
}

// Traits of a filter that advises.
func (f *Filter) Traits() pipeline.Traits {
	return pipeline.Traits{OnError: pipeline.ErrorContinues, Stages: []pipeline.Stage{pipeline.AtMessage}}
}

// Open returns the filter itself.
func (f *Filter) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) { return f, nil }

// Close does nothing.
func (f *Filter) Close() error { return nil }
