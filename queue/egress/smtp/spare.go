package smtp

import "slices"

// Spare closes the free connection that was used longest ago to a site, from a
// source, of which which is true, and reports whether there was one. It does not
// wait for that. which must be quick, and must not call the Exit.
func (x *Exit) Spare(which func(site, source string) bool) bool {
	k := &x.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.IndexFunc(k.idle, func(l *link) bool { return which(l.site, l.key.source.Name) })
	if i < 0 || k.closed {
		return false
	}
	k.closeSoon(k.remove(i))
	return true
}

// Free is how many free connections there are to a site from a source, by name.
func (x *Exit) Free(site, source string) (n int) {
	k := &x.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range k.idle {
		if l.site == site && l.key.source.Name == source {
			n++
		}
	}
	return n
}
