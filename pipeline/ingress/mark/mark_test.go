package mark

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

const mail = "From: a@example.org\nTo: b@example.net\nSubject: hello\nMessage-ID: <1@example.org>\n\nbody\nmore\n"

var (
	when   = time.Date(2026, 3, 5, 14, 7, 9, 0, time.UTC)
	origin = pipeline.Origin{
		Transaction: "t-1", Entrance: "queue", Protocol: "qmail-queue", Standing: "auth", User: "ann@example.org", UID: -1,
		Peer: "192.0.2.1", Chain: "inbound", Pool: "news", Received: when,
	}
)

func newMarker(t testing.TB, key string, now time.Time) *Marker {
	t.Helper()
	k, err := New([]byte(strings.Repeat(key, KeySize)), Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func put(t testing.TB, k *Marker, text string) string {
	t.Helper()
	m, err := k.Put(message.FromString(text), origin)
	if err != nil {
		t.Fatal(err)
	}
	return string(m.Bytes())
}

// TestRoundTrip: with what a queue puts on top, the origin comes back and the
// message is what it was.
func TestRoundTrip(t *testing.T) {
	k := newMarker(t, "k", when)
	const top = "Received: (qmail 7 invoked by uid 7791); 5 Mar 2026 14:07:09 -0000\n"
	for _, text := range []string{
		mail, strings.ReplaceAll(mail, "\n", "\r\n"), "Subject: no body\n", "Subject: no body\n\n", "Subject: cut off", "", "\n", "\n\n",
		"no head at all\nreally\n", "A: 1\nnot a field\nB: 2\n\nbody", mail + strings.Repeat("long\n", 100_000),
	} {
		marked := put(t, k, text)
		if !strings.HasPrefix(marked, FieldName+": ") {
			t.Fatalf("%.60q", marked)
		}
		for line := range strings.Lines(marked[:strings.Index(marked, "=")+1]) {
			if len(line) > 100 {
				t.Errorf("a line of %d bytes", len(line))
			}
		}
		for _, above := range []string{"", top, "Delivered-To: joe@example.org\n" + top, "X-Spam: no\nReturn-Path: <>\nAuthentication-Results: x; none\n" + top} {
			out, got, why, err := k.Take(message.FromString(above + marked))
			if err != nil || why != nil || got == nil {
				t.Fatalf("%.40q under %.20q: %v, %v, %v", text, above, got, why, err)
			}
			want := above + text
			// A head that no blank line ends gets one from any edit.
			squeeze := func(s string) string { return strings.ReplaceAll("\n"+s+"\n", "\n\n", "\n") }
			if back := string(out.Bytes()); back != want && (strings.HasPrefix(text, "From:") || squeeze(squeeze(back)) != squeeze(squeeze(want))) {
				t.Errorf("%q came back as %q", want, back)
			}
			if got.Standing != "auth" || got.User != "ann@example.org" || got.UID != -1 || got.Transaction != "t-1" || got.Pool != "news" || !got.Received.Equal(when) || got.Peer != "192.0.2.1" {
				t.Errorf("%+v", got)
			}
		}
	}
}

// TestSecret: nothing of the origin can be read, and no two marks are alike.
func TestSecret(t *testing.T) {
	k := newMarker(t, "k", when)
	one, two := put(t, k, mail), put(t, k, mail)
	if one == two || strings.Contains(one, "ann@") {
		t.Error(one)
	}
}

// TestDoesNotCount: forged, copied, stale and changed.
func TestDoesNotCount(t *testing.T) {
	k := newMarker(t, "k", when)
	marked := put(t, k, mail)
	field := strings.TrimSuffix(marked, mail)
	for name, row := range map[string]struct {
		text string
		by   *Marker
		want error
	}{
		"another key":            {marked, newMarker(t, "x", when), errForged},
		"another message":        {field + strings.Replace(mail, "<1@", "<2@", 1), k, errForged},
		"another subject":        {field + strings.Replace(mail, "hello", "hullo", 1), k, errForged},
		"another body":           {field + strings.Replace(mail, "more", "less", 1), k, errForged},
		"a longer body":          {marked + "more\n", k, errForged},
		"a shorter body":         {marked[:len(marked)-1], k, errForged},
		"a field below":          {field + "X-A: b\n" + mail, k, errForged},
		"no base64":              {FieldName + ": ???\n" + mail, k, errForged},
		"empty":                  {FieldName + ":\n" + mail, k, errForged},
		"cut":                    {marked[:len(FieldName)+10] + "\n" + mail, k, errForged},
		"endless":                {FieldName + ": " + strings.Repeat(strings.Repeat("A", 800)+"\n ", 20) + "A\n" + mail, k, errForged},
		"too old":                {marked, newMarker(t, "k", when.Add(DefaultLife+time.Second)), errStale},
		"from the future":        {marked, newMarker(t, "k", when.Add(-2*time.Hour)), errFuture},
		"a forged one above":     {FieldName + ": AAAA\n" + marked, k, errForged},
		"a subject above":        {"Subject: evil\n" + marked, k, nil},
		"a From above":           {"From: x@example.org\n" + marked, k, nil},
		"a nameless line above":  {"From x Thu\n" + marked, k, nil},
		"a content-type above":   {"Content-Type: text/html\n" + marked, k, nil},
		"a List-Unsubscribe top": {"List-Unsubscribe: <http://x>\n" + marked, k, nil},
	} {
		out, got, why, err := row.by.Take(message.FromString(row.text))
		if err != nil || got != nil || row.want != nil && !errors.Is(why, row.want) {
			t.Errorf("%s: %+v, %v, %v", name, got, why, err)
		}
		// A line without a name ends the head, so a mark below it is body.
		if why != nil && len(out.Head().Values(FieldName)) > 0 {
			t.Errorf("%s: the mark is still there", name)
		}
	}
}

// TestStillCounts: at the end of its life, and with a clock that went back.
func TestStillCounts(t *testing.T) {
	marked := put(t, newMarker(t, "k", when), mail)
	for _, d := range []time.Duration{DefaultLife, -time.Hour, 0} {
		if _, got, why, err := newMarker(t, "k", when.Add(d)).Take(message.FromString(marked)); got == nil {
			t.Errorf("%v: %v, %v", d, why, err)
		}
	}
}

func TestNoMark(t *testing.T) {
	k := newMarker(t, "k", when)
	out, got, why, err := k.Take(message.FromString(mail))
	if got != nil || why != nil || err != nil || string(out.Bytes()) != mail {
		t.Errorf("%v, %v, %v", got, why, err)
	}
}

// TestAllMarksGo: with the topmost also those below.
func TestAllMarksGo(t *testing.T) {
	k := newMarker(t, "k", when)
	twice := put(t, k, put(t, k, mail))
	out, got, _, err := k.Take(message.FromString(twice))
	if got == nil || err != nil || string(out.Bytes()) != mail {
		t.Errorf("%v, %v, %q", got, err, out.Bytes())
	}
}

func TestStrip(t *testing.T) {
	k := newMarker(t, "k", when)
	for text, want := range map[string]bool{mail: false, put(t, k, mail): true, FieldName + ": AAAA\n" + mail: true} {
		if out, had, err := Strip(message.FromString(text)); had != want || err != nil || string(out.Bytes()) != mail {
			t.Errorf("%.40q: %v, %v, %q", text, had, err, out.Bytes())
		}
	}
}

func TestLongOrigins(t *testing.T) {
	k := newMarker(t, "k", when)
	o := origin
	o.User = strings.Repeat("u", 10_000)
	o.Trace = make(pipeline.Trace, 1000)
	m, err := k.Put(message.FromString(mail), o)
	if err != nil {
		t.Fatal(err)
	}
	_, got, why, err := k.Take(m)
	if got == nil || len(got.User) != maxText || len(got.Trace) > 0 {
		t.Errorf("%v, %v, %v", got, why, err)
	}
}

func TestKey(t *testing.T) {
	if _, err := New(make([]byte, 31), Options{}); err == nil {
		t.Error("a short key was taken")
	}
}

// FuzzTake: whatever comes, Take gives a message without marks, and an origin
// only for what Put made.
func FuzzTake(f *testing.F) {
	k := newMarker(f, "k", when)
	f.Add([]byte(mail))
	f.Add([]byte(put(f, k, mail)))
	f.Add([]byte(FieldName + ": AAAA\n BBBB\n\n"))
	f.Add([]byte("Subject: x\n" + FieldName + ":\n\n"))
	f.Add([]byte(FieldName + ": x\nno field\n" + FieldName + ": y\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		out, got, why, err := k.Take(message.FromString(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		if got != nil && (why != nil || !bytes.Contains(b, []byte(mail))) {
			t.Fatalf("%q counts: %+v", b, got)
		}
		if len(out.Head().Values(FieldName)) > 0 && (got != nil || why != nil) {
			t.Fatalf("%q: a mark is left", b)
		}
		marked, err := k.Put(out, origin)
		if err != nil {
			t.Fatal(err)
		}
		// A first line that begins with a blank stays on top, and then no mark counts.
		onTop := bytes.HasPrefix(marked.Bytes(), []byte(FieldName+":"))
		if _, got, why, err := k.Take(message.FromString(string(marked.Bytes()))); (got != nil) != onTop {
			t.Fatalf("%q: %v, %v", b, why, err)
		}
	})
}
