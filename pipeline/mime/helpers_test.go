package mime

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

// eicar is the text that scanners agree to take for a virus, put together here
// so that none takes this file for one.
var eicar = `X5O!P%@AP[4\PZX54(P^)7CC)7}$` + "EICAR-STANDARD-" + "ANTIVIRUS-TEST-FILE!$H+H*"

// exe is the beginning of a program for Windows.
var exe = "MZ\x90\x00\x03\x00\x00\x00\x04\x00\x00\x00\xff\xff\x00\x00\xb8" + strings.Repeat("\x00", 39) + "\x80\x00\x00\x00" + strings.Repeat("This program cannot be run in DOS mode. ", 4) + "\xff\xfe"

func b64(s string) string {
	enc := base64.StdEncoding.EncodeToString([]byte(s))
	var b strings.Builder
	for len(enc) > 76 {
		b.WriteString(enc[:76] + "\n")
		enc = enc[76:]
	}
	b.WriteString(enc + "\n")
	return b.String()
}

func read(t testing.TB, text string) *Message {
	t.Helper()
	return readWith(t, text, Options{})
}

func readWith(t testing.TB, text string, o Options) *Message {
	t.Helper()
	m, err := Read(context.Background(), strings.NewReader(text), int64(len(text)), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func decoded(t testing.TB, c Content) string {
	t.Helper()
	b, err := io.ReadAll(c.Open())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// holder is the first part with a content that f takes, and the content.
func holder(t testing.TB, m *Message, f func(string) bool) (*Part, Content, bool) {
	t.Helper()
	for p := range m.Walk() {
		for _, c := range p.Contents {
			if f(decoded(t, c)) {
				return p, c, true
			}
		}
	}
	return nil, Content{}, false
}

func contains(want string) func(string) bool {
	return func(s string) bool { return strings.Contains(s, want) }
}

func begins(want string) func(string) bool {
	return func(s string) bool { return strings.HasPrefix(s, want) }
}

// extensions are the last extensions of all names of all parts.
func extensions(m *Message) []string {
	var all []string
	for p := range m.Walk() {
		for _, n := range p.Names {
			all = append(all, n.extensionSet()...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func findings(m *Message) []string {
	var all []string
	for _, f := range m.Findings {
		all = append(all, f.Reason.String())
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// dump is the tree as lines of text.
func dump(t testing.TB, m *Message) string {
	t.Helper()
	var b strings.Builder
	for p := range m.Walk() {
		fmt.Fprintf(&b, "%s %s [%s]", p.Path, p.Role, p.Reading)
		for _, x := range p.Types {
			fmt.Fprintf(&b, " %s", x.Value)
			if x.Reading != p.Reading {
				fmt.Fprintf(&b, "[%s]", x.Reading)
			}
		}
		b.WriteByte('\n')
		for _, n := range p.Names {
			fmt.Fprintf(&b, "  %s %q", n.Source, n.Text)
			if n.Raw != n.Text {
				fmt.Fprintf(&b, " from %q", n.Raw)
			}
			if n.Reading != p.Reading {
				fmt.Fprintf(&b, " [%s]", n.Reading)
			}
			b.WriteByte('\n')
		}
		for _, c := range p.Contents {
			s := decoded(t, c)
			fmt.Fprintf(&b, "  %s %d %x", c.How, len(s), sha256.Sum256([]byte(s)))
			if c.Reading != p.Reading {
				fmt.Fprintf(&b, " [%s]", c.Reading)
			}
			b.WriteByte('\n')
		}
	}
	for _, f := range m.Findings {
		fmt.Fprintf(&b, "%s: %s\n", f.Severity, f)
	}
	for _, x := range m.Exceeded {
		fmt.Fprintf(&b, "exceeded: %s\n", x)
	}
	return b.String()
}
