package smtp

import "slices"

// Spare closes the free connection that was used longest ago to a site of which
// which is true, and reports whether there was one. It does not wait for that.
// which must be quick, and must not call the Exit.
func (x *Exit) Spare(which func(site string) bool) bool {
	k := &x.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.IndexFunc(k.idle, func(l *link) bool { return which(l.site) })
	if i < 0 || k.closed {
		return false
	}
	k.closeSoon(k.remove(i))
	return true
}
