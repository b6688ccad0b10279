package rules

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/vm"
)

// Step is one condition of a rule, or a combination of conditions, with its result.
type Step struct {
	Depth   int    // 0 for the rule as a whole
	Text    string // the condition, as the compiler reads it; one clean line, cut if long
	Result  bool   // meaningless if Err is set
	Reached bool   // false: the answer was known before, so a match does not look here
	Err     string // why the condition has no answer, or ""
}

// Seen is a fact that was asked for, with its value.
type Seen struct {
	Name  string // `from`, or `header("Subject")`
	Value string // quoted, without control bytes, cut if long
}

// Explanation is why a rule matched or did not.
type Explanation struct {
	Match bool
	Steps []Step // the rule, its operands of and, or and not, their operands: depth first
	Facts []Seen // in the order in which they were fetched
}

const (
	maxStepText = 300
	maxElements = 8   // of a list that is shown
	maxSeen     = 100 // facts that are shown
)

// String lays the explanation out for people, a line for each step and fact.
func (x *Explanation) String() string {
	var b strings.Builder
	for _, s := range x.Steps {
		result := strconv.FormatBool(s.Result)
		switch {
		case s.Err != "":
			result = "error"
		case !s.Reached:
			result = "(" + result + ")"
		}
		fmt.Fprintf(&b, "%-8s%s%s", result, strings.Repeat("  ", s.Depth), s.Text)
		if s.Err != "" {
			b.WriteString(": " + s.Err)
		}
		b.WriteByte('\n')
	}
	for _, f := range x.Facts {
		fmt.Fprintf(&b, "  %s = %s\n", f.Name, f.Value)
	}
	return b.String()
}

// part is a step with what it takes to evaluate it: a program, or an operator and its operands.
type part struct {
	text     string
	operator string // "and", "or", "not", or "" for a leaf
	operands []*part
	node     ast.Node
	program  *vm.Program
}

// Explain matches the rule and tells how it came to its answer. Every operand is evaluated, also those that Match would
// not reach, and all their facts are fetched; what fails there is in the step's Err and changes nothing. It compiles the
// parts of the rule each time: it is for a command or a test, not for each message.
//
// The error is the one that Match returns; the explanation stands even then.
func (r *Rule) Explain(facts Facts) (x *Explanation, err error) {
	x = &Explanation{}
	if r.program == nil {
		x.Match, x.Steps = true, []Step{{Text: r.src, Result: true, Reached: true}}
		return x, nil
	}
	defer failed(&err)
	c, err := parse(r.schema, r.src)
	if err != nil {
		return x, err
	}
	root := split(c.tree.Node)
	if err := root.compile(c); err != nil {
		return x, err
	}
	e := newRun(c.uses)
	e.facts, e.seen = facts, x.see
	x.Match, err = x.walk(e, root, 0, true)
	if err != nil {
		return x, fmt.Errorf("rule %s: %w", quote(r.src), err)
	}
	return x, nil
}

// combination names the operators that Explain takes apart.
var combination = map[string]string{"and": "and", "&&": "and", "or": "or", "||": "or", "not": "not", "!": "not"}

// split takes the combinations apart. It runs before the tree is rewritten, so that the texts are the administrator's.
func split(node ast.Node) *part {
	p := &part{text: clean(node.String(), maxStepText), node: node}
	switch n := node.(type) {
	case *ast.BinaryNode:
		if p.operator = combination[n.Operator]; p.operator != "" {
			for _, operand := range []*part{split(n.Left), split(n.Right)} {
				if operand.operator == p.operator {
					p.operands = append(p.operands, operand.operands...)
				} else {
					p.operands = append(p.operands, operand)
				}
			}
		}
	case *ast.UnaryNode:
		if operand := split(n.Node); combination[n.Operator] == "not" && operand.operator != "" {
			p.operator, p.operands = "not", []*part{operand}
		}
	}
	return p
}

func (p *part) compile(c *compilation) (err error) {
	if p.operator == "" {
		p.program, err = c.compile(p.node)
		return err
	}
	for _, operand := range p.operands {
		if err := operand.compile(c); err != nil {
			return err
		}
	}
	return nil
}

// walk evaluates a part and notes its step.
func (x *Explanation) walk(e *run, p *part, depth int, reached bool) (bool, error) {
	at := len(x.Steps)
	x.Steps = append(x.Steps, Step{Depth: depth, Text: p.text, Reached: reached})
	result, err := x.result(e, p, depth, reached)
	x.Steps[at].Result = result
	if err != nil {
		x.Steps[at].Err = clean(err.Error(), maxMessage)
	}
	return result, err
}

func (x *Explanation) result(e *run, p *part, depth int, reached bool) (bool, error) {
	switch p.operator {
	case "":
		e.err = nil
		return e.evaluate(p.program)
	case "not":
		result, err := x.walk(e, p.operands[0], depth+1, reached)
		return !result && err == nil, err
	}
	result := p.operator == "and" // of no operands
	var failure error
	for open, i := true, 0; i < len(p.operands); i++ {
		v, err := x.walk(e, p.operands[i], depth+1, reached && open)
		if !open {
			continue
		}
		if err != nil {
			result, failure, open = false, err, false
		} else if v != result {
			result, open = v, false
		}
	}
	return result, failure
}

// see notes a fact.
func (x *Explanation) see(f Fact, arg *string, v any) {
	if len(x.Facts) >= maxSeen {
		return
	}
	name := f.Name
	if arg != nil {
		name += "(" + quote(*arg) + ")"
	}
	x.Facts = append(x.Facts, Seen{Name: name, Value: show(v)})
}

// show writes a value for people: quoted and cut.
func show(v any) string {
	switch v := v.(type) {
	case string:
		return quote(v)
	case []string:
		var b strings.Builder
		b.WriteByte('[')
		for i, s := range v {
			if i > 0 {
				b.WriteString(", ")
			}
			if i == maxElements {
				fmt.Fprintf(&b, "… (%d in all)", len(v))
				break
			}
			b.WriteString(quote(s))
		}
		b.WriteByte(']')
		return b.String()
	case time.Time:
		return v.Format(time.RFC3339)
	}
	return clean(fmt.Sprint(v), maxShown)
}
