package smtp

// Spare closes the free connection that was used longest ago to a site, from a
// source, of which which is true, and reports whether there was one. It does not
// wait for that. which must be quick, and must not call the Exit.
func (x *Exit) Spare(which func(site, source string) bool) bool {
	k := &x.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return false
	}
	for l := k.idle.first; l != nil; l = l.chain[ofAll].after {
		if which(l.site, l.key.source.Name) {
			k.remove(l)
			k.closeSoon(l)
			return true
		}
	}
	return false
}

// Free is how many free connections there are to a site from a source, by name.
func (x *Exit) Free(site, source string) (n int) {
	k := &x.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	if of := k.sites[site]; of != nil {
		for l := of.free.first; l != nil; l = l.chain[ofSite].after {
			if l.key.source.Name == source {
				n++
			}
		}
	}
	return n
}
