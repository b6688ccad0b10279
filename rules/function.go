package rules

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/expr-lang/expr/builtin"
)

// keywords are the words of the language that are neither facts nor functions.
var keywords = []string{
	"and", "or", "not", "in", "matches", "contains", "startsWith", "endsWith", "true", "false", "nil", "let", "if", "else",
}

// constants are the names of numbers, for sizes in bytes.
var constants = map[string]int{"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}

// Function describes one function of the language, for manuals and help texts.
type Function struct {
	Name  string
	Usage string // "cidr(ip, network, ...)"
	Doc   string
}

// function is a Function with its meaning. If call is nil it is one of the engine's own.
type function struct {
	Function
	least, most int // how many arguments; most 0: any number
	predicate   bool
	call        func(args ...any) (any, error)
	types       []reflect.Type
	// literal compiles the arguments from number `from` on, which then must be literals. With from 0 its result takes the
	// place of the whole call.
	literal func([]string) (any, error)
	from    int
	// check looks at each literal among the arguments from number `from` on.
	check func(string) error
}

func str(f func(string) string) func(...any) (any, error) {
	return func(args ...any) (any, error) { return f(args[0].(string)), nil }
}

var (
	typeStringString = []reflect.Type{reflect.TypeFor[func(string) string]()}
	typeIndomain     = []reflect.Type{reflect.TypeFor[func(string, ...string) bool]()}
)

// functions is the whole library of the language, in the order of the manual.
var functions = []function{
	{
		Function: Function{"cidr", "cidr(ip, network, ...)", `whether the address is in one of the networks ("10.0.0.0/8", "2001:db8::/32", "192.0.2.1"); false for what is no address`},
		least:    2, literal: newNetworks, from: 1,
		call:  func(args ...any) (any, error) { return args[1].(*networks).contains(args[0].(string)), nil },
		types: []reflect.Type{reflect.TypeFor[func(string, *networks) bool]()},
	},
	{
		Function: Function{"domain", "domain(address)", `what follows the last @, in lower case, without a final dot; "" if there is no @`},
		least:    1, most: 1, call: str(domainOf), types: typeStringString,
	},
	{
		Function: Function{"local", "local(address)", "what precedes the last @, as it is written; everything if there is no @"},
		least:    1, most: 1, call: str(localOf), types: typeStringString,
	},
	{
		Function: Function{"like", "like(s, pattern, ...)", `whether the whole of s has the form of a pattern: * is any text, ? one character, case does not count: like(from, "*@*.example.org")`},
		least:    2, literal: newGlobs, from: 1,
		call:  func(args ...any) (any, error) { return args[1].(*globs).match(args[0].(string)), nil },
		types: []reflect.Type{reflect.TypeFor[func(string, *globs) bool]()},
	},
	{
		Function: Function{"indomain", "indomain(s, domain, ...)", "whether s, an address or a host, is in a domain or below it; case does not count"},
		least:    2, from: 1, check: checkDomain, call: callInDomain, types: typeIndomain,
	},
	{
		Function: Function{"duration", `duration("1h30m")`, "a length of time, to compare with times' differences; units ns us ms s m h"},
		least:    1, most: 1, literal: newDuration,
	},
	{
		Function: Function{"lower", "lower(s)", "s in lower case"},
		least:    1, most: 1, types: typeStringString,
		call: str(func(s string) string { return changeCase(s, strings.ToLower, lowerASCII) }),
	},
	{
		Function: Function{"upper", "upper(s)", "s in upper case"},
		least:    1, most: 1, types: typeStringString,
		call: str(func(s string) string { return changeCase(s, strings.ToUpper, upperASCII) }),
	},
	{Function: Function{"trim", "trim(s)", "s without blanks at its ends; trim(s, chars) takes those characters off"}, least: 1, most: 2},
	{Function: Function{"trimPrefix", "trimPrefix(s, prefix)", "s without the prefix"}, least: 2, most: 2},
	{Function: Function{"trimSuffix", "trimSuffix(s, suffix)", "s without the suffix"}, least: 2, most: 2},
	{Function: Function{"split", "split(s, separator)", "the list of the parts of s"}, least: 2, most: 2},
	{Function: Function{"len", "len(x)", "the number of elements of a list, or of characters of a string"}, least: 1, most: 1},
	{Function: Function{"any", "any(list, condition)", "whether the condition holds for at least one element, which is # in it; false for an empty list"}, least: 2, most: 2, predicate: true},
	{Function: Function{"all", "all(list, condition)", "whether the condition holds for every element; true for an empty list"}, least: 2, most: 2, predicate: true},
	{Function: Function{"none", "none(list, condition)", "whether the condition holds for no element"}, least: 2, most: 2, predicate: true},
	{Function: Function{"one", "one(list, condition)", "whether the condition holds for exactly one element"}, least: 2, most: 2, predicate: true},
	{Function: Function{"filter", "filter(list, condition)", "the elements for which the condition holds"}, least: 2, most: 2, predicate: true},
	{Function: Function{"count", "count(list, condition)", "the number of elements for which the condition holds"}, least: 2, most: 2, predicate: true},
}

// Functions lists the functions of the language, in the order of the manual. The slice is the caller's.
func Functions() []Function {
	list := make([]Function, len(functions))
	for i, f := range functions {
		list[i] = f.Function
	}
	return list
}

func findFunction(name string) *function {
	i := slices.IndexFunc(functions, func(f function) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	return &functions[i]
}

func (f *function) accepts(n int) bool { return n >= f.least && (f.most == 0 || n <= f.most) }

func callInDomain(args ...any) (any, error) {
	for _, d := range args[1:] {
		if inDomain(args[0].(string), d.(string)) {
			return true, nil
		}
	}
	return false, nil
}

func newDuration(texts []string) (any, error) {
	d, err := time.ParseDuration(texts[0])
	if err != nil {
		return nil, fmt.Errorf(`%s is no duration such as "90s", "15m" or "1h30m"`, quote(texts[0]))
	}
	return d, nil
}

// The names of what the compiler puts in the place of `in`. No source can spell them.
const (
	inSet  = "in set"
	inList = "in list"
)

// stringSet is a literal list of strings on the right of in.
type stringSet map[string]struct{}

// engineFunctions are our functions as the engine wants them.
func engineFunctions() map[string]*builtin.Function {
	m := map[string]*builtin.Function{
		inSet: {
			Name: inSet, Types: []reflect.Type{reflect.TypeFor[func(string, *stringSet) bool]()},
			Func: func(args ...any) (any, error) {
				_, ok := (*args[1].(*stringSet))[args[0].(string)]
				return ok, nil
			},
		},
		inList: {
			Name: inList, Types: []reflect.Type{reflect.TypeFor[func(string, []string) bool]()},
			Func: func(args ...any) (any, error) {
				return slices.Contains(args[1].([]string), args[0].(string)), nil
			},
		},
	}
	for _, f := range functions {
		if f.call != nil || f.literal != nil {
			m[f.Name] = &builtin.Function{Name: f.Name, Func: f.call, Types: f.types}
		}
	}
	return m
}
