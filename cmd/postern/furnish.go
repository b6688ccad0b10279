package main

import (
	"github.com/postern-mta/postern/cmd/postern/config"
)

// furnish gets what entrances of a configuration share: lists of domains,
// certificates and, when they are made, what users log in by. What has not
// changed is kept. undo takes it back if the configuration does not come into
// force after all; settle gives up what it replaced once it has. The daemon is
// locked.
func (d *daemon) furnish(c *config.Config) (undo func(), err error) {
	oldLists, oldVault, oldLogins := d.lists.Load(), d.vault, d.logins.hold()
	undo = func() {
		d.logins.undo(oldLogins)
		if d.vault != oldVault {
			d.vault.close()
		}
		d.vault = oldVault
		if now := d.lists.Load(); now != oldLists && (oldLists == nil || now.more != oldLists.more) {
			now.close()
		}
		d.lists.Store(oldLists)
	}
	next := &lists{config: c, log: d.log}
	if oldLists != nil && oldLists.config.MoreHosts == c.MoreHosts {
		next.more = oldLists.more
	} else if next, err = openLists(c, d.log); err != nil {
		return undo, err
	}
	d.lists.Store(next)
	if !d.vault.same(c) {
		v, err := openVault(c, oldVault, d.log)
		if err != nil {
			undo()
			return undo, err
		}
		d.vault = v
	}
	d.replaced = replaced{lists: oldLists, vault: oldVault, logins: oldLogins}
	return undo, nil
}

// replaced is what a configuration that came into force has replaced.
type replaced struct {
	lists  *lists
	vault  *vault
	logins held
}

// settle gives up what was replaced, and looks after what is new. The daemon is
// locked.
func (d *daemon) settle() {
	now, old := d.lists.Load(), d.replaced
	d.replaced = replaced{}
	d.logins.settle(old.logins)
	if old.lists != nil && old.lists.more != now.more {
		old.lists.close()
	}
	if d.vault != old.vault || !d.vault.managed {
		d.vault.manage(d.log)
	} else {
		d.vault.reload(d.log)
	}
	if d.vault != old.vault {
		old.vault.close()
	}
}
