package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// helloRemote sends the whole hello of a qmail-remote.
func (c *client) helloRemote(fd0 *os.File, args ...string) error {
	list := wire.AppendEntries(nil, append([]string{"qmail-remote"}, args...)...)
	h := wire.Hello{Program: wire.ProgramRemote, Argc: uint16(len(args) + 1), ArgsLen: uint32(len(list))}
	k := min(len(list), wire.MaxChunk)
	h.Chunk = list[:k]
	err := c.send(h.Append(nil), int(fd0.Fd()))
	for list = list[k:]; err == nil && len(list) > 0; list = list[k:] {
		k = min(len(list), wire.MaxChunk)
		err = c.send(wire.Data{Chunk: list[:k]}.Append(nil))
	}
	return err
}

// told is what the daemon said to a qmail-remote.
type told struct {
	report  string // of Ts, or of X as the shim makes it
	next    string
	message *os.File
	beats   int
	slow    uint32
	read    bool
}

func (c *client) converseRemote() (r told, err error) {
	for {
		packet, fds, err := c.packet()
		if err != nil {
			return r, err
		}
		switch wire.KindOf(packet) {
		case wire.KindAccepted:
			a, err := wire.ParseAccepted(packet)
			if r.slow = a.Slow; err != nil {
				return r, err
			}
		case wire.KindBeat:
			r.beats++
		case wire.KindEnvelope:
			r.read = true
		case wire.KindText:
			t, err := wire.ParseText(packet)
			if err != nil {
				return r, err
			}
			r.report += string(t.Chunk)
		case wire.KindExit:
			x, err := wire.ParseExit(packet)
			if r.report == "" {
				r.report = x.Text + "\n\x00"
			}
			return r, err
		case wire.KindNext:
			n, err := wire.ParseNext(packet)
			if r.next = n.Path; err != nil || n.Mode != wire.ModeExec {
				return r, errors.Join(err, errors.New("bad next"))
			}
		case wire.KindPair:
			if len(fds) != 1 {
				return r, errors.New("bad pair")
			}
			r.message = os.NewFile(uintptr(fds[0]), "message")
			return r, nil
		default:
			return r, fmt.Errorf("packet %q", packet)
		}
	}
}

// leavings keeps what Deliver or Prepare was given.
type leavings struct {
	mu    sync.Mutex
	all   []Leaving
	texts []string
}

func (l *leavings) add(x *Leaving) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all, l.texts = append(l.all, *x), append(l.texts, string(x.Message.Bytes()))
}

func (l *leavings) at(i int) (Leaving, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all[i], l.texts[i]
}

func (l *leavings) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.all)
}

const ok = "r\x00K192.0.2.1 accepted message.\nRemote host said: 250 ok\n\x00"

// delivering is a daemon whose Deliver gives one report.
func delivering(t *testing.T, report string, change func(*Options)) (*daemon, *leavings) {
	t.Helper()
	all := &leavings{}
	return newDaemon(t, func(o *Options) {
		o.Sink, o.Chains = nil, nil
		o.Remote = &Remote{Deliver: func(_ context.Context, l *Leaving) ([]byte, error) {
			all.add(l)
			return []byte(report), nil
		}}
		if change != nil {
			change(o)
		}
	}), all
}

// leave calls as a qmail-remote.
func (d *daemon) leave(fd0 *os.File, args ...string) told {
	d.t.Helper()
	c := d.connect()
	check(d.t, c.helloRemote(fd0, args...))
	r, err := c.converseRemote()
	check(d.t, err)
	c.conn.Close()
	return r
}

// file is an open file with content, at an offset.
func (d *daemon) mess(content string, at int64) *os.File {
	d.t.Helper()
	f, err := os.CreateTemp(d.dir, "mess")
	check(d.t, err)
	d.t.Cleanup(func() { f.Close() })
	_, err = f.WriteString(content)
	check(d.t, err)
	_, err = f.Seek(at, io.SeekStart)
	check(d.t, err)
	return f
}

// remoteLine is the log's line of a qmail-remote's call.
func (j *journal) remoteLine(t *testing.T) map[string]any {
	t.Helper()
	var found map[string]any
	until(t, "a line of a qmail-remote", func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		for i := len(j.all) - 1; i >= 0 && found == nil; i-- {
			if j.all[i]["msg"] == "qmail-remote" {
				found = j.all[i]
			}
		}
		return found != nil
	})
	return found
}

func TestRemoteDelivers(t *testing.T) {
	d, all := delivering(t, ok, nil)
	f := d.mess("skipped\n"+mail, 8)
	for range 2 {
		r := d.leave(f, "example.net", "a@example.org", "b@example.net", "c@example.net")
		if r.report != ok || !r.read || r.slow != 330_000 {
			t.Fatalf("%+v", r)
		}
	}
	if at, err := f.Seek(0, io.SeekCurrent); at != 8 || err != nil {
		t.Errorf("the caller's offset moved to %d, %v", at, err)
	}
	l, text := all.at(0)
	again, _ := all.at(1)
	if text != mail {
		t.Errorf("%q", text)
	}
	if l.Host != "example.net" || l.Envelope.Sender != "a@example.org" || len(l.Envelope.Recipients) != 2 || l.Envelope.Recipients[1].Address != "c@example.net" ||
		l.UID != os.Getuid() || l.PID != os.Getpid() || l.Trusted != (os.Getuid() == 0) || l.Content == "" || l.Content != again.Content || l.Call == again.Call {
		t.Errorf("%+v", l)
	}
	line := d.log.remoteLine(t)
	for key, want := range map[string]any{
		"host": "example.net", "from": "a@example.org", "recipients": 2.0, "size": float64(len(mail)), "message_id": "<1@example.org>",
		"answer": "K192.0.2.1 accepted message.?Remote host said: 250 ok",
	} {
		if line[key] != want {
			t.Errorf("%s = %v, want %v", key, line[key], want)
		}
	}
	if r := d.leave(d.mess(mail+"more\n", 0), "h", "a@b", "c@d"); r.report != ok {
		t.Errorf("%+v", r)
	}
	if other, _ := all.at(2); other.Content == l.Content {
		t.Error("two messages with one name")
	}
}

// TestRemoteManyRecipients: argv in pieces, and a report that needs several.
func TestRemoteManyRecipients(t *testing.T) {
	report := strings.Repeat("s192.0.2.1 does not like recipient.\nRemote host said: 450 later\n\x00", 5000) + "DGiving up on 192.0.2.1.\n\x00"
	d, all := delivering(t, report, nil)
	args := []string{"h", "a@b"}
	for i := range 20_000 {
		args = append(args, fmt.Sprintf("recipient-%d-with-a-longish-local-part@host.example", i))
	}
	if r := d.leave(d.fed(mail), args...); r.report != report {
		t.Errorf("%d bytes", len(r.report))
	}
	l, _ := all.at(0)
	if got := l.Envelope.Recipients; len(got) != 20_000 || got[19_999].Address != args[20_001] {
		t.Error(len(got))
	}
}

func TestRemoteArguments(t *testing.T) {
	const want = "DI (qmail-remote) was invoked improperly. (#5.3.5)\n\x00"
	d, _ := delivering(t, ok, nil)
	for _, args := range [][]string{nil, {"h"}, {"h", "s"}} {
		if r := d.leave(d.fed(mail), args...); r.report != want {
			t.Errorf("%q: %q", args, r.report)
		}
	}
	d, all := delivering(t, ok, func(o *Options) { o.Remote.Indimail = true })
	if r := d.leave(d.fed(mail), "h", "s", "", "1234"); r.report != want {
		t.Errorf("%q", r.report)
	}
	if r := d.leave(d.fed(mail), "h", "s", "", "1234", "a@b", "c@d"); r.report != ok {
		t.Errorf("%q", r.report)
	}
	l, _ := all.at(0)
	if got := l.Envelope; got.Sender != "s" || len(got.Recipients) != 2 || got.Recipients[0].Address != "a@b" {
		t.Errorf("%+v", got)
	}
}

// handing is a daemon that hands on, with a line put on top.
func handing(t *testing.T, change func(*Options)) *daemon {
	t.Helper()
	return newDaemon(t, func(o *Options) {
		o.Sink, o.Chains = nil, nil
		o.Next = "/bin/true"
		keep := message.Keep
		o.Lines = &keep
		o.Remote = &Remote{Prepare: func(_ context.Context, l *Leaving) (message.Message, error) {
			l.Notes = append(l.Notes, slog.String("note", "noted"))
			h, err := l.Message.Head().Edit(message.FieldEdit{Op: message.Add, Name: "DKIM-Signature", Value: "x"})
			l.Message.Body().Retain()
			return l.Message.WithHead(h), err
		}}
		if change != nil {
			change(o)
		}
	})
}

// TestRemoteHandsOn: a fresh descriptor of the message, seekable, at offset 0;
// odd bytes stay as they are.
func TestRemoteHandsOn(t *testing.T) {
	d := handing(t, nil)
	for _, body := range []string{"body\n", "no end", "nul \x00 cr \r crlf \r\n", "", strings.Repeat("0123456789abcde\n", 1<<14)} {
		c := d.connect()
		check(t, c.helloRemote(d.mess("junk"+mail+body, 4), "h", "a@b", "c@d"))
		r, err := c.converseRemote()
		check(t, err)
		if r.next != "/bin/true" || r.report != "" {
			t.Errorf("%+v", r)
		}
		if at, err := r.message.Seek(0, io.SeekCurrent); at != 0 || err != nil {
			t.Errorf("offset %d, %v", at, err)
		}
		for range 2 {
			got, err := io.ReadAll(r.message)
			check(t, err)
			if want := "DKIM-Signature: x\n" + mail + body; string(got) != want {
				t.Errorf("%.80q, want %.80q", got, want)
			}
			_, err = r.message.Seek(0, io.SeekStart)
			check(t, err)
		}
		if _, err := r.message.Write([]byte("x")); err == nil {
			t.Error("the message can be written")
		}
		r.message.Close()
		c.conn.Close() // as exec does
		if line := d.log.remoteLine(t); line["next"] != "/bin/true" || line["note"] != "noted" || line["error"] != nil {
			t.Error(line)
		}
		until(t, "the session's end", func() bool { return d.srv.Sessions() == 0 })
	}
}

func TestRemoteNextDoesNotRun(t *testing.T) {
	d := handing(t, nil)
	c := d.connect()
	check(t, c.helloRemote(d.fed(mail), "h", "a@b", "c@d"))
	r, err := c.converseRemote()
	check(t, err)
	r.message.Close()
	check(t, c.send(wire.Result{Exit: 71}.Append(nil)))
	if line := d.log.remoteLine(t); line["next_failed"] != true || line["error"] == nil || !d.log.has("the next program does not run") {
		t.Error(line)
	}
}

// TestRemoteErrors: what is no permanent answer is none here.
func TestRemoteErrors(t *testing.T) {
	for _, row := range []struct {
		err  error
		want string
	}{
		{errors.New("EIO"), "Ztemporary trouble here, please try again later (#4.3.0)\n\x00"},
		{reply.With(reply.Deferred, errors.New("no key")), "Zmessage deferred, please try again later (#4.7.1)\n\x00"},
		{reply.With(reply.Refused, errors.New("a filter")), "Dmessage refused (#5.7.1)\n\x00"},
		{reply.With(reply.OK, errors.New("odd")), "Ztemporary trouble here, please try again later (#4.3.0)\n\x00"},
		{nil, "Ztemporary trouble here, please try again later (#4.3.0)\n\x00"},
	} {
		for _, next := range []bool{false, true} {
			if next && row.err == nil {
				continue
			}
			d := handing(t, func(o *Options) {
				if next {
					o.Remote.Prepare = func(context.Context, *Leaving) (message.Message, error) { return message.Message{}, row.err }
				} else {
					o.Next = ""
					o.Remote.Deliver = func(context.Context, *Leaving) ([]byte, error) { return nil, row.err }
				}
			})
			if r := d.leave(d.fed(mail), "h", "a@b", "c@d"); r.report != row.want {
				t.Errorf("%v: %q", row.err, r.report)
			}
		}
	}
	d := handing(t, func(o *Options) {
		o.Remote.Prepare = func(context.Context, *Leaving) (message.Message, error) { panic("oops") }
	})
	c := d.connect()
	check(t, c.helloRemote(d.fed(mail), "h", "a@b", "c@d"))
	if _, err := c.converseRemote(); err == nil {
		t.Error("an answer after a panic")
	}
}

// TestRemoteReading: a message that cannot be read, or is refused.
func TestRemoteReading(t *testing.T) {
	d, all := delivering(t, ok, func(o *Options) {
		refuse := message.Refuse
		o.Lines, o.Limits.Head = &refuse, 100
	})
	_, w := d.pipe()
	for name, row := range map[string]struct {
		fd0  *os.File
		want string
	}{
		"writing end": {w, "Zcould not read the whole message (#4.3.0)\n\x00"},
		"bare CR":     {d.fed("A: b\n\nx\ry\n"), "Dmessage holds bare CR, bare LF or NUL (#5.5.2)\n\x00"},
		"large head":  {d.fed("A: " + strings.Repeat("b", 100) + "\n\n"), "ZThe message's header is larger than the limit here. (#4.3.4)\n\x00"},
	} {
		if r := d.leave(row.fd0, "h", "a@b", "c@d"); r.report != row.want || r.read {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if all.len() > 0 {
		t.Error("delivered")
	}
	if !d.log.has("raise limits.head") {
		t.Error("the log does not say what to do")
	}
}

// TestRemoteSlow: a delivery that does not end is broken off, and the shim hears
// of it; beats have kept it waiting.
func TestRemoteSlow(t *testing.T) {
	d, _ := delivering(t, "", func(o *Options) {
		o.Slow, o.Beat = 100*time.Millisecond, 10*time.Millisecond
		o.Remote.Deliver = func(ctx context.Context, _ *Leaving) ([]byte, error) {
			<-ctx.Done()
			return []byte("ZThe delivery was broken off here. (#4.3.2)\n\x00"), nil
		}
	})
	if r := d.leave(d.fed(mail), "h", "a@b", "c@d"); !strings.HasPrefix(r.report, "ZThe delivery was broken") || r.beats == 0 || r.slow != 30_100 {
		t.Errorf("%+v", r)
	}
}

// TestRemoteHangUps: a shim that goes away, at each step, ends the work, and
// leaves nothing behind.
func TestRemoteHangUps(t *testing.T) {
	begun, ended := make(chan struct{}, 1), make(chan struct{}, 1)
	d, _ := delivering(t, ok, func(o *Options) {
		o.Remote.Deliver = func(ctx context.Context, _ *Leaving) ([]byte, error) {
			begun <- struct{}{}
			<-ctx.Done()
			ended <- struct{}{}
			return []byte(ok), nil
		}
	})
	idle := func() {
		t.Helper()
		until(t, "the session's end", func() bool { return d.srv.Sessions() == 0 })
		if left := d.spooled(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	d.connect().conn.Close() // before the hello
	idle()
	c := d.connect() // within the hello
	h := wire.Hello{Program: wire.ProgramRemote, Argc: 4, ArgsLen: 100, Chunk: []byte("qmail-remote\x00")}
	check(t, c.send(h.Append(nil), int(d.fed("").Fd())))
	c.conn.Close()
	idle()
	c = d.connect() // while the message is read
	r, w := d.pipe()
	check(t, c.helloRemote(r, "h", "a@b", "c@d"))
	_, err := io.WriteString(w, mail+strings.Repeat("x\n", 100_000)[:60_000])
	check(t, err)
	c.conn.Close()
	idle()
	c = d.connect() // while it is delivered
	check(t, c.helloRemote(d.fed(mail+strings.Repeat("x\n", 100_000)), "h", "a@b", "c@d"))
	<-begun
	c.conn.Close()
	<-ended
	idle()
	if line := d.log.remoteLine(t); line["given_up"] != "delivery" || line["error"] != errGone.Error() {
		t.Error(line)
	}
}

// TestRemoteGarbage: a shim that breaks the protocol is given up, and its
// descriptors are closed.
func TestRemoteGarbage(t *testing.T) {
	d, all := delivering(t, ok, nil)
	good := wire.Hello{Program: wire.ProgramRemote, Argc: 4, ArgsLen: 9, Chunk: []byte("q\x00h\x00s\x00r\x00\x00")}
	hello := string(good.Append(nil))
	for name, packets := range map[string][]string{
		"no hello":         {"B"},
		"a queue's":        {string(wire.Hello{Program: wire.ProgramQueue}.Append(nil))},
		"argc wrong":       {hello},
		"no NUL at end":    {string(wire.Hello{Program: wire.ProgramRemote, Argc: 1, ArgsLen: 1, Chunk: []byte("q")}.Append(nil))},
		"too much":         {string(wire.Hello{Program: wire.ProgramRemote, Argc: 1, ArgsLen: 20}.Append(nil)), "D" + strings.Repeat("x", 21)},
		"too long":         {string(wire.Hello{Program: wire.ProgramRemote, Argc: 1, ArgsLen: wire.MaxRemoteArgs + 1}.Append(nil))},
		"something else D": {string(wire.Hello{Program: wire.ProgramRemote, Argc: 1, ArgsLen: 20}.Append(nil)), "R\x00\x00\x00\x00\x00\x00\x00\x00"},
	} {
		c := d.connect()
		r, w := d.pipe()
		for i, p := range packets {
			if i == 0 {
				check(t, c.send([]byte(p), int(r.Fd())))
			} else {
				c.send([]byte(p)) //nolint:errcheck // the daemon may have hung up
			}
		}
		r.Close()
		c.hangsUp(t)
		until(t, name+": the descriptor to be closed", func() bool {
			_, err := w.Write([]byte("x"))
			return err != nil
		})
	}
	// What comes after the hello before it was asked for anything.
	c := d.connect()
	r, _ := d.pipe()
	check(t, c.helloRemote(r, "h", "a@b", "c@d"))
	check(t, c.send(wire.Result{}.Append(nil)))
	c.hangsUp(t)
	if all.len() > 0 {
		t.Error("something was delivered")
	}
}

// TestRemoteOnTheWrongSocket: neither shim is served by the other's daemon.
func TestRemoteOnTheWrongSocket(t *testing.T) {
	d := newDaemon(t, nil, says(pipeline.Verdict{}))
	c := d.connect()
	check(t, c.helloRemote(d.fed(mail), "h", "a@b", "c@d"))
	c.hangsUp(t)
	if !d.log.has("give each shim a socket of its own") {
		t.Error("the log does not say what to do")
	}
}

func TestRemoteOptions(t *testing.T) {
	deliver := func(context.Context, *Leaving) ([]byte, error) { return nil, nil }
	for _, o := range []Options{
		{Remote: &Remote{}},
		{Remote: &Remote{Deliver: deliver}, Next: "/bin/true"},
		{Remote: &Remote{}, Next: "/bin/true"},
		{Remote: &Remote{Deliver: deliver}, Path: ""},
	} {
		if o.Remote.Deliver == nil || o.Next != "" {
			o.Path = filepath.Join(t.TempDir(), "s")
		}
		if s, err := New(o); err == nil {
			s.Shutdown(context.Background())
			t.Errorf("%+v was taken", o)
		}
	}
}
