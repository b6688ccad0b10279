package message

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
)

// leavesInPython prints, for each of the messages on standard input, the types and
// decoded contents of its parts.
const leavesInPython = `
import base64, email, json, sys
for text in json.load(sys.stdin):
    m, parts = email.message_from_bytes(base64.b64decode(text)), []
    for p in m.walk():
        c = b'' if p.is_multipart() else p.get_payload(decode=True) or b''
        parts.append([p.get_content_type(), c.replace(b'\r\n', b'\n').hex()])
    print(json.dumps(parts))
`

// TestPythonReadsTheSame: a reader that others wrote finds the same parts with the
// same contents before and after.
func TestPythonReadsTheSame(t *testing.T) {
	var texts [][]byte
	for _, c := range conversions {
		if strings.Contains(c.in, "\r") {
			continue
		}
		m := FromString(c.in)
		out, err := m.ToSevenBit(nil)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, m.Bytes(), out.Bytes())
		out.Body().Release()
	}
	in, err := json.Marshal(texts)
	if err != nil {
		t.Fatal(err)
	}
	python := exec.Command("/usr/bin/python3", "-c", leavesInPython)
	python.Stdin = strings.NewReader(string(in))
	said, err := python.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: install Debian's package python3 (make deps does)\n%s", err, said)
	}
	lines := strings.Split(strings.TrimSpace(string(said)), "\n")
	if len(lines) != len(texts) {
		t.Fatalf("%d answers for %d messages: %s", len(lines), len(texts), said)
	}
	for i := 0; i < len(lines); i += 2 {
		if lines[i] != lines[i+1] {
			t.Errorf("%q has %s\n%q has %s", texts[i], lines[i], texts[i+1], lines[i+1])
		}
	}
}
