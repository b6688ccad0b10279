package rules_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/postern-mta/postern/rules"
)

// checkLine fails if an error is not one clean, short line.
func checkLine(t testing.TB, err error) {
	t.Helper()
	if err == nil {
		return
	}
	text := err.Error()
	bad := func(r rune) bool { return r < ' ' || r == 0x7f }
	if text == "" || len(text) > 800 || !utf8.ValidString(text) || strings.ContainsFunc(text, bad) {
		t.Errorf("not one clean line: %q", text)
	}
}

func TestCompileErrors(t *testing.T) {
	for _, tc := range []struct{ src, want string }{
		{`form == "x"`, `column 1: unknown fact "form", did you mean "from"?`},
		{`size > 1 and Sise > 2`, `column 14: unknown fact "Sise", did you mean "size"?`},
		{"relay and\n  form == \"x\"", `line 2, column 3: unknown fact "form"`},
		{`"é" == form`, `column 8: unknown fact "form"`},
		{`xyzzy`, `column 1: unknown fact "xyzzy"`},
		{`size < 5 * Mb`, `unknown fact "Mb", did you mean "MB"?`},
		{`heder("x") == ""`, `column 1: unknown function "heder", did you mean "header"?`},
		{`cidir(ip, "10.0.0.0/8")`, `did you mean "cidr"?`},
		{`header == ""`, `fact "header" is a function: write header("...")`},
		{`header() == ""`, `write header("...") with one argument`},
		{`header(5) == ""`, `cannot use int as argument (type string) to call header`},
		{`from("x") == ""`, `fact "from" is a string, not a function`},
		{`lower == ""`, `"lower" is a function: write lower(s)`},
		{``, "the rule is empty"},
		{" \n\t", "the rule is empty"},
		{`// nothing`, "ends too early"},
		{`from ==`, "ends too early"},
		{`from = "x"`, `did you mean "=="?`},
		{`from`, "the rule is a string, not a condition"},
		{`size + 1`, "the rule is a int, not a condition"},
		{`from == 5`, `column 6: invalid operation: == (mismatched types string and int)`},
		{`size matches "x"`, "mismatched types"},
		{`from in ["a", 1]`, "column 15: values of different types in one list"},
		{`from in [1, 2]`, "cannot use string as type int in array"},
		{`5 in recipients`, "cannot use int as argument (type string)"},
		{`from in []`, "the list is empty"},
		{`from in [["a"]]`, "a list cannot hold a list"},
		{`any([1, "a"], # == 1)`, "different types"},
		{`recipients == ["a"]`, "lists cannot be compared"},
		{`from == nil`, "there is no nil"},
		{`(from ?? "x") == ""`, `operator "??"`},
		{`recipients[0] == "x"`, "there is no indexing"},
		{`from[1:2] == "x"`, "there is no indexing"},
		{`from.x == "x"`, "there is no indexing"},
		{`from?.x == "x"`, "there is no indexing"},
		{`from.x() == "x"`, "there are no methods"},
		{`relay ? true : false`, "there is no if"},
		{`if relay { true } else { false }`, ""},
		{`let x = 1; x > 1`, "a rule is one condition"},
		{`true; relay`, "a rule is one condition"},
		{`{"a": 1} == {"a": 1}`, "not part of the rule language"},
		{`len(1..9) > 1`, `operator ".."`},
		{`2 ** 3 == 8`, `operator "**"`},
		{`$env == ""`, ""},
		{`$env.from == ""`, "no indexing"},
		{`get($env, "from") == ""`, `function "get"`},
		{`now() > date`, `fact "now" is a time, not a function`},
		{`reduce(recipients, # + #acc) == ""`, `function "reduce"`},
		{`map(recipients, #) == ["a"]`, `function "map"`},
		{`::lower(from) == ""`, `function "lower"`},
		{`toJSON(from) == ""`, `function "toJSON"`},
		{`b"x" == b"x"`, "not part of the rule language"},
		{`# == ""`, ""},
		{`any(recipients, #index > 0)`, "#index stands for nothing"},
		{`any(recipients, any(headers("a"), # == "x"))`, "cannot stand within"},
		{`any(from, # == "x")`, "takes only array"},
		{`any(recipients, #)`, "boolean"},
		{`count(recipients) > 1`, "wrong number of arguments"},
		{`any(recipients)`, ""},
		{`lower(from, from) == ""`, "wrong number of arguments: write lower(s)"},
		{`lower(size) == ""`, "cannot use int"},
		{`trim(from, "a", "b") == ""`, "wrong number"},
		{`from matches "("`, "column 14: bad pattern: missing closing )"},
		{`from matches helo`, "the pattern of matches is a text in quotes"},
		{`from matches "(a{1000}b{1000}c{1000}d{1000}e{1000}f{1000}g{1000}h{1000}i{1000}j{1000})"`, "too large"},
		{`from matches "(?P<x\u001b[31m>a"`, "bad pattern"},
		{`cidr(ip, helo)`, "with a text in quotes"},
		{`cidr(ip)`, "wrong number of arguments: write cidr(ip, network, ...)"},
		{`cidr(ip, "10.0.0.0/33")`, "is no network"},
		{`cidr(ip, "10.0.0.1/8")`, `did you mean "10.0.0.0/8"?`},
		{`cidr(ip, "x")`, "is no network"},
		{`cidr(ip, "::ffff:10.0.0.0/8")`, "is no network"},
		{`cidr(size, "10.0.0.0/8")`, "cannot use int"},
		{`ip == "10.0.0.0/8"`, `for a network write cidr(ip, "10.0.0.0/8")`},
		{`ip == "localhost"`, `"localhost" is no address`},
		{`ip in ["10.0.0"]`, "is no address"},
		{`like(from, helo)`, "with a text in quotes"},
		{`indomain(from, ".example.org")`, "indomain takes a domain"},
		{`indomain(from, "")`, "indomain takes a domain"},
		{`indomain(from, 5)`, "cannot use int"},
		{`age > duration("1 hour")`, `"1 hour" is no duration`},
		{`age > duration(helo)`, "with a text in quotes"},
		{`age > 5`, "mismatched types"},
		{`size / 0 > 1`, "division by zero"},
		{`size % (1 - 1) > 1`, "division by zero"},
		{`size > 9999999999 * GB`, "the number is too large"},
		{`size > 99999999999999999999`, "invalid integer literal"},
		{`size > 9223372036854775807 + 1`, "too large"},
		{`size > -9223372036854775807 - 2`, "too large"},
		{"from == \"\xff\"", "column 10: byte 0xff is not valid UTF-8"},
		{"from == \"\x1b\"", "column 10: control character 0x1b"},
		{"from == \"\x00\"", "control character 0x00"},
		{"from == \"a\u202eb\u2028\" and", ""},
		{`from == "x`, "literal not terminated"},
		{`from == "\q"`, "invalid char escape"},
		{strings.Repeat("(", 4000), ""},
		{strings.Repeat("!", 4000) + "relay", "too complex"},
		{"relay" + strings.Repeat(" or relay", 400), "too complex"},
		{strings.Repeat("a", 5000), "the rule is 5000 bytes long, at most 4096 are allowed"},
		{strings.Repeat("a", 4000), "unknown fact"},
		{`not from == "x"`, "invalid operation: not (mismatched type string)"},
		{`relay and size`, "mismatched types bool and int"},
		{`1 < header("a") < 5`, "mismatched types"},
	} {
		r, err := rules.Compile(mail(), tc.src)
		if err == nil {
			t.Errorf("%q compiles to %v", tc.src, r)
			continue
		}
		var e *rules.Error
		if !errors.As(err, &e) || e.Line < 1 {
			t.Errorf("%q: %#v is no *rules.Error with a line", tc.src, err)
		}
		if !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v; want %q", tc.src, err, tc.want)
		}
		if strings.Contains(err.Error(), "fact:") || strings.Contains(err.Error(), "goroutine") {
			t.Errorf("%q: inner names in %v", tc.src, err)
		}
		checkLine(t, err)
	}
}

func TestSchema(t *testing.T) {
	s := mail()
	if f, ok := s.Fact("size"); !ok || f.Type != rules.Int || f.Since != 4 {
		t.Errorf("size: %+v, %t", f, ok)
	}
	if _, ok := s.Fact("nope"); ok {
		t.Error("nope is a fact")
	}
	list := s.Facts()
	if len(list) != 12 || list[0].Name != "ip" || list[0].Doc == "" {
		t.Errorf("Facts: %v", list)
	}
	list[0].Name = "changed"
	if s.Facts()[0].Name != "ip" {
		t.Error("Facts hands out its own slice")
	}
	if rules.Strings.String() != "a list of strings" || rules.Type(0).String() != "unknown" || rules.Type(200).String() != "unknown" {
		t.Error("Type.String")
	}
	for _, facts := range [][]rules.Fact{
		{{Name: "a", Type: rules.String}, {Name: "a", Type: rules.Int}},
		{{Name: "", Type: rules.String}},
		{{Name: "9a", Type: rules.String}},
		{{Name: "a-b", Type: rules.String}},
		{{Name: "é", Type: rules.String}},
		{{Name: "a"}},
		{{Name: "a", Type: 99}},
		{{Name: "in", Type: rules.String}},
		{{Name: "MB", Type: rules.Int}},
		{{Name: "cidr", Type: rules.String}},
		{{Name: "any", Type: rules.Bool}},
		{{Name: "first", Type: rules.StringFunc}},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("NewSchema(%v) does not panic", facts)
				}
			}()
			rules.NewSchema(facts...)
		}()
	}
}

// TestFunctions proves that every listed function is in the tests of what holds.
func TestFunctions(t *testing.T) {
	for _, f := range rules.Functions() {
		if f.Usage == "" || f.Doc == "" || !strings.HasPrefix(f.Usage, f.Name+"(") {
			t.Errorf("%+v", f)
		}
		if !slices.ContainsFunc(holds, func(src string) bool { return strings.Contains(src, f.Name+"(") }) {
			t.Errorf("no test of %s", f.Name)
		}
	}
}

func TestSuggest(t *testing.T) {
	names := []string{"from", "size", "recipients", "header", "headers"}
	for _, tc := range []struct{ word, want string }{
		{"form", "from"},
		{"FROM", "from"},
		{"fro", "from"},
		{"szie", "size"},
		{"recipient", "recipients"},
		{"recepients", "recipients"},
		{"rcpts", ""},
		{"heade", "header"},
		{"headerss", "headers"},
		{"header", "header"},
		{"x", ""},
		{"", ""},
		{"completely", ""},
		{strings.Repeat("from", 20), ""},
	} {
		if got := rules.Suggest(tc.word, names); got != tc.want {
			t.Errorf("Suggest(%q) = %q, want %q", tc.word, got, tc.want)
		}
	}
	if got := rules.Suggest("a", []string{"b"}); got != "" {
		t.Errorf("one letter for another: %q", got)
	}
}
