package rules

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/vm"
)

// Facts gives the value of a fact, of the Go type that its [Type] names, or nil if it has none. A rule calls it at most
// once for each fact and match, from the goroutine of Match, and only for the facts that it reaches. The values are read
// until Match returns and not changed.
type Facts func(name string) any

// Rule is a compiled condition. It is immutable and safe for concurrent use.
type Rule struct {
	schema  *Schema
	src     string
	program *vm.Program // nil: always
	uses    []Fact
	pool    sync.Pool // *run
}

// Compile compiles a condition over the facts of a schema. Its errors are of type *[Error].
func Compile(schema *Schema, src string) (rule *Rule, err error) {
	defer failed(&err)
	c, err := parse(schema, src)
	if err != nil {
		return nil, err
	}
	program, err := c.compile(c.tree.Node)
	if err != nil {
		return nil, err
	}
	return &Rule{schema: schema, src: src, program: program, uses: c.uses}, nil
}

// Always returns a rule that matches everything and uses no fact: what is meant where an administrator wrote none.
func Always() *Rule { return &Rule{src: "true"} }

// String returns the source as it was given to Compile.
func (r *Rule) String() string { return r.src }

// Uses returns the names of the facts that the rule can ask for, in the order in which it names them.
func (r *Rule) Uses() []string {
	names := make([]string, len(r.uses))
	for i, f := range r.uses {
		names[i] = f.Name
	}
	return names
}

// Since returns the largest Since of the facts that the rule uses: from when it can be matched. Without facts it is 0.
func (r *Rule) Since() int {
	if len(r.uses) == 0 {
		return 0
	}
	return slices.MaxFunc(r.uses, func(a, b Fact) int { return a.Since - b.Since }).Since
}

// Match says whether the condition holds. An error (a fact that is missing or of the wrong type, a division by zero, a
// panic of facts) means that there is no answer.
func (r *Rule) Match(facts Facts) (bool, error) {
	if r.program == nil {
		return true, nil
	}
	e, ok := r.pool.Get().(*run)
	if !ok {
		e = newRun(r.uses)
	}
	e.facts = facts
	match, err := e.evaluate(r.program)
	e.reset()
	r.pool.Put(e)
	if err != nil {
		return false, fmt.Errorf("rule %s: %w", quote(r.src), err)
	}
	return match, nil
}

const (
	// memoryBudget is in elements of the lists that a rule makes.
	memoryBudget = 1 << 20
	// keptStack is the largest stack of a machine that goes back into the pool, in values.
	keptStack = 1024
)

// run is the environment of one evaluation: the engine hands it to every fact call. It serves one match at a time.
type run struct {
	uses    []Fact
	facts   Facts
	values  []any                            // by slot; nil: not fetched yet
	seen    func(f Fact, arg *string, v any) // nil, or told of each fact
	err     error                            // the first error of a fact
	machine vm.VM
}

func newRun(uses []Fact) *run {
	return &run{uses: uses, values: make([]any, len(uses)), machine: vm.VM{MemoryBudget: memoryBudget}}
}

// reset forgets the facts, so that a pooled run holds no message.
func (e *run) reset() {
	e.facts, e.err = nil, nil
	clear(e.values)
	stack := e.machine.Stack
	if cap(stack) > keptStack {
		e.machine = vm.VM{MemoryBudget: memoryBudget}
		return
	}
	clear(stack[:cap(stack)])
}

func (e *run) evaluate(program *vm.Program) (match bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			match, err = false, errors.New(clean(fmt.Sprintf("cannot be evaluated: %v", p), maxMessage))
		}
	}()
	v, err := e.machine.Run(program, e)
	if err == nil {
		match, ok := v.(bool)
		if !ok {
			return false, fmt.Errorf("gives a %T", v)
		}
		return match, nil
	}
	if e.err != nil {
		return false, e.err
	}
	var at *file.Error
	if errors.As(err, &at) {
		return false, errors.New(clean(at.Message, maxMessage))
	}
	return false, errors.New(clean(err.Error(), maxMessage))
}

// fetch makes the function that the engine calls for the fact in a slot.
func fetch(slot int, t Type) func(args ...any) (any, error) {
	switch t {
	case StringFunc:
		return func(args ...any) (any, error) {
			return ask(args, slot, func(f any, arg string) any { return f.(func(string) string)(arg) })
		}
	case StringsFunc:
		return func(args ...any) (any, error) {
			return ask(args, slot, func(f any, arg string) any { return f.(func(string) []string)(arg) })
		}
	}
	return func(args ...any) (any, error) { return args[0].(*run).value(slot) }
}

// ask calls a function fact.
func ask(args []any, slot int, call func(f any, arg string) any) (any, error) {
	e, arg := args[0].(*run), args[1].(string)
	f, err := e.value(slot)
	if err != nil {
		return nil, err
	}
	v := call(f, arg)
	if e.seen != nil {
		e.seen(e.uses[slot], &arg, v)
	}
	return v, nil
}

// value fetches a fact, once.
func (e *run) value(slot int) (any, error) {
	if v := e.values[slot]; v != nil {
		return v, nil
	}
	f := &e.uses[slot]
	var raw any
	if e.facts != nil {
		raw = e.facts(f.Name)
	}
	if raw == nil {
		return nil, e.fail(fmt.Errorf("fact %q %w", f.Name, ErrMissing))
	}
	v, ok := kinds[f.Type].accept(raw)
	if !ok {
		return nil, e.fail(fmt.Errorf("fact %q %w: it is %T, not %s", f.Name, ErrType, raw, f.Type))
	}
	e.values[slot] = v
	if e.seen != nil && !f.Type.function() {
		e.seen(*f, nil, v)
	}
	return v, nil
}

func (e *run) fail(err error) error {
	if e.err == nil {
		e.err = err
	}
	return err
}
