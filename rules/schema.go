package rules

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/expr-lang/expr/builtin"
)

// Type is what a fact holds.
type Type uint8

// The types of facts. In a rule an IP is a string, and the three that differ in Go only by their width are one Int.
const (
	String      Type = iota + 1 // string
	Int                         // int64 or int; sizes are Ints, in bytes
	Float                       // float64
	Bool                        // bool
	Strings                     // []string; nil is the empty list
	IP                          // string or netip.Addr; IPv4-mapped addresses and zones are reduced, "" is none
	Time                        // time.Time
	Duration                    // time.Duration
	StringFunc                  // func(string) string: header("Subject")
	StringsFunc                 // func(string) []string: headers("Received")
)

// typeInfo tells what Go value a fact of a type holds, and of what Go function the rule sees it as a call.
type typeInfo struct {
	name   string
	call   reflect.Type
	accept func(any) (any, bool)
}

// kinds is indexed by Type.
var kinds = [...]typeInfo{
	String:      {"a string", reflect.TypeFor[func(*run) string](), same[string]},
	Int:         {"an integer", reflect.TypeFor[func(*run) int](), acceptInt},
	Float:       {"a number", reflect.TypeFor[func(*run) float64](), same[float64]},
	Bool:        {"true or false", reflect.TypeFor[func(*run) bool](), same[bool]},
	Strings:     {"a list of strings", reflect.TypeFor[func(*run) []string](), same[[]string]},
	IP:          {"an address", reflect.TypeFor[func(*run) string](), acceptIP},
	Time:        {"a time", reflect.TypeFor[func(*run) time.Time](), same[time.Time]},
	Duration:    {"a duration", reflect.TypeFor[func(*run) time.Duration](), same[time.Duration]},
	StringFunc:  {"a function to a string", reflect.TypeFor[func(*run, string) string](), acceptStringFunc},
	StringsFunc: {"a function to a list", reflect.TypeFor[func(*run, string) []string](), acceptStringsFunc},
}

func (t Type) valid() bool { return t >= String && int(t) < len(kinds) }

// String says what the type is, in words.
func (t Type) String() string {
	if !t.valid() {
		return "unknown"
	}
	return kinds[t].name
}

func (t Type) function() bool { return t == StringFunc || t == StringsFunc }

func same[T any](v any) (any, bool) {
	_, ok := v.(T)
	return v, ok
}

// acceptInt makes an int of an int64: the engine compares ints fastest, and an int needs no second conversion.
func acceptInt(v any) (any, bool) {
	switch n := v.(type) {
	case int:
		return v, true
	case int64:
		return int(n), int64(int(n)) == n
	}
	return nil, false
}

// acceptIP gives an address one spelling, so that == means what it seems to mean. A string that is no address stays.
func acceptIP(v any) (any, bool) {
	switch a := v.(type) {
	case string:
		if !strings.Contains(a, ":") {
			return v, true
		}
		if ip, err := netip.ParseAddr(a); err == nil {
			return ip.Unmap().WithZone("").String(), true
		}
		return v, true
	case netip.Addr:
		if !a.IsValid() {
			return "", true
		}
		return a.Unmap().WithZone("").String(), true
	}
	return nil, false
}

func acceptStringFunc(v any) (any, bool) {
	f, ok := v.(func(string) string)
	return v, ok && f != nil
}

func acceptStringsFunc(v any) (any, bool) {
	f, ok := v.(func(string) []string)
	return v, ok && f != nil
}

// Fact declares one fact that rules may name.
type Fact struct {
	Name  string // an identifier: ASCII letters, digits and _, not starting with a digit
	Type  Type
	Doc   string // one line for the manual and for error messages
	Since int    // from when the value is known; the caller's ordinal, for instance a stage of the session
}

// Schema is the set of facts that a rule may use. It is immutable and safe for concurrent use.
type Schema struct {
	facts []Fact
	index map[string]int
}

// NewSchema makes a schema of facts, in the order in which they are to be listed. It panics on what only a programmer can
// get wrong: a name that is no identifier, is taken twice or belongs to the language, or a type that does not exist.
func NewSchema(facts ...Fact) *Schema {
	s := &Schema{facts: slices.Clone(facts), index: make(map[string]int, len(facts))}
	for i, f := range s.facts {
		if err := checkFact(f); err != nil {
			panic("rules: " + err.Error())
		}
		if _, ok := s.index[f.Name]; ok {
			panic(fmt.Sprintf("rules: fact %q is declared twice", f.Name))
		}
		s.index[f.Name] = i
	}
	return s
}

func checkFact(f Fact) error {
	if !identifier(f.Name) {
		return fmt.Errorf("fact name %q is no identifier", f.Name)
	}
	if !f.Type.valid() {
		return fmt.Errorf("fact %q has no type", f.Name)
	}
	if _, ok := constants[f.Name]; ok || slices.Contains(keywords, f.Name) || findFunction(f.Name) != nil {
		return fmt.Errorf("fact name %q belongs to the language", f.Name)
	}
	// The engine's parser takes a call by such a name for its own function, though it is none of ours.
	if _, ok := builtin.Index[f.Name]; ok && f.Type.function() {
		return fmt.Errorf("fact function %q has the name of a function of the engine", f.Name)
	}
	return nil
}

func identifier(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c == '_' || 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// Facts returns the declared facts in order. The slice is the caller's.
func (s *Schema) Facts() []Fact { return slices.Clone(s.facts) }

// Fact returns the fact of a name.
func (s *Schema) Fact(name string) (Fact, bool) {
	i, ok := s.index[name]
	if !ok {
		return Fact{}, false
	}
	return s.facts[i], true
}

// names lists the facts' names that may be called (or may not).
func (s *Schema) names(function bool) []string {
	var names []string
	for _, f := range s.facts {
		if f.Type.function() == function {
			names = append(names, f.Name)
		}
	}
	return names
}
