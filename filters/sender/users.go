package sender

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/mail"
	"path/filepath"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

const (
	// maxUsers bounds the users of the configuration, maxAddresses the addresses of
	// one of them, maxFile a file in bytes, maxFrom a field From, maxValues the
	// values that are read of a user.
	maxUsers     = 10_000
	maxAddresses = 1000
	maxFile      = 64 << 20
	maxFrom      = 64 << 10
	maxValues    = 1000
)

// addresses are users' addresses, by the user's name in lower case.
type addresses map[string]*rules.AddressList

// book is where users' addresses are looked up.
type book struct {
	own  addresses
	file *rules.LineFile[addresses]
	cdb  *rules.CDBFile
}

// read takes the users of the configuration, and opens its files.
func (b *book) read(env pipeline.Env, o Options) (wrong []error) {
	bad := func(key, format string, args ...any) {
		wrong = append(wrong, pipeline.AtKey(key, fmt.Errorf(format, args...)))
	}
	if len(o.Users) > maxUsers {
		bad("user", "%d users, at most %d: write them into a file", len(o.Users), maxUsers)
		return wrong
	}
	all := map[string][]rules.Line{}
	for i, u := range o.Users {
		at := fmt.Sprintf("user[%d]", i)
		if u.Name == "" {
			bad(at+".name", "it is missing: write the name that the user logs in with")
		}
		if len(u.Addresses) == 0 || len(u.Addresses) > maxAddresses {
			bad(at+".addresses", "%d of them: write 1 to %d", len(u.Addresses), maxAddresses)
			continue
		}
		for k, a := range u.Addresses {
			if err := checkAddress(a); err != nil {
				bad(fmt.Sprintf("%s.addresses[%d]", at, k), "%w", err)
				continue
			}
			name := strings.ToLower(u.Name)
			all[name] = append(all[name], rules.Line{No: k + 1, Text: a})
		}
	}
	if len(wrong) > 0 {
		return wrong
	}
	var err error
	if b.own, err = listsOf(all); err != nil {
		bad("user", "%w", err)
	}
	opened := func(what, path string) rules.FileOptions {
		return rules.FileOptions{Now: env.Now, Changed: func(err error) {
			if err != nil {
				env.Log.Error("users' addresses cannot be read", what, path, "error", err)
				return
			}
			env.Log.Info("users' addresses were read", what, path)
		}}
	}
	if path := o.File; path != "" {
		if !filepath.IsAbs(path) {
			bad("file", "%q is no absolute path", reply.Clean(path, 200))
		} else if b.file, err = rules.OpenLineFile(path, maxFile, opened("file", path), parseUsers); err != nil {
			bad("file", "%w", err)
		}
	}
	if path := o.CDB; path != "" {
		if !filepath.IsAbs(path) {
			bad("cdb", "%q is no absolute path", reply.Clean(path, 200))
		} else if b.cdb, err = rules.OpenCDBFile(path, opened("cdb", path)); err != nil {
			bad("cdb", "%w", err)
		}
	}
	return wrong
}

func (b *book) close() error {
	if b.cdb == nil {
		return nil
	}
	return b.cdb.Close()
}

// checkAddress says what is wrong with an entry.
func checkAddress(a string) error {
	text := strings.TrimPrefix(a, "!")
	if !strings.Contains(text, "@") || strings.HasSuffix(text, "@") || len(text) > envelope.MaxAddress || !envelope.ValidBytes(text) || strings.ContainsAny(text, " \t,") {
		return fmt.Errorf("%q is no address: write user@example.org, @example.org, or a pattern like user-*@example.org", reply.Clean(a, 80))
	}
	return nil
}

// listsOf makes lists of the entries of each user.
func listsOf(all map[string][]rules.Line) (addresses, error) {
	made := make(addresses, len(all))
	for name, lines := range all {
		l, err := rules.NewAddressList(lines, rules.Globs)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", reply.Clean(name, 100), err)
		}
		made[name] = l
	}
	return made, nil
}

// parseUsers reads a file's lines.
func parseUsers(lines []rules.Line) (addresses, error) {
	all := map[string][]rules.Line{}
	for _, line := range lines {
		name, rest, ok := strings.Cut(line.Text, ":")
		name = strings.ToLower(strings.TrimSpace(name))
		entries := split(rest)
		if !ok || name == "" || len(entries) == 0 {
			return nil, fmt.Errorf("line %d: write a user and his addresses, joe: joe@example.org", line.No)
		}
		for _, a := range entries {
			if err := checkAddress(a); err != nil {
				return nil, fmt.Errorf("line %d: %w", line.No, err)
			}
			all[name] = append(all[name], rules.Line{No: line.No, Text: a})
		}
	}
	return listsOf(all)
}

// split cuts a list at blanks and commas.
func split(s string) []string {
	return strings.FieldsFunc(s, func(c rune) bool { return c == ' ' || c == '\t' || c == ',' || c == '\n' || c == '\r' })
}

// of are a user's lists. There are none if he is nowhere.
func (b *book) of(user string) (lists []*rules.AddressList, err error) {
	user = strings.ToLower(user)
	if l := b.own[user]; l != nil {
		lists = append(lists, l)
	}
	if b.file != nil {
		if l := b.file.Get()[user]; l != nil {
			lists = append(lists, l)
		}
	}
	if b.cdb == nil {
		return lists, nil
	}
	value, ok, err := b.cdb.Find([]byte(user), nil)
	if err != nil || !ok {
		return lists, err
	}
	entries := split(string(value))
	if len(entries) > maxValues {
		return nil, fmt.Errorf("the cdb has %d addresses of one user, at most %d", len(entries), maxValues)
	}
	lines := make([]rules.Line, len(entries))
	for i, a := range entries {
		if err := checkAddress(a); err != nil {
			return nil, fmt.Errorf("the cdb: %w", err)
		}
		lines[i] = rules.Line{No: i + 1, Text: a}
	}
	l, err := rules.NewAddressList(lines, rules.Globs)
	if err != nil {
		return nil, err
	}
	return append(lists, l), nil
}

// knows reports whether a user is somewhere.
func (b *book) knows(user string) (bool, error) {
	lists, err := b.of(user)
	return len(lists) > 0, err
}

// owns reports whether an address is the user's.
func (b *book) owns(user, address string) (bool, error) {
	lists, err := b.of(user)
	if err != nil {
		return false, err
	}
	address = strings.TrimSuffix(address, ".")
	for _, l := range lists {
		if _, ok := l.Match(address); ok {
			return true, nil
		}
	}
	return len(lists) == 0 && strings.Contains(user, "@") && strings.EqualFold(user, address), nil
}

var errNoAddress = errors.New("it has no address")

// addressesOf are the addresses of a field From. Where programs could read
// another one, it is an error: whose the message is must be plain.
func addressesOf(value string) ([]string, error) {
	if len(value) > maxFrom {
		return nil, fmt.Errorf("it is longer than %d bytes", maxFrom)
	}
	// Names may be in any character set, or in none: only addresses count.
	parser := mail.AddressParser{WordDecoder: &mime.WordDecoder{CharsetReader: func(string, io.Reader) (io.Reader, error) { return strings.NewReader("?"), nil }}}
	list, err := parser.ParseList(strings.ToValidUTF8(value, "?"))
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "mail: "))
	}
	if len(list) == 0 {
		return nil, errNoAddress
	}
	all := make([]string, len(list))
	for i, a := range list {
		all[i] = a.Address
	}
	return all, nil
}
