package dkim

import (
	"fmt"
	"strings"
	"testing"
)

// shapes are messages that signing and verifying must agree on.
func shapes() map[string]string {
	const head = "From: Joe <joe@example.org>\nTo: sue@example.net\nSubject: hello\nDate: Mon, 2 Nov 2026 10:00:00 +0000\nMessage-ID: <1@example.org>\n"
	return map[string]string{
		"plain":           head + "\nHello.\n",
		"empty body":      head + "\n",
		"no body at all":  head,
		"blank body":      head + "\n\n\n\n",
		"spaces only":     head + "\n  \n\t\n",
		"blank lines":     head + "\nHello.\n\n\n\n\n",
		"spaces at ends":  head + "\nHello. \t \n  two   words\n \n \n",
		"no final line":   head + "\nHello.",
		"folded":          strings.Replace(head, "hello", "hello\n  folded\n\tand again ", 1) + "\nHello.\n",
		"eight bits":      strings.Replace(head, "hello", "Gr\xfc\xdfe \xc3\xa9", 1) + "\n\xe4\xf6\xfc \xff\n",
		"odd blanks":      strings.Replace(head, "Subject: hello", "Subject:hello   world \t", 1) + "\nx\n",
		"blank name":      strings.Replace(head, "Subject:", "Subject :", 1) + "\nx\n",
		"empty fields":    head + "Cc:\nReply-To: \n\nx\n",
		"two of a kind":   head + "To: second@example.net\nSubject: again\n\nx\n",
		"list":            head + "List-Id: <x.example.org>\nList-Unsubscribe: <mailto:u@example.org>\n\nx\n",
		"dots":            head + "\n.\n..\n.x\n",
		"From lines":      head + "\nFrom here\n>From there\n",
		"long lines":      head + "\n" + strings.Repeat("x", 5000) + "\n",
		"b= in a field":   strings.Replace(head, "hello", "b=abc; b = def; bh=x", 1) + "\nb=1; b=2\n",
		"many blank runs": head + "\n" + strings.Repeat("a\n"+strings.Repeat("\n", 16_000), 3) + "end\n\n",
		"no head":         "From: joe@example.org\n\n",
		"10 MiB":          head + "\n" + strings.Repeat(strings.Repeat("0123456789abcde ", 5)+"\n", 10<<20/81) + "\n\n",
	}
}

// What we sign, we verify, in every form and with every key; and what was
// changed, we do not.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for name, text := range shapes() {
		for _, bits := range []int{0, 1024} {
			for _, form := range []string{"simple/simple", "simple/relaxed", "relaxed/simple", "relaxed/relaxed"} {
				large := len(text) > 100_000
				if large && (bits != 0 || !strings.HasPrefix(form, "relaxed")) {
					continue // its size is about the body
				}
				t.Run(fmt.Sprintf("%s/%d/%s", name, bits, form), func(t *testing.T) {
					z, k := zone{}, Key{Domain: "example.org", Selector: "sel", Signer: testKey(t, bits)}
					z.publish(t, k)
					header, body, _ := strings.Cut(form, "/")
					out := signed(t, &Signer{HeaderForm: header, BodyForm: body}, k, text)
					got := z.verify(t, out)
					if len(got) != 1 || got[0].Result != Pass {
						t.Fatalf("%v\n%.2000s", got, out)
					}
					if n := len("DKIM-Signature: "); !strings.HasPrefix(out, "DKIM-Signature: ") || strings.Contains(out[n:n+20], "\n") {
						t.Errorf("%.300q", out)
					}
					if large {
						return
					}
					for _, changed := range []string{
						strings.Replace(out, "joe@", "jim@", 1), "From: other@example.org\n" + out, "Subject: other\n" + out,
						strings.TrimRight(out, "\n") + "\nmore\n",
					} {
						if !strings.Contains(text, "\n\n") && strings.HasSuffix(changed, "more\n") {
							continue
						}
						if got := z.verify(t, changed); got[0].Result == Pass {
							t.Errorf("%v for\n%.2000s", got, changed)
						}
					}
				})
			}
		}
	}
}
