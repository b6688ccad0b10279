package local

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

type box struct {
	*Exit
	t   *testing.T
	dir string
	log bytes.Buffer
}

// newBox has the mailboxes of ann and bob in a.example.
func newBox(t *testing.T, change func(*Options)) *box {
	t.Helper()
	b := &box{t: t, dir: t.TempDir()}
	for _, name := range []string{"ann", "bob"} {
		for _, sub := range []string{"tmp", "new", "cur"} {
			if err := os.MkdirAll(filepath.Join(b.dir, "a.example", name, sub), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	o := Options{
		Dir: b.dir, Hostname: "mx/1:2.example", Log: slog.New(slog.NewTextHandler(&b.log, nil)),
		Mailboxes: func(address string) (string, bool) {
			switch envelope.Local(address) {
			case "ann", "bob", "gone":
				return Expand("%d/%l", address)
			case "link":
				return "a.example/link", true
			case "out":
				return "../out", true
			}
			return "", false
		},
		Serves: func(domain string) bool { return domain == "a.example" },
	}
	if change != nil {
		change(&o)
	}
	var err error
	if b.Exit, err = New(o); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *box) send(to string) reply.Reply {
	return b.sendAs("s@x.example", to, "Subject: hi\n\nhello\n")
}

func (b *box) sendAs(sender, to, text string) reply.Reply {
	b.t.Helper()
	all := b.Deliver(b.t.Context(), envelope.To(sender, to), message.FromString(text))
	if len(all) != 1 {
		b.t.Fatal(all)
	}
	return all[0]
}

// files are the names in a folder of ann's Maildir.
func (b *box) files(sub string) (names []string) {
	b.t.Helper()
	entries, err := os.ReadDir(filepath.Join(b.dir, "a.example/ann", sub))
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestDeliver(t *testing.T) {
	b := newBox(t, nil)
	if r := b.send("ann@a.example"); r != delivered {
		t.Fatal(r, b.log.String())
	}
	names := b.files("new")
	if len(names) != 1 || !regexp.MustCompile(`^\d+\.M\d{6}P\d+Q1R[0-9a-f]{16}\.mx\\0571\\0722\.example$`).MatchString(names[0]) {
		t.Fatal(names)
	}
	text, err := os.ReadFile(filepath.Join(b.dir, "a.example/ann/new", names[0]))
	if want := "Return-Path: <s@x.example>\nDelivered-To: ann@a.example\nSubject: hi\n\nhello\n"; err != nil || string(text) != want {
		t.Errorf("%q %v", text, err)
	}
	if left := b.files("tmp"); len(left) > 0 {
		t.Error(left)
	}
}

func TestAnswers(t *testing.T) {
	b := newBox(t, nil)
	if err := os.Symlink(t.TempDir(), filepath.Join(b.dir, "a.example/link")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		to, text string
		want     reply.Reply
		log      string
	}{
		{"nobody@a.example", "\n", unknown, ""},
		{"nobody@b.example", "\n", missing, "has no mailbox behind it"},
		{"gone@a.example", "\n", missing, "cannot deliver to a Maildir"},
		{"out@a.example", "\n", missing, "lies outside"},
		{"link@a.example", "\n", broken, "cannot deliver to a Maildir"},
		{"ann@a.example", "Delivered-To: ann@a.example\n\n", looping, ""},
		{"ann@a.example", "Subject: x\nDELIVERED-TO:  ann@a.example \n\n", looping, ""},
		{"ann@a.example", "Delivered-To: bob@a.example\n\nDelivered-To: ann@a.example\n", delivered, ""},
		{"ann@a.example", "", delivered, ""},
		{"ann\n@a.example", "\n", reply.BadAddress, ""},
	} {
		b.log.Reset()
		if r := b.sendAs("", c.to, c.text); r != c.want || !strings.Contains(b.log.String(), c.log) {
			t.Errorf("%q: %v, want %v; %s", c.to, r, c.want, b.log.String())
		}
	}
}

func TestExpand(t *testing.T) {
	for _, c := range []struct{ address, want string }{
		{"Ann@A.Example", "a.example/ann/Maildir"},
		{"ann+x@a.example", "a.example/ann+x/Maildir"},
		{"%d@a.example", "a.example/%d/Maildir"},
		{"../bob@a.example", ""},
		{"..@a.example", ""},
		{".ssh@a.example", ""},
		{"a/../bob@a.example", ""},
		{"/etc@a.example", ""},
		{"x@../..", ""},
		{"x@a/b", ""},
		{"@a.example", ""},
		{"ann", ""},
		{"", ""},
		{"a\x00b@a.example", ""},
		{strings.Repeat("x", 300) + "@a.example", ""},
	} {
		dir, ok := Expand("%d/%l/Maildir", c.address)
		if ok != (c.want != "") || ok && dir != c.want {
			t.Errorf("%q: %q %v", c.address, dir, ok)
		}
	}
	if _, ok := Expand("../%l", "ann@a.example"); ok {
		t.Error("a layout leads out")
	}
}

// TestEachCallFails lets each call fail, and looks that nothing is delivered in
// part, and nothing left behind.
func TestEachCallFails(t *testing.T) {
	for _, c := range []struct {
		call string
		err  error
		want reply.Reply
		new  int
	}{
		{"open tmp", syscall.EACCES, broken, 0},
		{"open tmp", syscall.ENOSPC, full, 0},
		{"write tmp", syscall.EDQUOT, full, 0},
		{"fsync tmp", syscall.EIO, broken, 0},
		{"close tmp", syscall.ENOSPC, full, 0},
		{"link new", syscall.ENOSPC, full, 0},
		{"link new", syscall.EPERM, delivered, 1},
		{"link new", syscall.EOPNOTSUPP, delivered, 1},
		{"fsync new", syscall.EIO, broken, 1}, // perhaps a duplicate, never a loss
	} {
		calls := 0
		b := newBox(t, func(o *Options) {
			o.Before = func(call, path string) error {
				if call+" "+path[:3] == c.call {
					calls++
					return &os.PathError{Op: call, Path: path, Err: c.err}
				}
				return nil
			}
		})
		r := b.send("ann@a.example")
		if r != c.want || calls != 1 {
			t.Errorf("%s, %v: %v after %d calls", c.call, c.err, r, calls)
		}
		if n := len(b.files("new")); n != c.new {
			t.Errorf("%s, %v: %d files in new", c.call, c.err, n)
		}
		if left := b.files("tmp"); len(left) > 0 {
			t.Errorf("%s, %v: left in tmp: %v", c.call, c.err, left)
		}
	}
}

func TestCutOff(t *testing.T) {
	b := newBox(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := b.Deliver(ctx, envelope.To("", "ann@a.example"), message.FromString("\nx\n")); r[0].Class != reply.Temporary {
		t.Error(r)
	}
	short := message.StoredBody{At: strings.NewReader("short"), Size: 100}.Open()
	if r := b.Deliver(t.Context(), envelope.To("", "ann@a.example"), message.FromString("a: b\n\n").WithBody(short)); r[0].Class != reply.Temporary {
		t.Error(r)
	}
	if n := len(b.files("new")) + len(b.files("tmp")); n > 0 {
		t.Errorf("%d files", n)
	}
}

func TestSweep(t *testing.T) {
	now := time.Now()
	b := newBox(t, func(o *Options) { o.Now = func() time.Time { return now } })
	put := func(name string, age time.Duration) {
		path := filepath.Join(b.dir, "a.example/ann/tmp", name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now, now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	put("old", 37*time.Hour)
	put("young", 35*time.Hour)
	b.send("ann@a.example")
	if left := b.files("tmp"); len(left) != 1 || left[0] != "young" {
		t.Error(left)
	}
	now = now.Add(5 * time.Hour)
	b.send("ann@a.example") // not again so soon
	if left := b.files("tmp"); len(left) != 1 {
		t.Error(left)
	}
	now = now.Add(2 * time.Hour)
	b.send("ann@a.example")
	if left := b.files("tmp"); len(left) != 0 {
		t.Error(left)
	}
}

func TestConcurrent(t *testing.T) {
	b := newBox(t, nil)
	b.o.Log = slog.New(slog.DiscardHandler)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			r := b.Deliver(t.Context(), envelope.To("", "ann@a.example", "bob@a.example"), message.FromString(fmt.Sprintf("N: %d\n\n", i)))
			if r[0] != delivered || r[1] != delivered {
				t.Error(r)
			}
		})
	}
	wg.Wait()
	if n := len(b.files("new")); n != 50 {
		t.Errorf("%d files", n)
	}
}
