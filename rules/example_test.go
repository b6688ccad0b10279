package rules_test

import (
	"fmt"

	"github.com/postern-mta/postern/rules"
)

func ExampleRule() {
	schema := rules.NewSchema(
		rules.Fact{Name: "from", Type: rules.String, Doc: "envelope sender", Since: 1},
		rules.Fact{Name: "size", Type: rules.Int, Doc: "bytes", Since: 2},
	)
	rule, err := rules.Compile(schema, `indomain(from, "example.org") and size < 50 * MB`)
	if err != nil {
		fmt.Println(err)
		return
	}
	facts := func(name string) any {
		switch name {
		case "from":
			return "joe@mx.example.org"
		case "size":
			return int64(80 << 20)
		}
		return nil
	}
	fmt.Println(rule.Uses(), rule.Since())
	fmt.Println(rule.Match(facts))
	why, _ := rule.Explain(facts)
	fmt.Print(why)

	_, err = rules.Compile(schema, `form == ""`)
	fmt.Println(err)
	// Output:
	// [from size] 2
	// false <nil>
	// false   indomain(from, "example.org") and size < 50 * MB
	// true      indomain(from, "example.org")
	// false     size < 50 * MB
	//   from = "joe@mx.example.org"
	//   size = 83886080
	// column 1: unknown fact "form", did you mean "from"?
}
