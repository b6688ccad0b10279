package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

const (
	// Tables and lists in one another.
	maxDepth = 16
	// Keys of one table, and table headers of the file: go-toml's time grows
	// with their squares.
	maxKeys   = 2048
	maxTables = 8192
)

// node is a value of the file with its place: that of its key, or its own in a
// list.
type node struct {
	place
	value any // as go-toml has it: string, int64, float64, bool, map[string]any, []any, dates
	keys  []string
	kids  map[string]*node // of a table
	elems []*node          // of a list
}

// child is the node of a key, made if need be.
func (n *node) child(key string, at place) *node {
	if kid := n.kids[key]; kid != nil {
		return kid
	}
	kid := &node{place: at}
	if n.kids == nil {
		n.kids = map[string]*node{}
	}
	n.kids[key] = kid
	n.keys = append(n.keys, key)
	return kid
}

// entered is the table that a header's name means: the last one of a list.
func (n *node) entered() *node {
	if len(n.elems) > 0 {
		return n.elems[len(n.elems)-1]
	}
	return n
}

// without is a copy of a table that lacks some keys.
func (n *node) without(keys map[string]bool) *node {
	c := *n
	c.keys = slices.DeleteFunc(slices.Clone(n.keys), func(k string) bool { return keys[k] })
	return &c
}

// with is a table with one more key.
func (n *node) with(key string, kid *node) *node {
	c := n.without(nil)
	c.keys = append(c.keys, key)
	c.kids = maps.Clone(n.kids)
	if c.kids == nil {
		c.kids = map[string]*node{}
	}
	c.kids[key] = kid
	return c
}

// parseTree reads TOML. A file that is not TOML has one error only, because
// what follows a mistake of syntax cannot be told.
func parseTree(data []byte, p *problems) *node {
	b := treeBuilder{newlines: newlines(data)}
	b.parser.Reset(data)
	root := &node{place: place{line: 1, col: 1}}
	if !b.build(root) {
		p.add(b.beyond, "%s", b.limit)
		return nil
	}
	values := map[string]any{}
	if err := toml.Unmarshal(data, &values); err != nil {
		at, text := place{}, err.Error()
		var where *toml.DecodeError
		if errors.As(err, &where) {
			at.line, at.col = where.Position()
		}
		p.add(at, "%s", rewordTOML(text))
		return nil
	}
	root.attach(values)
	return root
}

// rewordTOML adds what to do to the most common mistakes of syntax.
func rewordTOML(text string) string {
	text = strings.TrimPrefix(text, "toml: ")
	switch {
	case strings.Contains(text, "at start of value"):
		text += `; text is written in quotes: key = "text"`
	case strings.Contains(text, "already exists"), strings.Contains(text, "already defined"):
		text += "; each may be written once"
	}
	return "not valid TOML: " + text
}

// attach gives the nodes their values.
func (n *node) attach(value any) {
	n.value = value
	switch v := value.(type) {
	case map[string]any:
		for key, kid := range n.kids {
			kid.attach(v[key])
		}
	case []any:
		for i, elem := range n.elems {
			if i < len(v) {
				elem.attach(v[i])
			}
		}
	}
}

// treeBuilder makes the tree of places from go-toml's own syntax tree.
type treeBuilder struct {
	parser   unstable.Parser
	newlines []int
	tables   int
	beyond   place  // where a limit was reached
	limit    string // and which
}

func (b *treeBuilder) tooDeep(at place) {
	b.beyond, b.limit = at, fmt.Sprintf("nested too deeply: at most %d levels", maxDepth)
}

// build reports whether the file is within the limits. Mistakes of syntax end
// it early: decoding the values finds them again.
func (b *treeBuilder) build(root *node) bool {
	table, depth := root, 0
	for b.parser.NextExpression() {
		e := b.parser.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			var at place
			if table, depth, at = b.descend(root, 0, e.Key()); table == nil {
				return false
			}
			if b.tables++; b.tables > maxTables {
				b.beyond, b.limit = at, fmt.Sprintf("more than %d tables", maxTables)
				return false
			}
			if e.Kind == unstable.ArrayTable {
				elem := &node{place: at}
				table.elems = append(table.elems, elem)
				table = elem
			} else {
				table = table.entered()
			}
		case unstable.KeyValue:
			if !b.keyValue(table, depth, e) {
				return false
			}
		}
	}
	return true
}

// descend follows a dotted key; nil if that is beyond a limit.
func (b *treeBuilder) descend(n *node, depth int, key unstable.Iterator) (_ *node, _ int, at place) {
	first := true
	for key.Next() {
		at = b.at(key.Node().Raw)
		if depth++; depth > maxDepth {
			b.tooDeep(at)
			return nil, depth, at
		}
		if !first {
			n = n.entered()
		}
		first = false
		table := n
		n = table.child(string(key.Node().Data), at)
		if len(table.keys) > maxKeys {
			b.beyond, b.limit = at, fmt.Sprintf("more than %d keys in one table", maxKeys)
			return nil, depth, at
		}
	}
	return n, depth, at
}

func (b *treeBuilder) keyValue(table *node, depth int, e *unstable.Node) bool {
	n, depth, _ := b.descend(table, depth, e.Key())
	return n != nil && b.valueOf(n, depth, e.Value())
}

func (b *treeBuilder) valueOf(n *node, depth int, v *unstable.Node) bool {
	if depth > maxDepth {
		b.tooDeep(n.place)
		return false
	}
	switch v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue && !b.keyValue(n, depth, it.Node()) {
				return false
			}
		}
	case unstable.Array:
		for it := v.Children(); it.Next(); {
			elem := &node{place: n.place}
			if raw := it.Node().Raw; raw.Length > 0 {
				elem.place = b.at(raw)
			}
			n.elems = append(n.elems, elem)
			if !b.valueOf(elem, depth+1, it.Node()) {
				return false
			}
		}
	}
	return true
}

// at turns a range of the file into a line and a column.
func (b *treeBuilder) at(r unstable.Range) place {
	offset := int(r.Offset)
	line, _ := slices.BinarySearch(b.newlines, offset)
	start := 0
	if line > 0 {
		start = b.newlines[line-1] + 1
	}
	return place{line: line + 1, col: offset - start + 1}
}

// newlines are the offsets of the newlines.
func newlines(data []byte) []int {
	all := make([]int, 0, bytes.Count(data, []byte{'\n'}))
	for i, c := range data {
		if c == '\n' {
			all = append(all, i)
		}
	}
	return all
}
