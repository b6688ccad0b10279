package mime

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os/exec"
	"testing"
)

// TestOrdinaryAsPython holds the strict reading of ordinary messages against what
// Python's email package sees in them, and the findings: ordinary mail has none
// above a notice.
func TestOrdinaryAsPython(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "/usr/bin/python3", "testdata/ordinary.py", "200").Output()
	if err != nil {
		t.Fatalf("python3 with its email package is needed here: %v", err)
	}
	type leaf struct {
		Type, Name, Sum string
		Size            int
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 10<<20)
	messages, leaves := 0, 0
	for lines.Scan() {
		var want struct {
			Message string
			Leaves  []leaf
		}
		if err := json.Unmarshal(lines.Bytes(), &want); err != nil {
			t.Fatal(err)
		}
		raw, err := base64.StdEncoding.DecodeString(want.Message)
		if err != nil {
			t.Fatal(err)
		}
		m := read(t, string(raw))
		checkTree(t, string(raw), m)
		var got []leaf
		for p := range m.Walk() {
			if !p.Strict() || kindOf(p.Type()) >= multipartKind {
				continue
			}
			s := decoded(t, p.Contents[0])
			sum := sha256.Sum256([]byte(s))
			l := leaf{Type: p.Type(), Sum: hex.EncodeToString(sum[:]), Size: len(s)}
			if len(p.Names) > 0 && !p.Names[0].Source.Weak() {
				l.Name = p.Names[0].Text
			}
			got = append(got, l)
		}
		same := len(got) == len(want.Leaves)
		for i := 0; same && i < len(got); i++ {
			same = got[i] == want.Leaves[i]
		}
		if worst, _ := m.Worst(); !same || worst > Notice || len(m.Exceeded) > 0 {
			t.Fatalf("message %d:\n%.3000s\nwe see\n%+v\nPython sees\n%+v\n%s", messages, raw, got, want.Leaves, dump(t, m))
		}
		messages, leaves = messages+1, leaves+len(got)
	}
	if messages != 200 || leaves < 400 {
		t.Errorf("%d messages, %d leaves", messages, leaves)
	}
	t.Logf("%d messages, %d leaves", messages, leaves)
}
