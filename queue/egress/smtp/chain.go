package smtp

// The chains in which a free connection stands.
const (
	ofAll uint8 = iota
	ofKey
	ofSite
	chains
)

// neighbors are those of a connection in a chain.
type neighbors struct{ before, after *link }

// chain is connections in the order in which they became free. Its zero value is
// the chain of all.
type chain struct {
	of          uint8
	first, last *link
	len         int
}

// push puts a connection at the end.
func (c *chain) push(l *link) {
	at := &l.chain[c.of]
	at.before, at.after = c.last, nil
	if c.last == nil {
		c.first = l
	} else {
		c.last.chain[c.of].after = l
	}
	c.last = l
	c.len++
}

// remove takes out a connection, which is in the chain.
func (c *chain) remove(l *link) {
	at := &l.chain[c.of]
	if at.before == nil {
		c.first = at.after
	} else {
		at.before.chain[c.of].after = at.after
	}
	if at.after == nil {
		c.last = at.before
	} else {
		at.after.chain[c.of].before = at.before
	}
	*at = neighbors{}
	c.len--
}
