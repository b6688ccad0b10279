package limit

import (
	_ "embed"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Class is what an answer says about our limits.
type Class uint8

// The classes.
const (
	// Nothing: it is about a message, a mailbox or a sender.
	Nothing Class = iota
	// Count: too many connections at once.
	Count
	// Speed: too many messages, recipients or connections in a time.
	Speed
	// Blocked: nothing will be taken from this source for a while.
	Blocked
	// Greylisted: come back later with the same message.
	Greylisted
	// Down: the server has troubles of its own.
	Down
	classes
)

var classNames = [classes]string{"nothing", "count", "rate", "blocked", "greylisted", "down"}

// String is the class as the table of answers has it.
func (c Class) String() string {
	if c < classes {
		return classNames[c]
	}
	return "invalid"
}

// MarshalText is encoding.TextMarshaler.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is encoding.TextUnmarshaler, the inverse of String.
func (c *Class) UnmarshalText(text []byte) error {
	for i, name := range classNames {
		if name == string(text) {
			*c = Class(i)
			return nil
		}
	}
	return fmt.Errorf("%.40q is no class", text)
}

// Answer is a server's answer as far as it matters here.
type Answer struct {
	Code     int
	Enhanced string
	// Text is bounded by the caller; 2 KiB of it are looked at.
	Text string
	// Early is set before MAIL: at the greeting, EHLO, STARTTLS or AUTH.
	Early bool
}

// maxLooked is how much of a text is looked at, in bytes.
const maxLooked = 2048

// Meaning is what an answer means.
type Meaning struct {
	Class Class
	// Rule is the name of the rule that says so, "" for none.
	Rule string
	// Pause is how long a blocked site waits; 0 otherwise.
	Pause time.Duration
}

// Classes tells what answers mean. It does not change and is safe for
// concurrent use.
type Classes struct{ rules []classRule }

type classRule struct {
	name     string
	class    Class
	codes    []int
	enhanced []string
	pattern  *regexp.Regexp
	early    bool
	pause    time.Duration
}

// answerTable is the file's form.
type answerTable struct {
	Answer []struct {
		Name     string   `toml:"name"`
		Class    string   `toml:"class"`
		Codes    []int    `toml:"codes"`
		Enhanced []string `toml:"enhanced"`
		Pattern  string   `toml:"pattern"`
		Early    bool     `toml:"early"`
		Pause    string   `toml:"pause"`
		Source   string   `toml:"source"`
	} `toml:"answer"`
}

//go:embed answers.toml
var shippedAnswers string

// ShippedClasses are those of the table that comes with Postern.
func ShippedClasses() (*Classes, error) { return ParseClasses(shippedAnswers) }

// ParseClasses reads a table of answers: TOML, an [[answer]] each with a name, a
// class, and at least one of codes, enhanced (prefixes, "4.7.") and pattern (RE2,
// without regard to case); all that it has must agree. The first that agrees with
// an answer decides. early asks for an answer before MAIL. A blocked one has a
// pause.
func ParseClasses(text string) (*Classes, error) {
	var t answerTable
	d := toml.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return nil, fmt.Errorf("answers: %w", err)
	}
	c := &Classes{}
	for i, a := range t.Answer {
		r := classRule{name: a.Name, codes: a.Codes, enhanced: a.Enhanced, early: a.Early}
		fail := func(what string) error { return fmt.Errorf("answers: answer %d (%.40q): %s", i+1, a.Name, what) }
		found := false
		for k, n := range classNames {
			if n == a.Class {
				r.class, found = Class(k), true
			}
		}
		switch {
		case a.Name == "":
			return nil, fail("it has no name")
		case !found:
			return nil, fail("its class is none of " + strings.Join(classNames[:], ", "))
		case len(a.Codes) == 0 && len(a.Enhanced) == 0 && a.Pattern == "":
			return nil, fail("it has neither codes, enhanced nor pattern, so it would take every answer")
		}
		if a.Pattern != "" {
			p, err := regexp.Compile("(?i)" + a.Pattern)
			if err != nil {
				return nil, fail(err.Error())
			}
			r.pattern = p
		}
		if a.Pause != "" {
			p, err := time.ParseDuration(a.Pause)
			if err != nil || p <= 0 {
				return nil, fail("its pause is no time like 30m or 2h")
			}
			r.pause = p
		}
		if (r.class == Blocked) != (r.pause > 0) {
			return nil, fail("a pause goes with the class blocked, and with no other")
		}
		c.rules = append(c.rules, r)
	}
	return c, nil
}

// addresses are those of mailboxes in a text. Servers say them back, and whoever makes us
// send to one, if it is by a bounce, must not choose what we read in an answer.
var addresses = regexp.MustCompile(`<[^<>]*@[^<>]*>|"[^"]*"@\S*|\S*@\S*`)

// Meaning is what an answer means. A success or a permanent answer without a
// rule of its own means nothing; a 421 without one is about the number of
// connections if it came early, and a trouble of the server's otherwise.
func (c *Classes) Meaning(a Answer) Meaning {
	if a.Code < 400 {
		return Meaning{}
	}
	text := addresses.ReplaceAllString(a.Text[:min(len(a.Text), maxLooked)], " ")
	for i := range c.rules {
		if r := &c.rules[i]; r.fits(a, text) {
			return Meaning{r.class, r.name, r.pause}
		}
	}
	switch {
	case a.Code == 421 && a.Early:
		return Meaning{Class: Count}
	case a.Code == 421:
		return Meaning{Class: Down}
	}
	return Meaning{}
}

func (r *classRule) fits(a Answer, text string) bool {
	if r.early && !a.Early || r.pattern != nil && !r.pattern.MatchString(text) {
		return false
	}
	if len(r.codes) > 0 {
		any := false
		for _, c := range r.codes {
			any = any || c == a.Code
		}
		if !any {
			return false
		}
	}
	if len(r.enhanced) > 0 {
		any := false
		for _, e := range r.enhanced {
			any = any || e == a.Enhanced || strings.HasSuffix(e, ".") && strings.HasPrefix(a.Enhanced, e)
		}
		return any
	}
	return true
}
