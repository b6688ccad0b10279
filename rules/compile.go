package rules

import (
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/builtin"
	"github.com/expr-lang/expr/checker"
	"github.com/expr-lang/expr/compiler"
	"github.com/expr-lang/expr/conf"
	"github.com/expr-lang/expr/parser"
	"github.com/expr-lang/expr/vm"
)

// MaxSource is the longest source of a rule, in bytes.
const MaxSource = 4096

const (
	maxNodes = 500 // parts of a rule
	// maxRegexp bounds a regular expression, in nodes after repetitions are written out; its time is that times the text's
	// length, so a kilobyte costs at most some tens of milliseconds.
	maxRegexp  = 5_000
	factPrefix = "fact:"
)

// compilation turns one source into programs: parse with the engine, then a walk of ours that lets only our language pass
// and puts calls in the place of facts, then the engine's type check and code. The engine's optimizer is left out: it
// compares subtrees by their text, and ours hold compiled networks and patterns that have none.
type compilation struct {
	schema *Schema
	src    string
	tree   *parser.Tree
	config *conf.Config
	uses   []Fact
	slots  map[string]int
	// seen has the nodes that are done: the parser makes `1 < x < 3` into two comparisons that share x.
	seen   map[ast.Node]bool
	inside bool // a predicate, where # is known
}

// parse reads the source. Its caller recovers panics of the engine with failed.
func parse(schema *Schema, src string) (*compilation, error) {
	if err := checkSource(src); err != nil {
		return nil, err
	}
	c := &compilation{schema: schema, src: src, config: conf.New(nil), slots: map[string]int{}, seen: map[ast.Node]bool{}}
	c.config.Functions = engineFunctions()
	c.config.MaxNodes = maxNodes
	c.config.DisableIfOperator = true
	tree, err := parser.ParseWithConfig(src, c.config)
	if err != nil {
		return nil, fromEngine(src, err)
	}
	c.tree = tree
	return c, nil
}

func checkSource(src string) error {
	if len(src) > MaxSource {
		return &Error{Line: 1, Message: fmt.Sprintf("the rule is %d bytes long, at most %d are allowed", len(src), MaxSource)}
	}
	if strings.TrimSpace(src) == "" {
		return &Error{Line: 1, Message: "the rule is empty; leave it out if it is to match everything"}
	}
	n := 0
	for i, r := range src {
		if r == utf8.RuneError && !strings.HasPrefix(src[i:], "\uFFFD") {
			return errorAt(src, n, "byte 0x%02x is not valid UTF-8", src[i])
		}
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0x7f {
			return errorAt(src, n, "control character 0x%02x", r)
		}
		n++
	}
	return nil
}

// failed turns a panic of the engine into an error.
func failed(err *error) {
	if p := recover(); p != nil {
		*err = &Error{Line: 1, Message: clean(fmt.Sprintf("this rule cannot be compiled: %v", p), maxMessage)}
	}
}

// compile makes the program of one condition: the whole tree or a part of it.
func (c *compilation) compile(node ast.Node) (*vm.Program, error) {
	if err := c.visit(&node); err != nil {
		return nil, err
	}
	tree := &parser.Tree{Node: node, Source: c.tree.Source}
	if _, err := checker.Check(tree, c.config); err != nil {
		return nil, fromEngine(c.src, err)
	}
	types := &typeCheck{c: c}
	ast.Walk(&tree.Node, types)
	if types.err != nil {
		return nil, types.err
	}
	if nature := tree.Node.Nature(); !nature.IsBool() {
		return nil, &Error{Line: 1, Message: fmt.Sprintf("the rule is a %s, not a condition", nature.String())}
	}
	program, err := compiler.Compile(tree, c.config)
	if err != nil {
		return nil, fromEngine(c.src, err)
	}
	return program, nil
}

func (c *compilation) errorAt(node ast.Node, format string, args ...any) error {
	return errorAt(c.src, node.Location().From, format, args...)
}

// visit admits a part of the tree and rewrites it. What it does not name is not in the language.
func (c *compilation) visit(p *ast.Node) error {
	if c.seen[*p] {
		return nil
	}
	defer func() { c.seen[*p] = true }()
	switch n := (*p).(type) {
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.StringNode:
		return nil
	case *ast.IdentifierNode:
		return c.identifier(p, n)
	case *ast.UnaryNode:
		return c.unary(p, n)
	case *ast.BinaryNode:
		return c.binary(p, n)
	case *ast.CallNode:
		return c.call(p, n)
	case *ast.BuiltinNode:
		return c.builtin(n)
	case *ast.ArrayNode:
		return c.array(n)
	case *ast.PointerNode:
		if n.Name == "" && c.inside {
			return nil
		}
		return c.errorAt(n, "#%s stands for nothing here", n.Name)
	case *ast.MemberNode, *ast.SliceNode, *ast.ChainNode:
		return c.errorAt(*p, "there is no indexing and there are no members; any(list, # ...) looks at the elements of a list")
	case *ast.NilNode:
		return c.errorAt(n, `there is no nil: a fact always has a value; compare with "" or 0`)
	case *ast.ConditionalNode:
		// Its place is not known: the engine's parser does not note it.
		return &Error{Line: 1, Message: "there is no if and no ? : ; use and, or, not"}
	case *ast.VariableDeclaratorNode, *ast.SequenceNode:
		return c.errorAt(*p, "a rule is one condition, without variables or ;")
	}
	return c.errorAt(*p, "this is not part of the rule language")
}

func (c *compilation) identifier(p *ast.Node, n *ast.IdentifierNode) error {
	if v, ok := constants[n.Value]; ok {
		ast.Patch(p, &ast.IntegerNode{Value: v})
		return nil
	}
	if f, ok := c.schema.Fact(n.Value); ok {
		if f.Type.function() {
			return c.errorAt(n, `fact %q is a function: write %s("...")`, f.Name, f.Name)
		}
		ast.Patch(p, c.factCall(f))
		return nil
	}
	if f := findFunction(n.Value); f != nil {
		return c.errorAt(n, "%q is a function: write %s", f.Name, f.Usage)
	}
	names := append(c.schema.names(false), "KB", "MB", "GB", "true", "false")
	return c.errorAt(n, "unknown fact %s%s", quote(n.Value), didYouMean(n.Value, names))
}

// factCall is a call that asks the running environment for the fact, so that it is fetched when it is reached, and only
// then. Fetching all facts beforehand would save some ten nanoseconds and one small allocation for each match.
func (c *compilation) factCall(f Fact, args ...ast.Node) *ast.CallNode {
	if _, ok := c.slots[f.Name]; !ok {
		slot := len(c.uses)
		c.uses, c.slots[f.Name] = append(c.uses, f), slot
		c.config.Functions[factPrefix+f.Name] = &builtin.Function{
			Name: factPrefix + f.Name, Func: fetch(slot, f.Type), Types: []reflect.Type{kinds[f.Type].call},
		}
	}
	return &ast.CallNode{
		Callee:    &ast.IdentifierNode{Value: factPrefix + f.Name},
		Arguments: append([]ast.Node{&ast.IdentifierNode{Value: "$env"}}, args...),
	}
}

func (c *compilation) call(p *ast.Node, n *ast.CallNode) error {
	callee, ok := n.Callee.(*ast.IdentifierNode)
	if !ok {
		return c.errorAt(n, "there are no methods")
	}
	if f := findFunction(callee.Value); f != nil {
		return c.function(p, n, f)
	}
	f, ok := c.schema.Fact(callee.Value)
	if !ok {
		names := c.schema.names(true)
		for _, f := range functions {
			names = append(names, f.Name)
		}
		return c.errorAt(n, "unknown function %s%s", quote(callee.Value), didYouMean(callee.Value, names))
	}
	if !f.Type.function() {
		return c.errorAt(n, "fact %q is %s, not a function", f.Name, f.Type)
	}
	if len(n.Arguments) != 1 {
		return c.errorAt(n, `write %s("...") with one argument`, f.Name)
	}
	if err := c.visit(&n.Arguments[0]); err != nil {
		return err
	}
	ast.Patch(p, c.factCall(f, n.Arguments[0]))
	return nil
}

// function admits a call of one of our functions and compiles its literals.
func (c *compilation) function(p *ast.Node, n *ast.CallNode, f *function) error {
	if !f.accepts(len(n.Arguments)) {
		return c.errorAt(n, "wrong number of arguments: write %s", f.Usage)
	}
	for i := range n.Arguments {
		if err := c.visit(&n.Arguments[i]); err != nil {
			return err
		}
	}
	if f.literal == nil && f.check == nil {
		return nil
	}
	var texts []string
	for _, arg := range n.Arguments[f.from:] {
		s, ok := arg.(*ast.StringNode)
		switch {
		case ok && f.check != nil:
			if err := f.check(s.Value); err != nil {
				return c.errorAt(arg, "%v", err)
			}
		case ok:
			texts = append(texts, s.Value)
		case f.literal != nil:
			return c.errorAt(n, `write %s with a text in quotes`, f.Usage)
		}
	}
	if f.literal == nil {
		return nil
	}
	v, err := f.literal(texts)
	if err != nil {
		return c.errorAt(n, "%v", err)
	}
	constant := &ast.ConstantNode{Value: v}
	if f.from == 0 {
		ast.Patch(p, constant)
		return nil
	}
	n.Arguments = append(n.Arguments[:f.from:f.from], constant)
	return nil
}

// builtin admits a call of one of the engine's functions.
func (c *compilation) builtin(n *ast.BuiltinNode) error {
	if f, ok := c.schema.Fact(n.Name); ok {
		return c.errorAt(n, "fact %q is %s, not a function", f.Name, f.Type)
	}
	f := findFunction(n.Name)
	if f == nil || f.call != nil || f.literal != nil {
		return c.errorAt(n, "function %s is not part of the rule language", quote(n.Name))
	}
	if !f.accepts(len(n.Arguments)) {
		return c.errorAt(n, "wrong number of arguments: write %s", f.Usage)
	}
	if !f.predicate {
		for i := range n.Arguments {
			if err := c.visit(&n.Arguments[i]); err != nil {
				return err
			}
		}
		return nil
	}
	if c.inside {
		return c.errorAt(n, "%s cannot stand within the condition of another: its time would be the square of the list", f.Usage)
	}
	if err := c.visit(&n.Arguments[0]); err != nil {
		return err
	}
	body, ok := n.Arguments[1].(*ast.PredicateNode)
	if !ok {
		return c.errorAt(n, "write %s", f.Usage)
	}
	c.inside = true
	err := c.visit(&body.Node)
	c.inside = false
	return err
}

func (c *compilation) array(n *ast.ArrayNode) error {
	if len(n.Nodes) == 0 {
		return c.errorAt(n, "the list is empty")
	}
	for i := range n.Nodes {
		if _, ok := n.Nodes[i].(*ast.ArrayNode); ok {
			return c.errorAt(n.Nodes[i], "a list cannot hold a list")
		}
		if err := c.visit(&n.Nodes[i]); err != nil {
			return err
		}
	}
	return nil
}
