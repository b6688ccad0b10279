package execban

import (
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
)

// A message is attached under its subject, which may end with a domain's name.
// What only says that it is a message is judged by its name as ever.
func TestMessageNamedAfterDomain(t *testing.T) {
	f := newFilter(t, "")
	const inner = "Received: from a by b; Mon, 2 Nov 2026 10:00:00 +0000\nFrom: joe@example.com\nSubject: Re: see example.com\n\nHello.\n"
	part := func(typed, name, content string) string {
		return head + plainMixed("Content-Type: "+typed+"; name=\""+name+"\"\nContent-Disposition: attachment; filename=\""+name+"\"\n\n"+content)
	}
	for what, text := range map[string]string{
		"a message":            part("message/rfc822", "Re: see example.com", inner),
		"one in UTF-8":         part("message/global", "Gr\xc3\xbc\xc3\x9fe von EXAMPLE.COM", inner),
		"one with a long head": part("message/rfc822", "example.com", "From: a@example.com\nX: "+strings.Repeat("x", 60<<10)+"\n\nHello.\n"),
	} {
		if v := judge(t, f, text); v.Action != pipeline.Continue {
			t.Errorf("%s: %v, %s", what, v.Action, v.Reason)
		}
	}
	for what, text := range map[string]string{
		"a program":                part("message/rfc822", "Re: see example.com", string(tinyPE())),
		"words":                    part("message/rfc822", "example.com", "just words\n"),
		"fields of no message":     part("message/rfc822", "example.com", "X: y\n\nHello.\n"),
		"controls in the head":     part("message/rfc822", "example.com", "From: a\x01b\n\nHello.\n"),
		"a head without an end":    part("message/rfc822", "example.com", "From: a@example.com\nHello"),
		"nothing":                  part("message/rfc822", "example.com", ""),
		"another type":             part("application/octet-stream", "example.com", inner),
		"two types":                part("application/octet-stream\nContent-Type: message/rfc822", "example.com", inner),
		"another name":             part("message/rfc822", "Re: see setup.exe", inner),
		"a program in the message": part("message/rfc822", "Re: see example.com", inner[:len(inner)-len("\nHello.\n")]+"Content-Disposition: attachment; filename=a.exe\n\nx\n"),
	} {
		refused(t, f, what, text)
	}
}
