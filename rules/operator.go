package rules

import (
	"math/bits"
	"net/netip"
	"reflect"
	"regexp/syntax"
	"strings"

	"github.com/expr-lang/expr/ast"
)

// operators are those of the language; the engine knows more.
var operators = map[string]bool{
	"and": true, "&&": true, "or": true, "||": true,
	"==": true, "!=": true, "<": true, "<=": true, ">": true, ">=": true,
	"in": true, "matches": true, "contains": true, "startsWith": true, "endsWith": true,
	"+": true, "-": true, "*": true, "/": true, "%": true,
}

func (c *compilation) unary(p *ast.Node, n *ast.UnaryNode) error {
	if err := c.visit(&n.Node); err != nil {
		return err
	}
	if i, ok := n.Node.(*ast.IntegerNode); ok && n.Operator == "-" {
		ast.Patch(p, &ast.IntegerNode{Value: -i.Value})
	}
	return nil
}

func (c *compilation) binary(p *ast.Node, n *ast.BinaryNode) error {
	if !operators[n.Operator] {
		return c.errorAt(n, "operator %s is not part of the rule language", quote(n.Operator))
	}
	ip := c.isIP(n.Left) || c.isIP(n.Right)
	if err := c.visit(&n.Left); err != nil {
		return err
	}
	if err := c.visit(&n.Right); err != nil {
		return err
	}
	switch n.Operator {
	case "==", "!=":
		if ip {
			return c.addresses(n.Left, n.Right)
		}
	case "in":
		return c.in(p, n, ip)
	case "matches":
		s, ok := n.Right.(*ast.StringNode)
		if !ok {
			return c.errorAt(n, "the pattern of matches is a text in quotes: what mail brings along is never a pattern")
		}
		if err := checkRegexp(s.Value, syntax.Perl); err != nil {
			return c.errorAt(n.Right, "%v", err)
		}
	case "+", "-", "*", "/", "%":
		return c.fold(p, n)
	}
	return nil
}

// isIP says whether a node, not yet visited, names an address.
func (c *compilation) isIP(n ast.Node) bool {
	id, ok := n.(*ast.IdentifierNode)
	if !ok {
		return false
	}
	f, ok := c.schema.Fact(id.Value)
	return ok && f.Type == IP
}

// addresses brings literals that are compared with an IP fact into the one spelling that such facts have.
func (c *compilation) addresses(nodes ...ast.Node) error {
	for _, n := range nodes {
		s, ok := n.(*ast.StringNode)
		if !ok || s.Value == "" {
			continue
		}
		a, err := netip.ParseAddr(s.Value)
		switch {
		case err == nil:
			s.Value = a.Unmap().WithZone("").String()
		case strings.Contains(s.Value, "/"):
			return c.errorAt(n, "%s is no address; for a network write cidr(ip, %s)", quote(s.Value), quote(s.Value))
		default:
			return c.errorAt(n, "%s is no address", quote(s.Value))
		}
	}
	return nil
}

// in replaces the operator by a call where the list is literal, or known to be one of strings: the engine's own compares
// by reflection.
func (c *compilation) in(p *ast.Node, n *ast.BinaryNode, ip bool) error {
	list, ok := n.Right.(*ast.ArrayNode)
	if !ok {
		if c.stringList(n.Right) {
			ast.Patch(p, call(inList, n.Left, n.Right))
		}
		return nil
	}
	if ip {
		if err := c.addresses(list.Nodes...); err != nil {
			return err
		}
	}
	set := make(stringSet, len(list.Nodes))
	for _, e := range list.Nodes {
		s, ok := e.(*ast.StringNode)
		if !ok {
			return nil
		}
		set[s.Value] = struct{}{}
	}
	ast.Patch(p, call(inSet, n.Left, &ast.ConstantNode{Value: &set}))
	return nil
}

func call(name string, args ...ast.Node) *ast.CallNode {
	return &ast.CallNode{Callee: &ast.IdentifierNode{Value: name}, Arguments: args}
}

func (c *compilation) stringList(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.CallNode:
		callee, ok := n.Callee.(*ast.IdentifierNode)
		if !ok {
			return false
		}
		f, ok := c.schema.Fact(strings.TrimPrefix(callee.Value, factPrefix))
		return ok && (f.Type == Strings || f.Type == StringsFunc)
	case *ast.BuiltinNode:
		return n.Name == "split"
	}
	return false
}

// fold computes with literals, so that 50 * MB is a literal too, and refuses what the engine would do silently: wrap.
func (c *compilation) fold(p *ast.Node, n *ast.BinaryNode) error {
	if a, ok := n.Left.(*ast.StringNode); ok && n.Operator == "+" {
		if b, ok := n.Right.(*ast.StringNode); ok {
			ast.Patch(p, &ast.StringNode{Value: a.Value + b.Value})
			return nil
		}
	}
	b, ok := n.Right.(*ast.IntegerNode)
	if !ok {
		return nil
	}
	if b.Value == 0 && (n.Operator == "/" || n.Operator == "%") {
		return c.errorAt(n, "division by zero")
	}
	a, ok := n.Left.(*ast.IntegerNode)
	if !ok {
		return nil
	}
	var v int
	var fits bool
	switch n.Operator {
	case "+":
		v, fits = a.Value+b.Value, (a.Value+b.Value > a.Value) == (b.Value > 0)
	case "-":
		v, fits = a.Value-b.Value, (a.Value-b.Value < a.Value) == (b.Value > 0)
	case "*":
		v, fits = multiply(a.Value, b.Value)
	default:
		return nil
	}
	if !fits {
		return c.errorAt(n, "the number is too large")
	}
	ast.Patch(p, &ast.IntegerNode{Value: v})
	return nil
}

func multiply(a, b int) (int, bool) {
	hi, lo := bits.Mul(magnitude(a), magnitude(b))
	if hi != 0 || lo > 1<<(bits.UintSize-1)-1 {
		return 0, false
	}
	return a * b, true
}

func magnitude(a int) uint {
	if a < 0 {
		return -uint(a)
	}
	return uint(a)
}

// typeCheck walks the tree after the engine's check and refuses what that leaves open until the rule runs.
type typeCheck struct {
	c   *compilation
	err error
}

// Visit implements the engine's visitor.
func (t *typeCheck) Visit(p *ast.Node) {
	if t.err != nil {
		return
	}
	switch n := (*p).(type) {
	case *ast.IdentifierNode, *ast.PredicateNode:
		// Callees and $env, which visit has made.
	case *ast.BinaryNode:
		equality := n.Operator == "==" || n.Operator == "!="
		if equality && (n.Left.Nature().IsArray() || n.Right.Nature().IsArray()) {
			t.err = t.c.errorAt(n, "lists cannot be compared; use any, all or in")
		}
	case *ast.ArrayNode:
		for _, e := range n.Nodes[1:] {
			if e.Type() != n.Nodes[0].Type() {
				t.err = t.c.errorAt(e, "values of different types in one list")
				return
			}
		}
	default:
		if nature := n.Nature(); nature.Type == nil || nature.Nil || nature.Type.Kind() == reflect.Interface {
			t.err = t.c.errorAt(n, "the type of this cannot be told")
		}
	}
}
