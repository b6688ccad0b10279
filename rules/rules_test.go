package rules_test

import (
	"testing"
	"time"

	"github.com/postern-mta/postern/rules"
)

// mail is a schema with a fact of each type.
func mail() *rules.Schema {
	return rules.NewSchema(
		rules.Fact{Name: "ip", Type: rules.IP, Doc: "the peer's address"},
		rules.Fact{Name: "helo", Type: rules.String, Since: 1},
		rules.Fact{Name: "from", Type: rules.String, Since: 2},
		rules.Fact{Name: "recipients", Type: rules.Strings, Since: 3},
		rules.Fact{Name: "relay", Type: rules.Bool},
		rules.Fact{Name: "size", Type: rules.Int, Since: 4},
		rules.Fact{Name: "score", Type: rules.Float, Since: 4},
		rules.Fact{Name: "now", Type: rules.Time},
		rules.Fact{Name: "date", Type: rules.Time, Since: 4},
		rules.Fact{Name: "age", Type: rules.Duration},
		rules.Fact{Name: "header", Type: rules.StringFunc, Since: 4},
		rules.Fact{Name: "headers", Type: rules.StringsFunc, Since: 4},
	)
}

// values is a message; facts reads it.
func values() map[string]any {
	day := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	return map[string]any{
		"ip": "192.0.2.7", "helo": "Mail.Example.ORG", "from": "Joe.Doe@Example.org",
		"recipients": []string{"ann@example.net", "BOB@sub.example.net", "\xff\xfe@example.com"},
		"relay":      false, "size": int64(70000), "score": 4.5,
		"now": day, "date": day.Add(-48 * time.Hour), "age": 90 * time.Minute,
		"header": func(name string) string {
			if name == "Subject" {
				return "Invoice\t12 \x1b[31m ÄÖ"
			}
			return ""
		},
		"headers": func(name string) []string {
			if name == "Received" {
				return []string{"from a", "from b", "by c"}
			}
			return nil
		},
	}
}

func facts(m map[string]any) rules.Facts { return func(name string) any { return m[name] } }

func compile(t testing.TB, src string) *rules.Rule {
	t.Helper()
	r, err := rules.Compile(mail(), src)
	if err != nil {
		t.Fatalf("Compile(%q): %v", src, err)
	}
	return r
}

func match(t testing.TB, src string) bool {
	t.Helper()
	ok, err := compile(t, src).Match(facts(values()))
	if err != nil {
		t.Fatalf("Match(%q): %v", src, err)
	}
	return ok
}
