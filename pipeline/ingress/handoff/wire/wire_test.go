package wire

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// frame is what every frame can do.
type frame interface{ Append([]byte) []byte }

// parsers is the table of kinds, for tests that treat all alike.
var parsers = map[Kind]func([]byte) (frame, error){
	KindHello:    func(b []byte) (frame, error) { return ParseHello(b) },
	KindData:     func(b []byte) (frame, error) { return ParseData(b) },
	KindResult:   func(b []byte) (frame, error) { return ParseResult(b) },
	KindFellBack: func(b []byte) (frame, error) { return ParseFellBack(b) },
	KindAccepted: func(b []byte) (frame, error) { return ParseAccepted(b) },
	KindBeat:     func(b []byte) (frame, error) { return ParseBeat(b) },
	KindEnvelope: func(b []byte) (frame, error) { return ParseEnvelope(b) },
	KindExit:     func(b []byte) (frame, error) { return ParseExit(b) },
	KindNext:     func(b []byte) (frame, error) { return ParseNext(b) },
	KindPair:     func(b []byte) (frame, error) { return ParsePair(b) },
	KindText:     func(b []byte) (frame, error) { return ParseText(b) },
}

// samples has good frames of every kind and their bytes as the package doc has them.
var samples = []struct {
	name  string
	frame frame
	bytes string
}{
	{
		"hello",
		Hello{Program: ProgramQueue, Flags: FlagPrivileged, PPID: 0x01020304, Argc: 1, ArgsLen: 2, EnvLen: 4, Chunk: []byte("a\x00B=c\x00")},
		"H\x01q\x02\x04\x03\x02\x01\x01\x00\x02\x00\x00\x00\x04\x00\x00\x00a\x00B=c\x00",
	},
	{"hello without anything", Hello{Program: ProgramRemote, Chunk: []byte{}}, "H\x01r\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	{"data", Data{Chunk: []byte("x\x00y")}, "Dx\x00y"},
	{"result", Result{Index: 127, Exit: 81, Signal: 9, PID: 0xdeadbeef}, "R\x7f\x00\x51\x09\xef\xbe\xad\xde"},
	{"fell back", FellBack{PID: 258}, "F\x02\x01\x00\x00"},
	{"accepted", Accepted{Beat: 5000, Slow: 1 << 24}, "A\x01\x88\x13\x00\x00\x00\x00\x00\x01"},
	{"beat", Beat{}, "B"},
	{"envelope", Envelope{}, "E"},
	{"exit", Exit{Code: 31, Dialect: DialectIndimail, Text: "Dno"}, "X\x1f\x04\x03\x00Dno"},
	{"exit without text", Exit{}, "X\x00\x00\x00\x00"},
	{"exec", Next{Mode: ModeExec, Count: 1, Path: "/q"}, "N\x00\x01\x00/q\x00"},
	{"wait", Next{Mode: ModeWait, Count: 128, Path: "/q"}, "N\x01\x80\x00/q\x00"},
	{"pair", Pair{Index: 3}, "P\x03\x00"},
	{"text", Text{Chunk: []byte("r\x00K")}, "Tr\x00K"},
}

func TestFramesAreAsTheDocSays(t *testing.T) {
	seen := map[Kind]bool{}
	for _, s := range samples {
		got := s.frame.Append([]byte("before"))
		if string(got) != "before"+s.bytes {
			t.Errorf("%s: encoded as %q, want %q", s.name, got[6:], s.bytes)
		}
		kind := KindOf([]byte(s.bytes))
		seen[kind] = true
		back, err := parsers[kind]([]byte(s.bytes))
		if err != nil || !reflect.DeepEqual(back, s.frame) {
			t.Errorf("%s: parsed as %#v, %v", s.name, back, err)
		}
	}
	if len(seen) != len(parsers) {
		t.Errorf("%d kinds have a sample, want %d", len(seen), len(parsers))
	}
}

// TestLengthIsExact cuts each sample short at every byte and makes it one longer: only frames that end in a chunk may
// still be good.
func TestLengthIsExact(t *testing.T) {
	for _, s := range samples {
		kind := KindOf([]byte(s.bytes))
		for n := range len(s.bytes) {
			if (kind == KindData || kind == KindText) && n > 1 || kind == KindHello && n >= helloHead {
				continue
			}
			if v, err := parsers[kind]([]byte(s.bytes[:n])); err == nil {
				t.Errorf("%s cut to %d bytes: got %#v", s.name, n, v)
			}
		}
		if v, err := parsers[kind]([]byte(s.bytes + "\x00")); err == nil && kind != KindData && kind != KindText {
			t.Errorf("%s and one byte more: got %#v", s.name, v)
		}
	}
}

func TestMalformed(t *testing.T) {
	long := func(n int) string { return strings.Repeat("p", n) }
	head := func(program, flags byte, argc uint16, args, env uint32) string {
		return string(Hello{Program: Program(program), Flags: Flags(flags), Argc: argc, ArgsLen: args, EnvLen: env}.Append(nil))
	}
	for _, c := range []struct {
		name, bytes string
		kind        Kind
		want        error
	}{
		{"end of file", "", KindHello, ErrKind},
		{"another kind", "E", KindBeat, ErrKind},
		{"another version", "H\x02", KindHello, ErrVersion},
		{"another version of A", "A\x00", KindAccepted, ErrVersion},
		{"another program", head('s', 0, 0, 0, 0), KindHello, ErrField},
		{"unknown flag", head('q', 4, 0, 0, 0), KindHello, ErrField},
		{"too many bytes of arguments", head('q', 0, 0, MaxArgs+1, 0), KindHello, ErrField},
		{"too many bytes of a qmail-remote's arguments", head('r', 0, 0, MaxRemoteArgs+1, 0), KindHello, ErrField},
		{"too many bytes of environment", head('q', 0, 0, 0, MaxEnv+1), KindHello, ErrField},
		{"more arguments than bytes", head('q', 0, 2, 1, 0), KindHello, ErrField},
		{"more chunk than announced", head('q', 0, 1, 1, 0) + "ab", KindHello, ErrList},
		{"chunk too long", head('q', 0, 0, MaxArgs, 0) + long(MaxChunk+1), KindHello, ErrLength},
		{"empty chunk", "D", KindData, ErrLength},
		{"empty text", "T", KindText, ErrLength},
		{"text too long", "T" + long(MaxChunk+1), KindText, ErrLength},
		{"data too long", "D" + long(MaxChunk+1), KindData, ErrLength},
		{"result of no pair", "R\x80\x00\x00\x00\x00\x00\x00\x00", KindResult, ErrField},
		{"no beat", "A\x01\x00\x00\x00\x00\x01\x00\x00\x00", KindAccepted, ErrField},
		{"no slow", "A\x01\x01\x00\x00\x00\x00\x00\x00\x00", KindAccepted, ErrField},
		{"unknown dialect", "X\x00\x06\x00\x00", KindExit, ErrField},
		{"text with another letter", "X\x1f\x00\x03\x00Kno", KindExit, ErrField},
		{"text shorter than said", "X\x1f\x00\x04\x00Dno", KindExit, ErrLength},
		{"text too long", "X\x1f\x00\x00\x04D" + long(MaxText), KindExit, ErrLength},
		{"relative path", "N\x01\x01\x00bin/q\x00", KindNext, ErrField},
		{"empty path", "N\x01\x01\x00\x00\x00", KindNext, ErrField},
		{"path without its NUL", "N\x01\x01\x00/q", KindNext, ErrField},
		{"path with two NULs", "N\x01\x01\x00/q\x00q\x00", KindNext, ErrField},
		{"path too long", "N\x01\x01\x00/" + long(MaxPath-1) + "\x00", KindNext, ErrLength},
		{"no pairs", "N\x01\x00\x00/q\x00", KindNext, ErrField},
		{"too many pairs", "N\x01\x81\x00/q\x00", KindNext, ErrField},
		{"exec of two", "N\x00\x02\x00/q\x00", KindNext, ErrField},
		{"unknown mode", "N\x02\x01\x00/q\x00", KindNext, ErrField},
		{"index of no pair", "P\x80\x00", KindPair, ErrField},
	} {
		if v, err := parsers[c.kind]([]byte(c.bytes)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %#v, %v, want %v", c.name, v, err, c.want)
		}
	}
	if p := (Next{Mode: ModeWait, Count: 1, Path: "/" + long(MaxPath-2)}).Append(nil); len(p) > MaxPacket {
		t.Errorf("the longest N has %d bytes, more than MaxPacket", len(p))
	} else if _, err := ParseNext(p); err != nil {
		t.Errorf("the longest path: %v", err)
	}
}

func TestIgnorableKinds(t *testing.T) {
	for k := range 256 {
		if got, want := Kind(k).Ignorable(), strings.Contains("abcdefghijklmnopqrstuvwxyz", string([]byte{byte(k)})); got != want {
			t.Errorf("kind %q: ignorable %v, want %v", byte(k), got, want)
		}
	}
}

// TestLists sends lists through H and Ds cut at random places.
func TestLists(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct{ args, env []string }{
		{nil, nil},
		{[]string{"qmail-queue"}, []string{"A=b", "noequals", "", "A=c"}},
		{[]string{"", "", ""}, nil},
		{slices.Repeat([]string{"recipient@example.org"}, 40000), slices.Repeat([]string{"X=y"}, 16384)},
	} {
		stream := AppendEntries(nil, c.args...)
		h := Hello{Program: ProgramQueue, Argc: uint16(len(c.args)), ArgsLen: uint32(len(stream))}
		stream, cut := AppendEnvironment(stream, c.env)
		h.EnvLen = uint32(len(stream)) - h.ArgsLen
		if cut || h.ArgsLen > MaxArgs {
			t.Fatalf("the sample does not fit")
		}
		for range 20 {
			var l Lists
			rest := stream
			next := func() []byte {
				n := min(len(rest), 1+rng.IntN(MaxChunk))
				chunk := rest[:n]
				rest = rest[n:]
				return chunk
			}
			h.Chunk = next()
			done, err := l.Start(h)
			for !done && err == nil {
				if _, _, err := l.Split(); !errors.Is(err, ErrList) {
					t.Fatalf("split before the end: %v", err)
				}
				done, err = l.Add(next())
			}
			args, env, err2 := l.Split()
			if err != nil || err2 != nil || len(rest) != 0 || !slices.Equal(args, c.args) || !slices.Equal(env, c.env) {
				t.Fatalf("got %d arguments, %d entries, %d bytes left, %v, %v", len(args), len(env), len(rest), err, err2)
			}
			if _, err := l.Add([]byte{0}); !errors.Is(err, ErrList) {
				t.Fatalf("one byte more: %v", err)
			}
		}
	}
}

func TestListsThatDisagree(t *testing.T) {
	for name, h := range map[string]Hello{
		"argument without its NUL": {Argc: 1, ArgsLen: 1, Chunk: []byte("a")},
		"too few arguments":        {Argc: 2, ArgsLen: 2, Chunk: []byte("a\x00")},
		"too many arguments":       {Argc: 1, ArgsLen: 4, Chunk: []byte("a\x00b\x00")},
		"entry without its NUL":    {Argc: 1, ArgsLen: 2, EnvLen: 1, Chunk: []byte("a\x00b")},
		"entry over both lists":    {Argc: 1, ArgsLen: 1, EnvLen: 2, Chunk: []byte("ab\x00")},
	} {
		var l Lists
		if done, err := l.Start(h); !done || err != nil {
			t.Errorf("%s: %v, %v", name, done, err)
		}
		if _, _, err := l.Split(); !errors.Is(err, ErrList) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEnvironmentIsCutAtWholeEntries(t *testing.T) {
	big := "BIG=" + strings.Repeat("x", MaxEnv)
	fits := "FITS=" + strings.Repeat("y", MaxEnv-len("A=b")-1-len("FITS=")-1)
	list, cut := AppendEnvironment([]byte("before\x00"), []string{"A=b", big, fits, "C=d"})
	if want := "before\x00A=b\x00" + fits + "\x00"; !cut || string(list) != want || len(list)-7 != MaxEnv {
		t.Errorf("cut %v, %d bytes", cut, len(list))
	}
	if list, cut := AppendEnvironment(nil, []string{"A=b"}); cut || string(list) != "A=b\x00" {
		t.Errorf("cut %v, %q", cut, list)
	}
}

func TestDialects(t *testing.T) {
	for d, name := range []string{"auto", "netqmail", "notqmail", "sagredo", "indimail", "none"} {
		back, ok := ParseDialect(name)
		if Dialect(d).String() != name || !ok || back != Dialect(d) {
			t.Errorf("dialect %d is %q, and %q is %d, %v", d, Dialect(d), name, back, ok)
		}
		for _, c := range Dialect(d).Channels() {
			if c.Exit != 82 && c.Exit != 88 || c.Max > MaxText || c.FD < 2 && !c.FromEnv {
				t.Errorf("%s: channel %+v", name, c)
			}
		}
	}
	if _, ok := ParseDialect("qmail"); ok || Dialect(6).Valid() || Dialect(6).String() != "" || Dialect(6).Channels() != nil {
		t.Error("a dialect that there is not")
	}
}

func TestClean(t *testing.T) {
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"Dno\r\n250 ok", 255, "Dno??250 ok"},
		{"Z\x00\x7f\x1f ~\xc3\xa9", 255, "Z??? ~??"},
		{"Dabc", 3, "Dab"},
		{"D", 0, ""},
		{"D", -1, ""},
	} {
		if got := Clean(c.in, c.limit); !bytes.Equal(got, []byte(c.want)) {
			t.Errorf("%q, at most %d: %q, want %q", c.in, c.limit, got, c.want)
		}
	}
}

// FuzzFrame: no parser panics, each takes only its own kind, and what it takes is encoded as the same bytes.
func FuzzFrame(f *testing.F) {
	for _, s := range samples {
		f.Add([]byte(s.bytes))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for kind, parse := range parsers {
			v, err := parse(b)
			if err != nil {
				var e Error
				if !errors.As(err, &e) {
					t.Fatalf("%q: error of another type: %v", b, err)
				}
				continue
			}
			if kind != KindOf(b) || len(b) > MaxPacket {
				t.Fatalf("%q was taken as %c", b, kind)
			}
			if again := v.Append(nil); !bytes.Equal(again, b) {
				t.Fatalf("%q was encoded as %q", b, again)
			}
			if h, ok := v.(Hello); ok {
				var l Lists
				if done, err := l.Start(h); err != nil || done != (len(h.Chunk) == int(h.ArgsLen+h.EnvLen)) {
					t.Fatalf("%q: lists %v, %v", b, done, err)
				}
				if args, env, err := l.Split(); err == nil {
					if all := AppendEntries(AppendEntries(nil, args...), env...); !bytes.Equal(all, h.Chunk) || len(args) != int(h.Argc) {
						t.Fatalf("%q: lists %q", b, all)
					}
				}
			}
		}
	})
}
