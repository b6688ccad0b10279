package mime

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

// How many encoded bytes of one tree are decoded byte by byte, and how many names
// are looked at, so that the many readings of one input do not hold the fuzzer up.
const (
	checkedSlowly = 20 << 10
	checkedNames  = 200
)

// checkTree holds a tree against what the package promises.
func checkTree(t *testing.T, text string, m *Message) {
	t.Helper()
	var encoded int64
	names := 0
	paths := map[string]bool{}
	for p := range m.Walk() {
		if paths[p.Path] {
			t.Fatalf("%s stands there twice", p.Path)
		}
		paths[p.Path] = true
		if len(p.Types) == 0 {
			t.Fatalf("%s has no type", p.Path)
		}
		if p.Offset < 0 || p.Size < 0 || p.Offset+p.Size > p.src.size || p.body < p.Offset || p.body > p.Offset+p.Size {
			t.Fatalf("%s stands outside its source", p.Path)
		}
		if len(m.Exceeded) == 0 && p.Strict() && len(p.Parts) == 0 && len(p.Contents) == 0 {
			t.Fatalf("%s has neither parts nor contents", p.Path)
		}
		if len(p.Contents) > 0 && p.Strict() && kindOf(p.Type()) < multipartKind && !p.Contents[0].Reading.Strict() {
			t.Fatalf("%s has no strict content", p.Path)
		}
		for _, c := range p.Contents {
			encoded += c.EncodedSize()
			checkContent(t, c, encoded < checkedSlowly)
		}
		for _, n := range p.Names {
			if names++; names < checkedNames {
				checkNormal(t, n)
			}
		}
	}
	if limit := int64(DefaultWork)*int64(len(text)) + minimumWork; encoded > limit {
		t.Fatalf("%d bytes to decode of %d", encoded, len(text))
	}
}

// checkContent decodes a content, and if slowly again byte by byte.
func checkContent(t *testing.T, c Content, slowly bool) {
	t.Helper()
	n, err := io.Copy(io.Discard, c.Open())
	if err != nil {
		t.Fatal(err)
	}
	most := 2 * c.EncodedSize()
	if c.How == BinHexData || c.How == BinHexResource {
		most = 128 * c.EncodedSize()
	}
	if n > most {
		t.Fatalf("%s makes %d bytes of %d", c.How, n, c.EncodedSize())
	}
	dec := c.decoder()
	if dec == nil || !slowly {
		return
	}
	whole, err := io.ReadAll(c.Open())
	if err != nil {
		t.Fatal(err)
	}
	slow, err := io.ReadAll(newDecodeReader(iotest.OneByteReader(c.src.section(c.start, c.end)), dec, c.EncodedSize()))
	if err != nil || !bytes.Equal(whole, slow) {
		t.Fatalf("%s gives %q at once and %q byte by byte (%v)", c.How, whole, slow, err)
	}
}

func checkNormal(t *testing.T, n Name) {
	t.Helper()
	list := n.Normal()
	if len(list) > maxForms {
		t.Fatalf("%d forms of %q", len(list), n.Text)
	}
	for _, x := range list {
		if x.Text == "" || !utf8.ValidString(x.Text) || strings.ContainsAny(x.Text, "/\x00\n\r") || strings.TrimSpace(x.Text) != x.Text {
			t.Fatalf("%q is no normal name (of %q)", x.Text, n.Text)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		m := read(t, text)
		checkTree(t, text, m)
		again := readWith(t, text, Options{Memory: 1 << 20})
		if dump(t, m) != dump(t, again) {
			t.Fatal("another tree the second time")
		}
	})
}

// FuzzLarge reads what stands at a boundary of windows.
func FuzzLarge(f *testing.F) {
	f.Fuzz(func(t *testing.T, head, body string, gap uint32) {
		text := head + strings.Repeat("x", int(gap%(200<<10))) + "\n" + body
		m, err := Read(context.Background(), strings.NewReader(text), int64(len(text)), Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close() //nolint:errcheck // it is in memory
		checkTree(t, text, m)
	})
}

func FuzzParameters(f *testing.F) {
	f.Fuzz(func(t *testing.T, value string) {
		word, params, _ := parseValue(value, DefaultFields)
		again, same, _ := parseValue(value, DefaultFields)
		if word != again || !slices.Equal(params, same) {
			t.Fatal("another value the second time")
		}
		if len(params) > 5*DefaultFields {
			t.Fatalf("%d parameters", len(params))
		}
		for _, name := range []string{"name", "filename", "boundary"} {
			for _, v := range valuesOf(params, name) {
				if len(v.value) > 8*len(value)+64 {
					t.Fatalf("%d bytes of %d", len(v.value), len(value))
				}
			}
		}
	})
}

func FuzzName(f *testing.F) {
	f.Fuzz(func(t *testing.T, text, raw string) {
		n := Name{Text: text, Raw: raw}
		checkNormal(t, n)
		if !slices.Equal(n.Normal(), n.Normal()) {
			t.Fatal("other forms the second time")
		}
	})
}

// fuzzDecoder fuzzes the ways of decoding.
func fuzzDecoder(f *testing.F, ways ...How) {
	f.Fuzz(func(t *testing.T, text string, way, quoted uint8) {
		src := &source{at: strings.NewReader(text), size: int64(len(text))}
		checkContent(t, Content{How: ways[int(way)%len(ways)], src: src, end: src.size, quoted: int(quoted) % maxQuoted}, true)
	})
}

func FuzzBase64(f *testing.F) {
	fuzzDecoder(f, Base64, Base64Restarts, Base64SkipsPads, Base64StopsAtJunk, Base64DropsLines, Base64ForURLs)
}

func FuzzQuotedPrintable(f *testing.F) {
	fuzzDecoder(f, QuotedPrintable, QuotedUpperOnly, QuotedKeepsBlanks, QuotedDropsBad)
}

func FuzzEmbedded(f *testing.F) {
	fuzzDecoder(f, UU, UUWholeLines, XX, UUBase64, YEnc, BinHexData, BinHexResource)
}
