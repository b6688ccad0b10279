package move

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The options of simcontrol that become filters, by which settings are kept.
const (
	optClam     = "clam"
	optSpam     = "spam"
	optHits     = "spam_hits"
	optPass     = "spam_passthru"
	optAttach   = "attach"
	optRegex    = "regex"
	optSpamUser = "spamuser"
	optQueue    = "qmailqueue"
	optTrophie  = "trophie"
	optAvira    = "avira"
)

// The values of the switches among them.
const (
	yes = "yes"
	no  = "no"
)

// The bytes at which simscanmk splits a line, and simscan its settings
// (simscanmk.c: make_cdb; simscan.c: per_domain_lookup).
const (
	keyEnds     = ":\n\t\r #\""
	settingEnds = " =\t\n\r,\"'"
)

// maxKey is the longest address or domain that goes into a rule, in bytes.
const maxKey = 120

// maxHits bounds scores.
const maxHits = 10_000

// entry is a line of simcontrol: for whom, and what is set.
type entry struct {
	line     *line
	key      string // "" for everybody
	settings map[string]string
}

// simcontrol makes filters of control/simcontrol, or of its database.
func (im *importer) simcontrol(f *file) error {
	if f.isBinary() {
		f.about = append(f.about, "These are the records of the database, in their order.")
	} else if !f.isDatabase() {
		f.remark("simscan goes by the database simcontrol.cdb, and the one beside this file is not what simscanmk makes of it. Import the database if mail is to be judged as it was until now.")
	}
	entries := f.entries()
	if len(entries) == 0 {
		f.about = append(f.about, "There is nothing in it, so simscan scans nothing.")
		return nil
	}
	s := &scanner{im: im, f: f, entries: entries, hits: im.o.SpamHits}
	s.tell()
	for _, step := range []func() error{s.regexes, s.spam, s.attachments, s.viruses} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// entries are the lines that count, the first of each key.
func (f *file) entries() []entry {
	binary := f.isBinary()
	var all []entry
	first := map[string]*line{}
	for _, l := range f.lines {
		if l.text == "" {
			continue
		}
		if why := l.unfit(); why != "" {
			f.none(l, "this line cannot be carried over: %s. Instead: mend it and import the file again.", why)
			continue
		}
		key, data := splitEntry(l.text, binary)
		if strings.HasPrefix(l.text, "#") && !binary {
			if strings.Contains(data, "=") {
				f.note(l, "simscanmk knows no comments: it took this line for the settings of %s, and simscan went by them. It is taken for a comment here; if it is meant, remove the # and import the file again.", tidy(key, 80))
			}
			continue
		}
		if before := first[key]; before != nil {
			f.note(l, "simscan goes by the first line of a key, which is line %d: this one never counted.", before.no)
			continue
		}
		first[key] = l
		if why := unfitKey(key); why != "" {
			f.none(l, "these settings were for %s, %s. Instead: write a filter with a rule (when) for them.", show(key), why)
			continue
		}
		all = append(all, entry{l, key, f.settings(l, key, data)})
	}
	return all
}

// isDatabase reports whether the database beside a text is what simscanmk makes of
// it, or there is none.
func (f *file) isDatabase() bool {
	path := f.path + f.format.binary
	if !isFile(path) {
		return true
	}
	db, err := readFile(path, f.format)
	if err != nil {
		return false
	}
	var records []string
	for _, l := range f.lines {
		// What has no words is no record; a record has no key without one (simscanmk.c: make_cdb).
		if key, data := splitEntry(l.text, false); key != "" || strings.HasPrefix(l.text, ":") {
			records = append(records, key+":"+data)
		}
	}
	return slices.EqualFunc(records, db.lines, func(a string, b *line) bool { return strings.TrimRight(a, " \t") == strings.TrimRight(b.text, " \t\r") })
}

// splitEntry reads a line as simscanmk does. A record's is split at its first
// colon.
func splitEntry(text string, binary bool) (key, data string) {
	if binary || strings.HasPrefix(text, ":") {
		key, data, _ = strings.Cut(text, ":")
		return strings.ToLower(key), data
	}
	text = strings.TrimLeft(text, keyEnds)
	end := strings.IndexAny(text, keyEnds)
	if end < 0 {
		return strings.ToLower(text), ""
	}
	return strings.ToLower(text[:end]), strings.ToLower(text[end+1:])
}

// unfitKey is why a key cannot be written into a rule, "" if it can.
func unfitKey(key string) string {
	local, domain, address := strings.Cut(key, "@")
	switch {
	case key == "":
		return ""
	case strings.ContainsAny(key, "*?\"\\ \t") || strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c > '~' }):
		return "which holds characters that a rule's address cannot have"
	case address && (local == "" || domain == ""), strings.Count(key, "@") > 1:
		return "which is neither an address nor a domain, so that simscan never found it"
	case len(key) > maxKey:
		return fmt.Sprintf("which is longer than %d bytes", maxKey)
	}
	return ""
}

// settings reads what stands behind the key as simscan does: words in pairs.
func (f *file) settings(l *line, key, data string) map[string]string {
	set := map[string]string{}
	var words []string
	for rest, more := data, data != ""; more; {
		end := strings.IndexAny(rest, settingEnds)
		if more = end >= 0; !more {
			words = append(words, rest)
			break
		}
		words, rest = append(words, rest[:end]), rest[end+1:]
	}
	if len(words)%2 == 1 {
		if last := words[len(words)-1]; last != "" {
			f.none(l, "%s has no value, and simscan does not look at it. Instead: mend the line, and import the file again.", show(last))
		}
		words = words[:len(words)-1]
	}
	if len(words) == 0 {
		f.note(l, "this line sets nothing.")
	}
	for pair := range slices.Chunk(words, 2) {
		f.setting(l, key, set, strings.ToLower(pair[0]), pair[1])
	}
	return set
}

// setting takes in one word and its value.
func (f *file) setting(l *line, key string, set map[string]string, name, value string) {
	lower := strings.ToLower(value)
	whose := key
	if whose == "" {
		whose = "everybody"
	}
	switch name {
	case optClam, optSpam, optPass, optTrophie, optAvira:
		if lower != yes && lower != no {
			f.none(l, "%s is neither yes nor no, and simscan does not look at it. Instead: write what was meant, and import the file again.", show(name+"="+value))
			return
		}
		set[name] = lower
		if lower == yes && (name == optTrophie || name == optAvira) {
			f.none(l, "%s=yes had %s look for viruses, which no filter of Postern does. Instead: the filter clamav, or a filter of kind milter if the scanner has one.", name, map[string]string{optTrophie: "Trophie (Trend Micro), or Sophie,", optAvira: "Avira's antivir"}[name])
		}
	case optHits:
		n, err := strconv.ParseFloat(value, 64)
		if err != nil || !(n >= -maxHits && n <= maxHits) { // not even NaN
			f.none(l, "%s is no score, and simscan reads it as the number that it begins with, or 0, so that it may refuse everything. Instead: write a number, and import the file again.", show(name+"="+value))
			return
		}
		set[name] = strconv.FormatFloat(n, 'f', -1, 64)
	case optAttach, optRegex:
		set[name] = value
	case optSpamUser:
		set[name] = value
		if key != "" {
			f.none(l, "spamuser=%s had SpamAssassin go by that user's preferences for %s; a filter spamassassin has one user for all. Instead: user = \"recipient\" in it, or a second filter with a rule.", tidy(value, 80), whose)
		}
	case optQueue:
		f.none(l, "qmailqueue=%s had simscan hand the mail of %s to that program; here a chain does not choose who stores a message. Instead: next = %s in [listen.queue] for all mail, or a filter of kind qfilter if it is a filter.", tidy(value, 200), whose, quote(tidy(value, 200)))
	case "dspam":
		f.none(l, "dspam is chosen when simscan is built, and %s does nothing in this file; where it is built in, spam=yes has DSPAM judge as well, which no filter of Postern does. Instead: spamassassin, or rspamd.", show(name+"="+value))
	case "":
		f.none(l, "a blank or a comma too many: simscan reads words in pairs, and took %s for a value. Instead: write the line without blanks, and import the file again.", show(value))
	default:
		f.none(l, "%s is no setting that simscan 1.4 knows, and it does not look at it. Instead: look up what it was meant to do.", show(name+"="+value))
	}
}

// scanner makes filters of the entries.
type scanner struct {
	im      *importer
	f       *file
	entries []entry
	hits    *float64
}

// option is what the entries say of one option.
func (s *scanner) option(name, unset string) option {
	o := option{value: unset, of: map[string]string{}}
	for _, e := range s.entries {
		if v, ok := e.settings[name]; ok && e.key == "" {
			o.value = v
		} else if ok {
			o.of[e.key] = v
		}
	}
	return o
}

// line is the first line of which a setting has a value.
func (s *scanner) line(name, value string) *line {
	for _, e := range s.entries {
		if v, ok := e.settings[name]; ok && v == value {
			return e.line
		}
	}
	return s.entries[0].line
}

// tell says what the file does not tell.
func (s *scanner) tell() {
	several := slices.ContainsFunc(s.entries, func(e entry) bool { return e.key != "" })
	if several {
		s.f.remark("of a message to several, simscan went by the settings of the last recipient who has any. Here each filter runs if one recipient's settings ask for it, and by its score a message is refused for each recipient by himself; the option mixed of chain_options says what becomes of one that some refuse. As with simscan, a recipient without settings has those of the sender, whom anybody can forge.")
	}
	s.f.remark("what simscan was told when it was built is not in this file: --enable-dropmsg (in clamav action = \"discard\"), --enable-quarantinedir (\"quarantine\"), --enable-spam-auth-user (take the when out of the spam filter), --enable-spamc-user (user = \"recipient\" there), --enable-received (nothing; the log has it).")
}

// viruses makes the filter that asks clamd.
func (s *scanner) viruses() error {
	clam := s.option(optClam, no)
	when, err := s.whenever(map[string]option{optClam: clam}, map[string]string{optClam: yes})
	if err != nil {
		return err
	}
	for _, rule := range when {
		b := s.im.add(s.f, "clamav", "clamav")
		if rule != always {
			b.line("when = %s", quote(rule))
		}
		if len(s.im.o.Clamd) > 0 {
			b.line("address = %s", quoteAll(s.im.o.Clamd))
		}
		b.line(`unscannable = "pass" # as clamdscan has it; without this line what is too large or too odd for clamd is refused`)
	}
	return nil
}

// attachments makes the filters that refuse attachments by name.
func (s *scanner) attachments() error {
	attach := s.option(optAttach, "")
	for _, list := range attach.values() {
		if list == "" {
			continue
		}
		var names []suffix
		l := s.line(optAttach, list)
		for _, end := range strings.Split(list, ":") {
			switch {
			case end == "":
				s.f.note(l, "attach has an empty name, which simscan found in every attachment, or read as the name of another line. It is left out.")
			case len(end) > maxSuffix:
				s.f.none(l, "a name's end of more than %d bytes. Instead: write it into a filter pattern with where = \"names\".", maxSuffix)
			default:
				names = append(names, suffix{strings.ToLower(end), l})
			}
		}
		if len(names) == 0 {
			continue
		}
		when, err := s.whenever(map[string]option{optAttach: attach}, map[string]string{optAttach: list})
		if err != nil {
			return err
		}
		for _, rule := range when {
			if rule == always {
				rule = ""
			}
			if err := s.im.attachments(s.f, "attachments", rule, names); err != nil {
				return err
			}
		}
	}
	return nil
}

// regexes makes the filters that look for expressions. Those of all keys count,
// not only the nearest.
func (s *scanner) regexes() error {
	for _, e := range s.entries {
		if e.settings[optRegex] == "" {
			continue
		}
		var good []string
		for _, expr := range strings.Split(e.settings[optRegex], ":") {
			if re, err := regexp.Compile(expr); err != nil {
				s.f.none(e.line, "the expression %s refused mail with a line in which it was found, and is none of RE2, whose expressions take no time to fool: %v. Instead: write it anew for a filter pattern.", show(expr), err)
			} else if re.MatchString("") {
				s.f.none(e.line, "the expression %s is found in every line, so that simscan refused all mail. Instead: write what was meant for a filter pattern.", show(expr))
			} else {
				good = append(good, expr)
			}
		}
		if len(good) == 0 {
			continue
		}
		s.f.note(e.line, "simscan looked for its expressions in the lines as they come. Here header fields (\"Name: value\") and texts are looked at as people read them, decoded, in which a blank stands for a line's end: ^ and $ are the ends of a field or a text.")
		for part := range slices.Chunk(good, maxPatterns/2) {
			s.expressions(e, part)
		}
	}
	return nil
}

// expressions makes a filter pattern of the expressions of an entry.
func (s *scanner) expressions(e entry, all []string) {
	b := s.im.add(s.f, "regex", "pattern")
	if e.key != "" {
		b.line("when = %s", quote("any(recipients, "+matches("#", e.key)+") or "+matches("sender", e.key)))
	}
	for i, expr := range all {
		for _, where := range []string{"any-header", "text"} {
			b.line("[[filter.%s.match]] # %s:%d", s.f.made[len(s.f.made)-1], s.f.base(), e.line.no)
			b.line("name = %s", quote(fmt.Sprintf("regex-%d-%s", i+1, where)))
			b.line("where = %s", quote(where))
			b.line("expr = %s\ncase = true\naction = \"reject\"", quote(expr))
		}
	}
}

// always is a rule that needs none.
const always = "true"

// whenever are the rules by which a filter runs, if one of a message's recipients
// has these values of these options: one for each filter that is needed, because
// a rule has an end. There is none if nobody has them.
func (s *scanner) whenever(options map[string]option, want map[string]string) ([]string, error) {
	return query{options: options, want: want}.rules("", s.f)
}

// sorted are the keys of a map in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
