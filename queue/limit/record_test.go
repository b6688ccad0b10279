package limit

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func exampleRecord() Record {
	return Record{
		Time: start,
		Learned: []Learned{
			{
				Site: "mx.example", Source: "us", Last: nanos(start), Limit: 3, Ceiling: 3, ProbeAt: nanos(start.Add(time.Minute)), Wait: firstProbe,
				Pace:  &LearnedPace{Rate: 2.5, Target: 3, Bad: 4, Buckets: []uint32{1, 2}, At: nanos(start) / int64(bucketTime), Since: nanos(start)/int64(bucketTime) - 1},
				Moves: []Move{{start, "connections", "4", "3", `421 "too many" <ü>`}},
			},
			{Site: "other.example", Last: nanos(start), Limit: 4, Until: nanos(start.Add(time.Hour)), Why: "spam", Said: &Said{start, Blocked, "421 spam"}},
		},
		Blocks: []BlockState{{"google", "us", start, start.Add(time.Hour), "421 <you> are blocked"}},
		Used:   []Used{{"us", "provider google", Date(start), 17}},
		Held: []Held{
			{Key: Key{Site, "mx.example"}, Suspended: true, Since: start, Why: "they asked, by joe"},
			{Key: Key{Provider, "google"}, Bounds: Bounds{Connections: None, Messages: Rate{Count: 5, Per: time.Minute}}, Since: start, Until: start.Add(time.Hour)},
		},
	}
}

func TestRecord(t *testing.T) {
	r := exampleRecord()
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	got, err := ReadRecord(bytes.NewReader(b.Bytes()))
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Fatalf("%v\n%+v\n%+v", err, got, r)
	}
	whole := b.String()
	lines := strings.SplitAfter(strings.TrimSuffix(whole, "\n"), "\n")
	for _, c := range []struct {
		name, text, want string
		learned, held    int
	}{
		{"empty", "", "line 1: the end is missing", 0, 0},
		{"cut", whole[:len(whole)/2], "line", 2, 0},
		{"without an end", strings.Join(lines[:7], ""), "line 8: the end is missing", 2, 2},
		{"without a line", strings.Join(append(lines[:2:2], lines[3:]...), ""), "line 7: the sum does not agree", 1, 2},
		{"changed", strings.Replace(whole, "joe", "bob", 1), "line 8: the sum does not agree", 2, 2},
		{"a line that is no JSON", strings.Replace(whole, `{"held"`, `x"held"`, 1), "line 6: invalid character", 2, 1},
		{"something else", "hello\n", "line 1: invalid character", 0, 0},
		{"of the future", strings.Replace(whole, `"version":1`, `"version":2`, 1), "a record of version 2", 0, 0},
		{"no head", strings.Join(lines[1:], ""), "line 1: this is no record", 0, 0},
		{"more behind", whole + lines[1], "behind the end", 2, 2},
		{"a level that is none", strings.Replace(whole, `"level":"provider"`, `"level":"planet"`, 1), `line 7: "planet" is no level`, 2, 1},
		{"no word at all", strings.Replace(whole, `"suspended":true,`, "", 1), "neither a suspension nor a limit", 2, 1},
		{"a limit that is none", strings.Replace(whole, `"connections":-1`, `"connections":-7`, 1), "-7 is no limit", 2, 1},
		{"no name", strings.Replace(whole, `"name":"google"`, `"name":""`, 1), "what it is about", 2, 1},
		{"no site", strings.Replace(whole, `"site":"other.example"`, `"site":""`, 1), "a site without a name", 1, 2},
		{"no provider", strings.Replace(whole, `"provider":"google"`, `"provider":"a\nb"`, 1), "a provider without a name", 2, 2},
		{"unknown", strings.Replace(whole, `{"held"`, `{"hold"`, 1), "nothing that is understood", 2, 1},
		{"a line too long", strings.Replace(whole, "joe", strings.Repeat("joe", maxLine), 1), "token too long", 2, 0},
	} {
		got, err := ReadRecord(strings.NewReader(c.text))
		if err == nil || !strings.Contains(err.Error(), c.want) || len(got.Learned) != c.learned && c.name != "cut" || len(got.Held) != c.held {
			t.Errorf("%s: %d learned, %d held, %v; want %s", c.name, len(got.Learned), len(got.Held), err, c.want)
		}
	}
}

// TestRecordIsBounded: however much is known, each line can be read again.
func TestRecordIsBounded(t *testing.T) {
	g := New(Options{})
	for i := range 3 {
		k, no := g.Open(start, Path{Site: strings.Repeat("x", 300) + fmt.Sprint(i)})
		if no != nil {
			t.Fatal(no)
		}
		for j := range keptMoves {
			k.control.sleep(start, time.Duration(j+1)*time.Minute, strings.Repeat("\x01\"\xff<", 5000))
		}
		k.Close(start)
	}
	g.Suspend(start, Key{Site, strings.Repeat("y", maxName)}, time.Time{}, strings.Repeat("\x01", maxReason))
	restarted(t, start, g)
}

// FuzzReadRecord: nothing that a file may hold makes a gate that cannot move, or
// that holds what nobody has said for ever.
func FuzzReadRecord(f *testing.F) {
	var b bytes.Buffer
	r := exampleRecord()
	if err := r.Write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(`{"limits":{"version":1,"time":"2026-11-01T12:00:00Z"}}` + "\n" + `{"learned":{"site":"x","last":-1,"limit":-5,"ceiling":9,"probing":true,"until":9e18,"pace":{"rate":1e300,"resting":true,"buckets":[1],"at":1,"since":1}}}` + "\n"))
	classes, err := ShippedClasses()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, _ := ReadRecord(bytes.NewReader(text))
		g := New(Options{Classes: classes})
		now := start
		g.Import(now, r.Time, r.Learned)
		for _, l := range r.Learned {
			if g.controls[pair{l.Site, l.Source}] == nil {
				continue
			}
			p := Path{Site: l.Site, Source: l.Source}
			if no := g.Suspended(now, p); no != nil && no.Until.Sub(now) > maxSuspended {
				t.Fatalf("suspended until %v", no.Until)
			}
			use(t, g, now.Add(maxSuspended), p)
		}
		g.ImportBlocks(now, r.Time, r.Blocks)
		for _, b := range g.Blocks(now) {
			if b.Until.Sub(now) > maxSuspended {
				t.Fatalf("blocked until %v", b.Until)
			}
		}
		g.ImportUsed(now, r.Used)
		g.Restore(now, r.Held)
		for _, h := range g.Held(now) {
			if !g.Resume(now, h.Key) {
				t.Fatalf("%+v cannot be taken back", h)
			}
		}
		again := Record{Time: now, Learned: g.Export(now, MaxLearned), Blocks: g.Blocks(now), Used: g.ExportUsed(now), Held: g.Held(now)}
		var b bytes.Buffer
		if err := again.Write(&b); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadRecord(&b); err != nil {
			t.Fatalf("what was read cannot be written and read again: %v", err)
		}
	})
}

// use has a site take all that is sent: it is sent something within the hour.
func use(t *testing.T, g *Gate, now time.Time, p Path) {
	t.Helper()
	for end := now.Add(time.Hour); now.Before(end); {
		k, no := g.Open(now, p)
		if no == nil {
			k.Greeted(now)
			no = k.Message(now, 1)
			if no == nil {
				k.Taken(now)
			}
			k.Close(now)
			if no == nil {
				return
			}
		}
		if no.Until.IsZero() {
			t.Fatalf("%+v is kept for ever: %v", p, no)
		}
		now = no.Until
	}
	t.Fatalf("nothing was sent to %+v within an hour", p)
}
