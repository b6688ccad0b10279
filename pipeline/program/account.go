package program

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"strings"
)

// Account is a user that programs may run as.
type Account struct {
	Name     string
	UID, GID uint32
	Groups   []uint32 // all groups, without GID or with it
}

// maxGroups bounds an account's groups; the kernel's own bound is 65536.
const maxGroups = 4096

// LookupAccount is the account of a user's name or number, with the groups that
// the system knows it to be in. It is never root's.
func LookupAccount(name string) (a Account, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		if _, number := strconv.ParseUint(name, 10, 32); number != nil {
			return a, fmt.Errorf("user %q: %w", name, err)
		}
		if u, err = user.LookupId(name); err != nil {
			return a, fmt.Errorf("user %q: %w", name, err)
		}
	}
	ids, err := u.GroupIds()
	if err != nil {
		return a, fmt.Errorf("user %q: %w", name, err)
	}
	a.Name = u.Username
	number := func(s string) uint32 {
		n, e := strconv.ParseUint(s, 10, 32)
		err = errors.Join(err, e)
		return uint32(n)
	}
	a.UID, a.GID = number(u.Uid), number(u.Gid)
	for _, id := range ids {
		a.Groups = append(a.Groups, number(id))
	}
	switch {
	case err != nil:
		return a, fmt.Errorf("user %q: %w", name, err)
	case a.UID == 0:
		return a, fmt.Errorf("user %q: no program is run as root", name)
	case len(a.Groups) > maxGroups:
		return a, fmt.Errorf("user %q is in %d groups", name, len(a.Groups))
	}
	return a, nil
}

// Is reports whether a name or number is this account's.
func (a *Account) Is(name string) bool {
	return a.Name != "" && name == a.Name || name == strconv.FormatUint(uint64(a.UID), 10)
}

// accountsText is how accounts are told to the process that starts programs.
func accountsText(all []Account) string {
	var b strings.Builder
	for _, a := range all {
		fmt.Fprintf(&b, "%d:%d:", a.UID, a.GID)
		for i, g := range a.Groups {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprint(&b, g)
		}
		b.WriteByte(';')
	}
	return b.String()
}

// parseAccounts reads what accountsText wrote. No account is root's.
func parseAccounts(text string) (all []Account, err error) {
	for _, one := range strings.SplitAfter(text, ";") {
		if one == "" {
			continue
		}
		fields := strings.Split(strings.TrimSuffix(one, ";"), ":")
		if len(fields) != 3 {
			return nil, fmt.Errorf("the account %q", one)
		}
		number := func(s string) uint32 {
			n, e := strconv.ParseUint(s, 10, 32)
			err = errors.Join(err, e)
			return uint32(n)
		}
		a := Account{UID: number(fields[0]), GID: number(fields[1])}
		for _, g := range strings.Split(fields[2], ",") {
			if g != "" {
				a.Groups = append(a.Groups, number(g))
			}
		}
		if err != nil {
			return nil, err
		}
		if a.UID == 0 {
			return nil, errors.New("an account of root's")
		}
		all = append(all, a)
	}
	return all, nil
}
