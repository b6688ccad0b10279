package dkim

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
)

// What a signature with l= is worth is up to the configuration; what it covers
// must be unchanged in any case.
func TestPartial(t *testing.T) {
	cases := map[string]dataCase{}
	for _, c := range dataCases(t) {
		_, name, _ := strings.Cut(c.name, "-")
		cases[name] = c
	}
	for _, c := range []struct {
		what, name           string // and the case of testdata/suite
		edit                 func(string) string
		unsigned, whole, any string
		says                 string // of any
	}{
		{"all of the body", "policy-l", nil, Policy, Pass, Pass, ""},
		{"nothing of the body", "policy-l-0", nil, Policy, Policy, Pass, ""},
		{"more follows", "policy-l-appended", nil, Policy, Policy, Pass, ""},
		{"it was changed", "policy-l", replace("\n\n", "\n\nx"), Policy, Fail, Fail, "body hash did not verify"},
		{"the head was changed", "policy-l", replace("Subject: ", "Subject: x"), Policy, Fail, Fail, "signature did not verify"},
		{"it was cut off", "policy-l", func(s string) string { return s[:strings.Index(s, "\n\n")+2] }, Policy, Fail, Fail, "the body is shorter than l= says"},
		{"no number", "l-no-number", nil, Neutral, Neutral, Neutral, "is no length"},
		{"without l=", "good-relaxed-relaxed", nil, Pass, Pass, Pass, ""},
		{"without l=, changed", "changed-body", nil, Fail, Fail, Fail, "body hash did not verify"},
	} {
		d := cases[c.name]
		text := d.text
		if c.edit != nil {
			text = c.edit(text)
		}
		for partial, want := range map[string]string{"": c.unsigned, PartialUnsigned: c.unsigned, PartialWhole: c.whole, PartialAny: c.any} {
			v := &Verifier{Look: d.zone.look, Now: func() time.Time { return d.now }, Partial: partial}
			got, _, err := v.Verify(context.Background(), message.FromString(text))
			if err != nil || len(got) != 1 || got[0].Result != want {
				t.Fatalf("%s, partial = %q: %v, %v, want %s", c.what, partial, got, err, want)
			}
			if partial == PartialAny && !strings.Contains(got[0].Reason, c.says) {
				t.Errorf("%s: %v, want %q", c.what, got[0], c.says)
			}
		}
	}
}

// replace changes the first of something in a text.
func replace(before, after string) func(string) string {
	return func(s string) string { return strings.Replace(s, before, after, 1) }
}

// The option reaches the verifier, and without a name of its own the filter
// takes the host's.
func TestConfigured(t *testing.T) {
	var appended dataCase
	for _, c := range dataCases(t) {
		if strings.HasSuffix(c.name, "policy-l-appended") {
			appended = c
		}
	}
	for partial, want := range map[string]string{"unsigned": "dkim=policy", "whole": "dkim=policy", "any": "dkim=pass"} {
		env := filtertest.Env(t)
		env.Host, env.Resolver, env.Now = "mail.example.com", resolver{zone: appended.zone}, func() time.Time { return appended.now }
		f, err := VerifyKind().New(env, filtertest.Decode("partial = \""+partial+"\"\n"))
		if err != nil {
			t.Fatal(err)
		}
		v, err := f.(*VerifyFilter).Message(context.Background(), &pipeline.Transaction{Session: &pipeline.Session{}}, message.FromString("Authentication-Results: MAIL.example.com; spf=pass\n"+appended.text))
		if err != nil || len(v.Edits) != 2 {
			t.Fatal(v, err)
		}
		if got := v.Edits[1].Field.Value; !strings.HasPrefix(got, "mail.example.com;\n\t"+want) {
			t.Errorf("%s: %q", partial, got)
		}
	}
	env := filtertest.Env(t)
	env.Host = ""
	if _, err := VerifyKind().New(env, filtertest.Decode("")); err == nil {
		t.Error("a filter without a name")
	}
}
