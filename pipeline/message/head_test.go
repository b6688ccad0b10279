package message

import (
	"fmt"
	"strings"
	"testing"
)

func TestValue(t *testing.T) {
	for _, c := range []struct{ field, name, value string }{
		{"A: b\n", "A", "b"},
		{"A:b\n", "A", "b"},
		{"A:\n", "A", ""},
		{"A: \t \n", "A", ""},
		{"A:", "A", ""},
		{"A: b", "A", "b"},
		{"A \t: b : c\n", "A", "b : c"},
		{"A::b\n", "A", ":b"},
		{"A: b\n c\n\td\n", "A", "b c\td"},
		{"A:\n b\n", "A", "b"},
		{"A: b\n \n", "A", "b"},
		{"A: b\n c", "A", "b c"},
		{"A: b\r\n", "A", "b"},
		{"A: b\r\n c\r\n", "A", "b c"},
		{"A: b\rc\r\n", "A", "b\rc"},
		{"A: b\r\r\n", "A", "b\r"},
		{"A: b\r", "A", "b\r"},
		{" folded: first\n", "", "folded: first"},
		{"From a@b 12:00\n", "", "From a@b 12:00"},
		{"S\xfc: \xff\n", "S\xfc", "\xff"},
	} {
		h, rest := ParseHead(c.field)
		if h.Len() != 1 || rest != "" {
			t.Errorf("%q: %d fields, %q left", c.field, h.Len(), rest)
			continue
		}
		f := h.Field(0)
		if f.Name() != c.name || f.Value() != c.value || f.Text() != c.field {
			t.Errorf("%q is %q with value %q", c.field, f.Name(), f.Value())
		}
	}
	long := "A: " + strings.Repeat("b\n ", DefaultMaxHead/3)
	if h, _ := ParseHead(long); len(h.Get("A")) != DefaultMaxHead/3*2-1 {
		t.Errorf("%d bytes of value", len(h.Get("A")))
	}
}

func TestIsFoldsASCIIAlone(t *testing.T) {
	h, _ := ParseHead("Subject: 1\nsUBJECT : 2\n\u017fubject: 3\nSubjec: 4\nSubjectt: 5\n[Y: 6\n{Y: 7\n")
	if got := fmt.Sprint(h.Values("SUBject")); got != "[1 2]" {
		t.Error(got)
	}
	if h.Get("[y") != "6" || h.Get("{y") != "7" || h.Get("") != "" || h.Get("absent") != "" {
		t.Error("Get")
	}
	if h, _ := ParseHead(" first\nA: b\n"); h.Field(0).Is("") {
		t.Error("a field without a name has none")
	}
}

func TestHops(t *testing.T) {
	h, _ := ParseHead("Received: a\nDELIVERED-TO: b\nX-Received: c\nReceived : d\n\n")
	if h.Hops() != 3 {
		t.Error(h.Hops())
	}
}

func TestEdit(t *testing.T) {
	const three = "A: 1\nB: 2\nA: 3\n c\na : 5\n\nbody\n"
	for _, c := range []struct {
		name, in string
		edits    []FieldEdit
		want     string
	}{
		{"nothing", three, nil, three},
		{"add", three, []FieldEdit{{Op: Add, Name: "X", Value: "y"}}, "X: y\n" + three},
		{"add two", "A: 1\n\n", []FieldEdit{{Op: Add, Name: "X", Value: "1"}, {Op: Add, Name: "X", Value: "2"}}, "X: 2\nX: 1\nA: 1\n\n"},
		{"add folded", "A: 1\n\n", []FieldEdit{{Op: Add, Name: "X", Value: "y\n z"}}, "X: y\n z\nA: 1\n\n"},
		{"add nothing but a name", "A: 1\n\n", []FieldEdit{{Op: Add, Name: "X"}}, "X: \nA: 1\n\n"},
		{"add below the first", three, []FieldEdit{{Op: Add, Name: "X", Value: "y", Nth: 1}}, "A: 1\nX: y\nB: 2\nA: 3\n c\na : 5\n\nbody\n"},
		{"add below all", three, []FieldEdit{{Op: Add, Name: "X", Value: "y", Nth: 9}}, "A: 1\nB: 2\nA: 3\n c\na : 5\nX: y\n\nbody\n"},
		{"add below one cut short", "A: 1", []FieldEdit{{Op: Add, Name: "X", Value: "y", Nth: 1}}, "A: 1\nX: y\n"},
		{"append", three, []FieldEdit{{Op: Append, Name: "X", Value: "y"}}, "A: 1\nB: 2\nA: 3\n c\na : 5\nX: y\n\nbody\n"},
		{"remove all", three, []FieldEdit{{Op: Remove, Name: "a"}}, "B: 2\n\nbody\n"},
		{"remove the first", three, []FieldEdit{{Op: Remove, Name: "A", Nth: 1}}, "B: 2\nA: 3\n c\na : 5\n\nbody\n"},
		{"remove the second", three, []FieldEdit{{Op: Remove, Name: "A", Nth: 2}}, "A: 1\nB: 2\na : 5\n\nbody\n"},
		{"remove the last", three, []FieldEdit{{Op: Remove, Name: "A", Nth: -1}}, "A: 1\nB: 2\nA: 3\n c\n\nbody\n"},
		{"remove the last but two", three, []FieldEdit{{Op: Remove, Name: "A", Nth: -3}}, "B: 2\nA: 3\n c\na : 5\n\nbody\n"},
		{"remove the fourth of three", three, []FieldEdit{{Op: Remove, Name: "A", Nth: 4}}, three},
		{"remove the last but three of three", three, []FieldEdit{{Op: Remove, Name: "A", Nth: -4}}, three},
		{"remove what is not there", three, []FieldEdit{{Op: Remove, Name: "Z"}}, three},
		{"replace all", three, []FieldEdit{{Op: Replace, Name: "A", Value: "x"}}, "A: x\nB: 2\n\nbody\n"},
		{"replace the second", three, []FieldEdit{{Op: Replace, Name: "A", Value: "x", Nth: 2}}, "A: 1\nB: 2\nA: x\na : 5\n\nbody\n"},
		{"replace the last", three, []FieldEdit{{Op: Replace, Name: "A", Value: "x", Nth: -1}}, "A: 1\nB: 2\nA: 3\n c\nA: x\n\nbody\n"},
		{"replace what is not there", three, []FieldEdit{{Op: Replace, Name: "Z", Value: "x"}}, "Z: x\n" + three},
		{"replace the fourth of three", three, []FieldEdit{{Op: Replace, Name: "A", Value: "x", Nth: 4}}, "A: x\n" + three},
		{"add and remove it", three, []FieldEdit{{Op: Add, Name: "Z", Value: "x"}, {Op: Remove, Name: "z"}}, three},

		{"add, CR LF", "A: 1\r\n\r\nbody\r\n", []FieldEdit{{Op: Add, Name: "X", Value: "y"}}, "X: y\nA: 1\r\n\r\nbody\r\n"},
		{"add, empty", "", []FieldEdit{{Op: Add, Name: "X", Value: "y"}}, "X: y\n"},
		{"add, no header", "hello\n", []FieldEdit{{Op: Add, Name: "X", Value: "y"}}, "X: y\n\nhello\n"},
		{"add, separator alone", "\nhello\n", []FieldEdit{{Op: Add, Name: "X", Value: "y"}}, "X: y\n\nhello\n"},
		{"add, header only", "A: 1\n", []FieldEdit{{Op: Add, Name: "X", Value: "y"}}, "X: y\nA: 1\n"},
		{"append, header only", "A: 1\n", []FieldEdit{{Op: Append, Name: "X", Value: "y"}}, "A: 1\nX: y\n"},
		{"add, no separator", "A: 1\nhello\n", []FieldEdit{{Op: Add, Name: "X", Value: "y"}}, "X: y\nA: 1\n\nhello\n"},
		{"append, no separator", "A: 1\nhello\n", []FieldEdit{{Op: Append, Name: "X", Value: "y"}}, "A: 1\nX: y\n\nhello\n"},
		{"remove, no separator", "A: 1\nB: 2\nhello\n", []FieldEdit{{Op: Remove, Name: "A"}}, "B: 2\n\nhello\n"},
		{"remove all, no separator", "A: 1\nFrom x\n", []FieldEdit{{Op: Remove, Name: "A"}}, "\nFrom x\n"},
		{"remove what is not there, no separator", "A: 1\nhello\n", []FieldEdit{{Op: Remove, Name: "Z"}}, "A: 1\nhello\n"},
		{"add, cut short", "A: 1", []FieldEdit{{Op: Add, Name: "X", Value: "y"}}, "X: y\nA: 1"},
		{"append, cut short", "A: 1", []FieldEdit{{Op: Append, Name: "X", Value: "y"}}, "A: 1\nX: y\n"},
		{"append, cut short after CR", "A: 1\r", []FieldEdit{{Op: Append, Name: "X", Value: "y"}}, "A: 1\r\nX: y\n"},
		{"replace, cut short", "A: 1\nB: 2", []FieldEdit{{Op: Replace, Name: "B", Value: "y"}}, "A: 1\nB: y\n"},
		{"remove before, cut short", "A: 1\nB: 2", []FieldEdit{{Op: Remove, Name: "A"}}, "B: 2"},

		{"add, folded first line", " x\nA: 1\n\n", []FieldEdit{{Op: Add, Name: "X", Value: "y"}}, " x\nX: y\nA: 1\n\n"},
		{"add, folded first line alone", " x", []FieldEdit{{Op: Add, Name: "X", Value: "y"}}, " x\nX: y\n"},
		{"add, mbox line", "From a\nA: 1\n\n", []FieldEdit{{Op: Add, Name: "X", Value: "y"}}, "From a\nX: y\nA: 1\n\n"},
		{"replace From, mbox line", "From a\nFrom : b\n\n", []FieldEdit{{Op: Replace, Name: "From", Value: "y"}}, "From a\nFrom: y\n\n"},
		{"replace From with a blank on top", "From : b\nA: 1\n\n", []FieldEdit{{Op: Replace, Name: "From", Value: "y"}}, "From: y\nA: 1\n\n"},
		{"remove all below a folded first line", " x\nA: 1\n\n", []FieldEdit{{Op: Remove, Name: "A"}}, " x\n\n"},
		{"replace __proto__", "__proto__: x\n\n", []FieldEdit{{Op: Replace, Name: "__PROTO__", Value: "y"}}, "__PROTO__: y\n\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := FromString(c.in)
			h, err := m.Head().Edit(c.edits...)
			if err != nil {
				t.Fatal(err)
			}
			edited := m.WithHead(h)
			if got := string(edited.Bytes()); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			if string(m.Bytes()) != c.in {
				t.Errorf("the original is %q now", m.Bytes())
			}
			checkViews(t, edited)
			checkStored(t, edited)
		})
	}
}

// checkStored stores a message as head text and body, and joins it again.
func checkStored(t tester, m Message) {
	t.Helper()
	h, rest := ParseHead(m.HeadText())
	again := New(h, m.Body())
	if rest != "" || string(again.Bytes()) != string(m.Bytes()) || h.Len() != m.Head().Len() {
		t.Fatalf("stored %.200q, got back %.200q and %.200q", m.Bytes(), again.Bytes(), rest)
	}
}

func TestEditIsAllOrNone(t *testing.T) {
	good := FieldEdit{Op: Replace, Name: "A", Value: "new"}
	for _, bad := range []FieldEdit{
		{Op: EditOp(9), Name: "X"},
		{Op: Add, Name: ""},
		{Op: Add, Name: strings.Repeat("n", maxNameBytes+1)},
		{Op: Add, Name: "X:", Value: "y"},
		{Op: Add, Name: "X Y", Value: "y"},
		{Op: Add, Name: "X\t", Value: "y"},
		{Op: Add, Name: "X\n", Value: "y"},
		{Op: Add, Name: "X: y\nBcc", Value: "z"},
		{Op: Add, Name: "X\r", Value: "y"},
		{Op: Add, Name: "X\x00", Value: "y"},
		{Op: Add, Name: "X\x7f", Value: "y"},
		{Op: Add, Name: "S\xfc", Value: "y"},
		{Op: Remove, Name: "X\nY"},
		{Op: Remove, Name: " "},
		{Op: Add, Name: "X", Value: "y\nBcc: z"},
		{Op: Add, Name: "X", Value: "y\n"},
		{Op: Add, Name: "X", Value: "\n"},
		{Op: Add, Name: "X", Value: "\nBcc: z"},
		{Op: Add, Name: "X", Value: "y\n\nbody"},
		{Op: Add, Name: "X", Value: "y\n \nBcc: z"},
		{Op: Add, Name: "X", Value: "y\n \t"},
		{Op: Append, Name: "X", Value: "y\r\n z"},
		{Op: Replace, Name: "X", Value: "y\rBcc: z"},
		{Op: Replace, Name: "X", Value: "y\x00"},
		{Op: Replace, Name: "X", Value: "y\x1b[0m"},
		{Op: Replace, Name: "X", Value: "y\x7f"},
		{Op: Add, Name: "X", Value: strings.Repeat("y", maxLineBytes-2)},
		{Op: Add, Name: "X", Value: "y\n " + strings.Repeat("y", maxLineBytes)},
		{Op: Add, Name: "X", Value: strings.Repeat("y\n ", maxValueBytes/3+1)},
	} {
		for _, in := range []string{"A: 1\nA: 2\n\nbody", "A: 1", "", " x\nA: 1"} {
			m := FromString(in)
			h, err := m.Head().Edit(good, bad, good)
			if err == nil || string(m.WithHead(h).Bytes()) != in || string(m.Bytes()) != in {
				t.Errorf("%.100q of %q: %q %v", bad, in, h, err)
			}
			if err == nil || bad.Check() == nil || strings.ContainsAny(err.Error(), "\n\r\x00\x1b") {
				t.Errorf("%.100q: %v", bad, err)
			}
		}
	}
	for _, fits := range []FieldEdit{
		{Op: Add, Name: strings.Repeat("n", maxNameBytes), Value: ""},
		{Op: Add, Name: "X", Value: strings.Repeat("y", maxLineBytes-3)},
		{Op: Add, Name: "X", Value: "\n " + strings.Repeat("y", maxLineBytes-1)},
		{Op: Add, Name: "X", Value: "\ty\n\tz \t"},
		{Op: Add, Name: "X", Value: "\xff\u20ac"},
		{Op: Add, Name: "!#~", Value: ": y"},
		{Op: Remove, Name: "X", Value: "not\nlooked\nat"},
	} {
		if err := fits.Check(); err != nil {
			t.Errorf("%.100q: %v", fits, err)
		}
	}
}

// Heads that were edited from the same one must not see each other.
func TestEditsShareNothing(t *testing.T) {
	base, err := FromString("A: 1\nB: 2\nC: 3").Head().Edit(FieldEdit{Op: Add, Name: "X", Value: "y"})
	if err != nil {
		t.Fatal(err)
	}
	before := base.String()
	edits := []FieldEdit{
		{Op: Add, Name: "N", Value: "1"},
		{Op: Append, Name: "N", Value: "2"},
		{Op: Remove, Name: "B"},
		{Op: Replace, Name: "A", Value: "4"},
		{Op: Replace, Name: "Z", Value: "5"},
	}
	var all []Head
	var texts []string
	for _, a := range edits {
		for _, b := range edits {
			h, err := base.Edit(a, b)
			if err != nil {
				t.Fatal(err)
			}
			again, err := h.Edit(a)
			if err != nil {
				t.Fatal(err)
			}
			all, texts = append(all, h, again), append(texts, h.String(), again.String())
		}
	}
	for i, h := range all {
		if h.String() != texts[i] {
			t.Errorf("%q became %q", texts[i], h.String())
		}
	}
	if base.String() != before {
		t.Errorf("%q became %q", before, base.String())
	}
}

func TestEditString(t *testing.T) {
	for _, c := range []struct {
		e    FieldEdit
		want string
	}{
		{FieldEdit{Op: Remove, Name: "X", Value: "y"}, "remove X"},
		{FieldEdit{Op: Add, Name: "X", Value: "y\n z\x1b"}, "add X: y z?"},
		{FieldEdit{Op: Replace, Name: "X\nlevel=error", Value: ""}, "replace X level=error: "},
		{FieldEdit{Op: EditOp(9), Name: "X"}, "invalid X: "},
	} {
		if got := c.e.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
