package rules_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/rules"
)

// holds has conditions that hold for values() and, each after its !, conditions that do not.
var holds = []string{
	`true`, `not false`, `from == "Joe.Doe@Example.org"`, `!from == "joe.doe@example.org"`, `lower(from) == "joe.doe@example.org"`,
	`from endsWith "@Example.org" and size < 50 * MB`, `!from == "" or relay`, `not relay`, `!relay`, `relay == false`, `(!relay)`,
	`from != ""`, `from contains "Doe" && from startsWith "Joe"`, `from not contains "zz"`,
	`size == 70000`, `!size > 70000`, `size >= 70_000`, `1 < size < 100000`, `!1 < size < 10`, `size in [1, 70000]`, `!size in [1, 2]`,
	`size > 68 * KB`, `size < 1 * GB`, `size % 7 == 0`, `size / 2 == 35000`, `size - 70001 == -1`, `-size < 0`, `5 < len(from) < 99`,
	`score > 4`, `score == 4.5`, `score * 2 == 9`, `!score >= 5`,
	`helo in ["a", "Mail.Example.ORG"]`, `!helo in ["a", "b"]`, `helo not in ["a"]`,
	`"ann@example.net" in recipients`, `!"ANN@example.net" in recipients`, `"by c" in headers("Received")`, `"Doe@Example" in split(from, ".")`,
	`"ann@example.net" in filter(recipients, # startsWith "a")`, `len(recipients) == 3`, `len(filter(recipients, # contains "b")) == 1`,
	`any(recipients, indomain(#, "example.net"))`, `all(recipients, # contains "@")`, `none(recipients, # == from)`,
	`one(recipients, # startsWith "ann")`, `count(recipients, domain(#) endsWith "example.net") == 2`, `any(["x", "Joe"], from startsWith #)`,
	`any(recipients, # == "\u00ff\u00fe@example.com") == false`, `any(recipients, local(#) not in ["ann", "BOB"])`,
	`header("Subject") contains "Invoice"`, `header("X-None") == ""`, `len(headers("Received")) == 3`, `len(headers("None")) == 0`,
	`all(headers("None"), # == "x")`, `header("Subject") matches "(?i)invoice.*äö"`, `!header("Subject") matches "^x"`,
	`any(recipients, # matches "^..@example.com$")`, `lower(header("Subject")) contains "äö"`, `upper(from) startsWith "JOE"`,
	`domain(from) == "example.org"`, `local(from) == "Joe.Doe"`, `trim("  x ") == "x"`, `trim("xax", "x") == "a"`,
	`trimPrefix(from, "Joe.") == "Doe@Example.org"`, `trimSuffix(from, ".org") == "Joe.Doe@Example"`, `from + "" == from`, `"a" + "b" == "ab"`,
	`like(from, "*@example.ORG")`, `!like(from, "*@example.com", "?")`, `like(helo, "x", "mail.*.org")`,
	`indomain(helo, "example.org")`, `!indomain(helo, "ample.org")`, `indomain(from, "x.org", domain(from))`,
	`cidr(ip, "192.0.2.0/24")`, `!cidr(ip, "10.0.0.0/8", "2001:db8::/32")`, `cidr(ip, "192.0.2.7")`, `!cidr(helo, "0.0.0.0/0")`,
	`ip == "::ffff:192.0.2.7"`, `ip in ["192.0.2.7", "2001:DB8::1"]`, `ip != ""`,
	`now - date == duration("48h")`, `now > date`, `age > duration("1h")`, `age == duration("1h" + "30m")`, `date + duration("48h") == now`,
	`recipients | any(# contains "@")`, "from contains `Doe` // a comment", "relay or\n\tsize > 0",
}

func TestMatch(t *testing.T) {
	for _, src := range holds {
		if text, negated := strings.CutPrefix(src, "!"); negated {
			if ok, err := compile(t, text).Match(facts(values())); err != nil || ok {
				t.Errorf("%s: %t, %v; want false", text, ok, err)
			}
			continue
		}
		if !match(t, src) {
			t.Errorf("%s: false, want true", src)
		}
	}
}

// TestLazy proves that facts are fetched when they are reached, once, and no others.
func TestLazy(t *testing.T) {
	for _, tc := range []struct {
		src   string
		asked string
		uses  string
		since int
	}{
		{`from == "x" and size > 1`, "from", "from size", 4},
		{`from != "x" or size > 1`, "from", "from size", 4},
		{`size > 1 and size < 1000000 and from != "x"`, "size from", "size from", 4},
		{`any(recipients, # == from)`, "recipients from", "recipients from", 3},
		{`header("A") == header("B") and helo == ""`, "header helo", "header helo", 4},
		{`relay or 1 < size < 5`, "relay size", "relay size", 4},
		{`true`, "", "", 0},
	} {
		r := compile(t, tc.src)
		var asked []string
		m := values()
		if _, err := r.Match(func(name string) any { asked = append(asked, name); return m[name] }); err != nil {
			t.Errorf("%s: %v", tc.src, err)
		}
		if got := strings.Join(asked, " "); got != tc.asked {
			t.Errorf("%s: asked %q, want %q", tc.src, got, tc.asked)
		}
		if got := strings.Join(r.Uses(), " "); got != tc.uses {
			t.Errorf("%s: uses %q, want %q", tc.src, got, tc.uses)
		}
		if r.Since() != tc.since {
			t.Errorf("%s: since %d, want %d", tc.src, r.Since(), tc.since)
		}
		if r.String() != tc.src {
			t.Errorf("String() = %q", r.String())
		}
	}
}

func TestMatchErrors(t *testing.T) {
	for _, tc := range []struct {
		src, name string
		value     any
		is        error
		text      string
	}{
		{`from == "x"`, "from", nil, rules.ErrMissing, `rule "from == \"x\"": fact "from" has no value here`},
		{`from == "x"`, "from", 5, rules.ErrType, `fact "from" has the wrong type: it is int, not a string`},
		{`size > 1`, "size", "1", rules.ErrType, `it is string, not an integer`},
		{`size > 1`, "size", uint8(1), rules.ErrType, `it is uint8`},
		{`score > 1`, "score", 1, rules.ErrType, `not a number`},
		{`relay`, "relay", "yes", rules.ErrType, `not true or false`},
		{`len(recipients) > 1`, "recipients", "a", rules.ErrType, `not a list of strings`},
		{`ip == ""`, "ip", 1, rules.ErrType, `not an address`},
		{`now == date`, "now", "x", rules.ErrType, `not a time`},
		{`age > duration("1s")`, "age", int64(1), rules.ErrType, `not a duration`},
		{`header("a") == ""`, "header", (func(string) string)(nil), rules.ErrType, `not a function to a string`},
		{`len(headers("a")) == 0`, "headers", func(string) string { return "" }, rules.ErrType, `not a function to a list`},
		{`header("a") == ""`, "header", func(string) string { panic("boom\n\x1b") }, nil, `boom ?`},
		{`1 % size == 0`, "size", 0, nil, `divide by zero`},
	} {
		m := values()
		m[tc.name] = tc.value
		ok, err := compile(t, tc.src).Match(facts(m))
		if ok || err == nil || !strings.Contains(err.Error(), tc.text) || tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%s with %s=%v: %t, %v; want %q", tc.src, tc.name, tc.value, ok, err, tc.text)
		}
		checkLine(t, err)
		// The rule, and the run that it keeps, are as good as new.
		if _, err := compile(t, tc.src).Match(facts(values())); err != nil {
			t.Errorf("%s afterwards: %v", tc.src, err)
		}
	}
	if ok, err := compile(t, `relay`).Match(nil); ok || !errors.Is(err, rules.ErrMissing) {
		t.Errorf("without facts: %t, %v", ok, err)
	}
	if ok, err := compile(t, `relay`).Match(func(string) any { panic("facts") }); ok || err == nil {
		t.Errorf("facts that panic: %t, %v", ok, err)
	}
}

func TestFactValues(t *testing.T) {
	for _, tc := range []struct {
		src, name string
		value     any
	}{
		{`size == 5`, "size", 5},
		{`size == 5000000000`, "size", int64(5_000_000_000)},
		{`ip == "192.0.2.7"`, "ip", "::ffff:192.0.2.7"},
		{`ip == "192.0.2.7"`, "ip", netip.MustParseAddr("::ffff:192.0.2.7")},
		{`ip == "fe80::1"`, "ip", "FE80::1%eth0"},
		{`cidr(ip, "fe80::/10")`, "ip", "FE80::1%eth0"},
		{`ip == ""`, "ip", netip.Addr{}},
		{`ip == "" and not cidr(ip, "0.0.0.0/0", "::/0")`, "ip", ""},
		{`len(recipients) == 0`, "recipients", []string(nil)},
		{`from == "" and domain(from) == ""`, "from", ""},
	} {
		m := values()
		m[tc.name] = tc.value
		if ok, err := compile(t, tc.src).Match(facts(m)); !ok || err != nil {
			t.Errorf("%s with %v: %t, %v", tc.src, tc.value, ok, err)
		}
	}
}

func TestAlways(t *testing.T) {
	r := rules.Always()
	if ok, err := r.Match(nil); !ok || err != nil || r.Since() != 0 || len(r.Uses()) != 0 || r.String() != "true" {
		t.Errorf("Always: %t, %v, %d, %v, %q", ok, err, r.Since(), r.Uses(), r.String())
	}
	if x, err := r.Explain(nil); err != nil || !x.Match || len(x.Steps) != 1 {
		t.Errorf("Explain: %+v, %v", x, err)
	}
}

func TestConcurrent(t *testing.T) {
	r := compile(t, `any(recipients, # == from) and size > 10 and header("Subject") matches "x"`)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			m := values()
			me := fmt.Sprintf("%d@example.org", i)
			m["from"], m["recipients"] = me, []string{"a@b", me}
			m["header"] = func(string) string { return strings.Repeat("x", i%2) }
			for range 200 {
				if ok, err := r.Match(facts(m)); err != nil || ok != (i%2 == 1) {
					t.Errorf("%d: %t, %v", i, ok, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestManyElements has a list that is longer than what the pool keeps, and one that exceeds the memory budget.
func TestManyElements(t *testing.T) {
	m := values()
	m["recipients"] = slices.Repeat([]string{"ann@example.net"}, 20_000)
	r := compile(t, `len(filter(recipients, indomain(#, "example.net"))) == 20000`)
	for range 2 {
		if ok, err := r.Match(facts(m)); !ok || err != nil {
			t.Fatalf("%t, %v", ok, err)
		}
	}
	m["recipients"] = slices.Repeat([]string{"a"}, 1<<20+1)
	if _, err := compile(t, `len(filter(recipients, true)) > 1`).Match(facts(m)); err == nil || !strings.Contains(err.Error(), "memory budget") {
		t.Errorf("memory budget: %v", err)
	}
	// A large list in a large list ends in time.
	m["recipients"] = slices.Repeat([]string{"ann@example.net"}, 2_000)
	if ok, err := compile(t, `any(recipients, (# + "x") in recipients)`).Match(facts(m)); ok || err != nil {
		t.Errorf("%t, %v", ok, err)
	}
}

func TestExplain(t *testing.T) {
	m := values()
	m["from"] = "a\x1b[31m\r\n" + strings.Repeat("b", 5000) + "@example.org"
	m["recipients"] = slices.Repeat([]string{"r@example.net"}, 50)
	r := compile(t, `(from == "x" or size > 10 * MB or header("Subject") contains "Inv") and not (relay and helo == "") and len(recipients) > 60 and score > 1`)
	x, err := r.Explain(facts(m))
	if err != nil || x.Match {
		t.Fatalf("%v, %v", x, err)
	}
	type step struct {
		depth           int
		result, reached bool
		text            string
	}
	want := []step{
		{0, false, true, "((from =="},
		{1, true, true, `(from == "x" or size > 10 * MB) or header`},
		{2, false, true, `from == "x"`},
		{2, false, true, `size > 10 * MB`},
		{2, true, true, `header("Subject") contains "Inv"`},
		{1, true, true, `not (relay and helo == "")`},
		{2, false, true, `relay and helo == ""`},
		{3, false, true, `relay`},
		{3, false, false, `helo == ""`},
		{1, false, true, `len(recipients) > 60`},
		{1, true, false, `score > 1`},
	}
	if len(x.Steps) != len(want) {
		t.Fatalf("steps:\n%s", x)
	}
	for i, w := range want {
		s := x.Steps[i]
		if s.Depth != w.depth || s.Result != w.result || s.Reached != w.reached || s.Err != "" || i > 1 && s.Text != w.text {
			t.Errorf("step %d: %+v, want %+v", i, s, w)
		}
	}
	text := x.String()
	for _, part := range []string{
		`from = "a\x1b[31m\r\nbbb`, "… (5020 bytes)", `header("Subject") = "Invoice\t12 \x1b[31m ÄÖ"`, "size = 70000", "… (50 in all)]", "relay = false",
	} {
		if !strings.Contains(text, part) {
			t.Errorf("no %q in\n%s", part, text)
		}
	}
	if strings.ContainsAny(text, "\x1b\r") || len(text) > 6000 {
		t.Errorf("unclean or long: %q", text)
	}
}

func TestExplainErrors(t *testing.T) {
	m := values()
	delete(m, "size")
	x, err := compile(t, `relay and size > 1 or helo != ""`).Explain(facts(m))
	if err != nil || !x.Match || x.Steps[3].Reached || !strings.Contains(x.Steps[3].Err, "no value") {
		t.Errorf("not reached: %v\n%s", err, x)
	}
	x, err = compile(t, `size > 1 and helo != ""`).Explain(facts(m))
	if !errors.Is(err, rules.ErrMissing) || x.Match || x.Steps[0].Err == "" {
		t.Errorf("reached: %v\n%s", err, x)
	}
	if x, err = compile(t, `now - date > duration("1h")`).Explain(facts(m)); err != nil || x.Facts[0].Value != "2026-05-04T12:00:00Z" {
		t.Errorf("times: %v\n%s", err, x)
	}
	if x, err = compile(t, `1 < score < 5`).Explain(facts(m)); err != nil || !x.Match || len(x.Steps) != 3 {
		t.Errorf("chain: %v\n%s", err, x)
	}
	m["age"] = 90 * time.Minute
	if x, err = compile(t, `not (age > duration("2h"))`).Explain(facts(m)); err != nil || !x.Match || x.Facts[0].Value != "1h30m0s" {
		t.Errorf("duration: %v\n%s", err, x)
	}
}
