package dkim

import (
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

// Results that claim to be ours, in every spelling, and those that do not.
func TestForged(t *testing.T) {
	ids := []string{"mx.example.org", "xn--bcher-kva.example"}
	for _, value := range []string{
		"mx.example.org; dkim=pass",
		"mx.example.org;dkim=pass",
		"mx.example.org",
		"mx.example.org; none",
		"MX.Example.ORG; dkim=pass",
		"mx.example.org.; dkim=pass",
		"mx.example.org 1; dkim=pass",
		"mx.example.org/1; dkim=pass",
		"mx.example.org / 1; dkim=pass",
		"  \t mx.example.org \t ; dkim=pass",
		"(comment) mx.example.org; dkim=pass",
		"(com(nested (deeply))ment) mx.example.org (after) 1 (and after); dkim=pass",
		"(a \\) b) mx.example.org; dkim=pass",
		"(a \\( b) mx.example.org; dkim=pass",
		"(;) mx.example.org; dkim=pass",
		"(\") mx.example.org (\"); dkim=pass",
		"\"mx.example.org\"; dkim=pass",
		"\"mx\\.example.org\"; dkim=pass",
		"\"mx.example.org\" (x) 1; dkim=pass",
		"\"MX.EXAMPLE.ORG\";",
		"mx.example.org(comment); dkim=pass",
		"mx.example.org\x00; dkim=pass",
		"mx.\x00example.org; dkim=pass",
		"mx.example.org\x0b; dkim=pass",
		"mx.ex\u00adample.org; dkim=pass",
		"mx.example\u200b.org; dkim=pass",
		"\ufeffmx.example.org; dkim=pass",
		"\u00a0mx.example.org\u3000; dkim=pass",
		"ｍｘ．ｅｘａｍｐｌｅ．ｏｒｇ; dkim=pass",
		"mx。example。org; dkim=pass",
		"=?utf-8?q?mx=2Eexample=2Eorg?=; dkim=pass",
		"=?us-ascii?B?bXguZXhhbXBsZS5vcmc=?=; dkim=pass",
		"mx.example.org dkim=pass",
		"mx.example.org 1 dkim=pass (whatever)",
		"(unbalanced mx.example.org; dkim=pass",
		"\"unbalanced mx.example.org; dkim=pass",
		") mx.example.org; dkim=pass",
		"x mx.example.org y; dkim=pass",
		"xn--bcher-kva.example; dkim=pass",
		"XN--BCHER-KVA.example; dkim=pass",
		"bücher.example; dkim=pass",
		"BÜCHER.example; dkim=pass",
		"bu\u0308cher.example; dkim=pass",
	} {
		if !claims(value, ids) {
			t.Errorf("%q is not known to claim our name", value)
		}
	}
	for _, value := range []string{
		"", ";", "other.example; dkim=pass", "amx.example.org; dkim=pass", "mx.example.org.evil.example; dkim=pass", "example.org; dkim=pass",
		"sub.mx.example.org; dkim=pass", "other.example; dkim=pass header.d=mx.example.org", "(mx.example.org) other.example; dkim=pass",
		"other.example (mx.example.org); dkim=pass", "mx-example.org; none", "i=1; mx.example.org; dkim=pass", "bucher.example; none",
		"other.example 1; dkim=pass reason=\"mx.example.org; dkim=pass\"", "(unbalanced; dkim=pass",
	} {
		if claims(value, ids) {
			t.Errorf("%q is taken for ours", value)
		}
	}
}

// What is removed of a head, by its edits.
func TestForgedEdits(t *testing.T) {
	const rest = "From: a@b\nX-Authentication-Results: mx.example.org; none\nSubject: authentication-results: mx.example.org\n"
	const other = "Authentication-Results: other.example; spf=pass\n"
	for name, c := range map[string]struct {
		head, want string
		n          int
	}{
		"none":      {other + rest, other + rest, 0},
		"one":       {"Authentication-Results: mx.example.org; dkim=pass\n" + other + rest, other + rest, 1},
		"several":   {"aUTHENTICATION-rESULTS: mx.example.org 1;\n\tdkim=pass\n" + other + "Authentication-Results : mx.example.org; spf=pass\n" + rest + "Authentication-Results:\n (x\n ) \"mx.example.org\"\n ; dmarc=pass\n", other + rest, 3},
		"a heap":    {strings.Repeat("Authentication-Results: mx.example.org; dkim=pass\n", 5000) + other + rest, rest, 5001},
		"a hundred": {strings.Repeat("Authentication-Results: mx.example.org; dkim=pass\n"+other, 100) + rest, strings.Repeat(other, 100) + rest, 100},
	} {
		h, _ := message.ParseHead(c.head + "\n")
		edits, n := forged(h, []string{"mx.example.org"})
		if n != c.n {
			t.Errorf("%s: %d removed, want %d", name, n, c.n)
		}
		for _, e := range edits {
			var err error
			if h, err = h.Edit(e.Field); err != nil {
				t.Fatal(err)
			}
		}
		if got := h.String(); got != c.want+"\n" {
			t.Errorf("%s: %.500q, want %.500q", name, got, c.want)
		}
	}
}

// However much was found, the field fits into a head.
func TestFormatManyResults(t *testing.T) {
	long := strings.Repeat("\"", 1000)
	r := pipeline.AuthResult{Method: "x", Result: "pass", Reason: long}
	for range 100 {
		r.Props = append(r.Props, pipeline.Prop{Name: "smtp.x", Value: long})
	}
	got := FormatResults("mx.example.org", slices.Repeat([]pipeline.AuthResult{r}, 1000))
	if err := (message.FieldEdit{Op: message.Add, Name: ResultsField, Value: got}).Check(); err != nil || len(got) < maxField {
		t.Errorf("%d bytes: %v", len(got), err)
	}
}

func TestFormatResults(t *testing.T) {
	spf := pipeline.AuthResult{Method: "spf", Result: "pass", Props: []pipeline.Prop{{Name: "smtp.mailfrom", Value: "a@example.net"}}}
	for _, c := range []struct {
		id      string
		results []pipeline.AuthResult
		want    string
	}{
		{"mx.example.org", nil, "mx.example.org; none"},
		{"mx.example.org", []pipeline.AuthResult{{Method: "dkim", Result: "none"}}, "mx.example.org;\n\tdkim=none"},
		{
			"mx.example.org",
			[]pipeline.AuthResult{
				spf, Result{Result: Pass, Domain: "example.net", Selector: "s", Agent: "@example.net", Algorithm: "rsa-sha256", Value: "ab/+12=="}.AuthResult(),
				{Method: "dmarc", Result: "pass", Props: []pipeline.Prop{{Name: "header.from", Value: "example.net"}, {Name: "policy.dmarc", Value: "none"}}},
				{Method: "arc", Result: "fail", Reason: `a "b" \ c`},
			},
			"mx.example.org;\n\tspf=pass smtp.mailfrom=a@example.net;\n\tdkim=pass header.d=example.net header.i=@example.net header.s=s\n\theader.a=rsa-sha256 header.b=\"ab/+12==\";\n" +
				"\tdmarc=pass header.from=example.net policy.dmarc=none;\n\tarc=fail reason=\"a \\\"b\\\" \\\\ c\"",
		},
		{
			"mx.example.org",
			[]pipeline.AuthResult{
				{Method: "bad method", Result: "pass"},
				{Method: "x", Result: "pass;\r\nEvil: yes"},
				{Method: "", Result: "pass"},
				{Method: "x", Result: "pass", Reason: "a\r\nEvil: yes", Props: []pipeline.Prop{{Name: "evil", Value: "x"}, {Name: "a.b c", Value: "x"}, {Name: "smtp.helo", Value: "a\nb; dkim=pass (x"}, {Name: "smtp.x", Value: "\"@\"x"}}},
			},
			"mx.example.org;\n\tx=pass reason=\"a Evil: yes\" smtp.helo=\"a b; dkim=pass (x\" smtp.x=\"\\\"@\\\"x\"",
		},
	} {
		got := FormatResults(c.id, c.results)
		if got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
		if err := (message.FieldEdit{Op: message.Add, Name: ResultsField, Value: got}).Check(); err != nil {
			t.Error(err)
		}
		if !claims(strings.ReplaceAll(got, "\n", ""), []string{c.id}) {
			t.Errorf("%q is not known as ours", got)
		}
	}
}
