package milter

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	gomilter "github.com/emersion/go-milter"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
)

const small = "Received: 1\nSubject:  x\n y\n\nbody\n"

// stranger is what is told of a connection from filtertest.Stranger.
const stranger = "Cmail.example.net|4\x09\xdd192.0.2.1"

// What a milter hears, stage by stage, for each flag it may negotiate.
func TestNegotiation(t *testing.T) {
	all := []string{
		stranger, "Hmail.example.net", "M<a@example.net>", "R<r@example.org>", "T",
		"LReceived|1", "LSubject| x\n y", "N", "Bbody\r\n", "E", "K",
	}
	less := func(letters string, more ...string) (list []string) {
		for _, w := range all {
			if !strings.Contains(letters, w[:1]) {
				list = append(list, w)
			}
		}
		return append(list, more...)
	}
	for _, c := range []struct {
		name    string
		version uint32
		flags   gomilter.OptProtocol
		want    []string
	}{
		{"everything", 6, 0, all},
		{"version 2", 2, 0, less("K", "Q")},
		{"version 5", 5, 0, less("K", "Q")},
		{"no connect", 6, gomilter.OptNoConnect, less("C")},
		{"no helo", 6, gomilter.OptNoHelo, less("H")},
		{"no mail", 6, gomilter.OptNoMailFrom, less("M")},
		{"no rcpt", 6, gomilter.OptNoRcptTo, less("R")},
		{"no data", 6, gomilter.OptNoData, less("T")},
		{"no headers", 6, gomilter.OptNoHeaders, less("L")},
		{"no eoh", 6, gomilter.OptNoEOH, less("N")},
		{"no body", 6, gomilter.OptNoBody, less("B")},
		{"no unknown", 6, gomilter.OptNoUnknown, all},
		{"nothing but the end", 6, allFlags, []string{"E", "K"}},
		{"no reply to connect", 6, gomilter.OptNoConnReply, all},
		{"no reply to helo", 6, gomilter.OptNoHeloReply, all},
		{"no reply to mail", 6, gomilter.OptNoMailReply, all},
		{"no reply to rcpt", 6, gomilter.OptNoRcptReply, all},
		{"no reply to data", 6, gomilter.OptNoDataReply, all},
		{"no reply to headers", 6, gomilter.OptNoHeaderReply, all},
		{"no reply to eoh", 6, gomilter.OptNoEOHReply, all},
		{"no reply to body", 6, gomilter.OptNoBodyReply, all},
		{"no reply to unknown", 6, gomilter.OptNoUnknownReply, all},
		{"no reply but at the end", 6, gomilter.OptNoConnReply | gomilter.OptNoHeloReply | gomilter.OptNoMailReply | gomilter.OptNoRcptReply | gomilter.OptNoDataReply | gomilter.OptNoHeaderReply | gomilter.OptNoEOHReply | gomilter.OptNoBodyReply, all},
		{"leading blanks", 6, gomilter.OptHeaderLeadingSpace, slices.Replace(slices.Clone(all), 5, 7, "LReceived| 1", "LSubject|  x\n y")},
		{"skip", 6, gomilter.OptSkip, all},
	} {
		t.Run(c.name, func(t *testing.T) {
			fake := newFake(nil)
			fake.version, fake.flags = c.version, c.flags
			f := newFilter(t, "", fake.start(t).Address)
			filtertest.Must(t, f, small)
			got := settled(fake, c.want[len(c.want)-1])
			if offer := "O" + string(offer()); len(got) == 0 || got[0] != strings.ReplaceAll(strings.TrimSuffix(offer, "\x00"), "\x00", "|") {
				t.Fatalf("it was offered %q", got)
			}
			wantList(t, "heard", got[1:], c.want...)
		})
	}
}

// settled waits until a milter has heard a word, which it does not answer.
func settled(fake *fake, word string) (all []string) {
	for range 30_000 {
		if all = append(all, fake.words()...); slices.Contains(all, word) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return all
}

// What a milter negotiates that cannot be.
func TestBadTerms(t *testing.T) {
	for name, c := range map[string]struct {
		answer, says string
	}{
		"version 1":         {(&fake{version: 1}).terms(), "version 1 of the protocol"},
		"version 7":         {(&fake{version: 7}).terms(), "version 7 of the protocol"},
		"unknown action":    {(&fake{version: 6, actions: 1 << 9}).terms(), "actions 0x200"},
		"rejected rcpts":    {(&fake{version: 6, flags: gomilter.OptRcptRej}).terms(), "flags 0x800"},
		"packets of 1 MiB":  {(&fake{version: 6, flags: 1 << 29}).terms(), "flags 0x20000000"},
		"short":             {packet('O', "\x00\x00\x00\x06"), "negotiates with 4 bytes"},
		"another answer":    {packet('c', ""), `answers "c"`},
		"lists unasked":     {(&fake{version: 6, lists: "\x00\x00\x00\x00i\x00"}).terms(), "did not ask for"},
		"list without end":  {(&fake{version: 6, actions: allActions, lists: "\x00\x00\x00\x00i"}).terms(), "cannot be read"},
		"list of no stage":  {(&fake{version: 6, actions: allActions, lists: "\x00\x00\x00\x07i\x00"}).terms(), "cannot be read"},
		"half a list":       {(&fake{version: 6, actions: allActions, lists: "\x00\x00"}).terms(), "cannot be read"},
		"list without bars": {(&fake{version: 6, actions: allActions, lists: "\x00\x00\x00\x00" + strings.Repeat("i ", maxMacros+1) + "\x00"}).terms(), "more than 100 macros"},
		"a gigabyte":        {"\x40\x00\x00\x00O", "a packet of 1073741824 bytes"},
		"nothing":           {"\x00\x00\x00\x00O", "a packet of 0 bytes"},
	} {
		fake := newFake(map[string]string{"O": c.answer})
		if v, err := filtertest.Judge(newFilter(t, "", fake.start(t).Address), small, 10*time.Second); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
}

// The macros of each stage, as they are by default, as a milter lists them, and
// with those of the configuration.
func TestMacros(t *testing.T) {
	fake := newFake(nil)
	f := newFilter(t, "[macros]\ndaemon_name = \"ORIGINATING\"\nown = \"5\"", fake.start(t).Address)
	s := filtertest.Stranger()
	s.Entrance, s.Helo, s.PeerName, s.PeerClaim, s.User, s.TLS = "mx", "h", "mail.example.net", "mail.example.net", "joe", "TLSv1.3 TLS_AES_256_GCM_SHA384"
	s.Peer = netip.MustParseAddrPort("[2001:db8::1]:25")
	s.Env = map[string]string{"TCPLOCALIP": "192.0.2.1", "TCPLOCALHOST": "mx.example.org", "TCPLOCALPORT": "25"}
	s.Ours = func(domain string) bool { return domain == "example.org" }
	say := func() {
		t.Helper()
		tx := filtertest.Transaction("joe\x01@Example.org")
		tx.Session = s
		i := f.open(t)
		if _, err := i.Message(t.Context(), tx, message.FromString("Message-ID: <1@x>\n\nx\n")); err != nil {
			t.Fatal(err)
		}
		i.Close()
	}
	say()
	wantList(t, "usual", fake.macros(),
		"C j=mx.example.org _=mail.example.net [2001:db8::1] v=Postern {daemon_name}=ORIGINATING {daemon_addr}=192.0.2.1 {if_name}=mx.example.org {if_addr}=192.0.2.1 {client_addr}=2001:db8::1 {client_name}=mail.example.net {client_port}=25 {client_ptr}=mail.example.net {client_resolve}=OK {own}=5",
		"H {tls_version}=TLSv1.3 {cipher}=TLS_AES_256_GCM_SHA384 {cipher_bits}=256",
		"M i=T1 {auth_type}=PLAIN {auth_authen}=joe {auth_author}=joe {mail_mailer}=esmtp {mail_host}=example.net {mail_addr}=a@example.net",
		"R i=T1 {rcpt_mailer}=local {rcpt_host}=example.org {rcpt_addr}=joe?@Example.org",
		"T i=T1", "N i=T1", "E i=T1 {msg_id}=<1@x>")
	wantList(t, "heard", fake.words()[1:3], "Cmail.example.net|6|\x192001:db8::1", "Hh")
	fake.mu.Lock()
	fake.actions = allActions
	fake.flags = gomilter.OptNoHelo | gomilter.OptNoRcptTo // they are told the macros all the same
	fake.lists = "\x00\x00\x00\x00\x00\x00\x00\x00\x02{auth_type},{i} {nonsense}\x00\x00\x00\x00\x05{rcpt_addr} {daemon_port} j\x00"
	fake.mu.Unlock()
	f.pool.close()
	say()
	wantList(t, "listed", fake.macros(),
		"H {tls_version}=TLSv1.3 {cipher}=TLS_AES_256_GCM_SHA384 {cipher_bits}=256",
		"M {auth_type}=PLAIN {i}=T1",
		"R i=T1 {rcpt_mailer}=local {rcpt_host}=example.org {rcpt_addr}=joe?@Example.org",
		"T i=T1", "N i=T1", "E {daemon_port}=25 j=mx.example.org")
}

// Who the client is, in the words of the protocol.
func TestClient(t *testing.T) {
	for _, c := range []struct {
		s                pipeline.Session
		connect, resolve string
	}{
		{pipeline.Session{Standing: pipeline.Local}, "localhost|4||127.0.0.1", "OK"},
		{pipeline.Session{}, "unknown|4||0.0.0.0", "FAIL"},
		{pipeline.Session{Standing: pipeline.Relayed}, "unknown|U", "FAIL"},
		{pipeline.Session{Peer: netip.MustParseAddrPort("[::ffff:192.0.2.1]:513"), PeerClaim: "x.example"}, "[192.0.2.1]|4\x02\x01192.0.2.1", "FORGED"},
		{pipeline.Session{Peer: netip.MustParseAddrPort("[2001:db8::1]:1"), PeerTrouble: true}, "[2001:db8::1]|6|\x012001:db8::1", "TEMP"},
		{pipeline.Session{Standing: pipeline.Local, PeerName: "h.example", Peer: netip.MustParseAddrPort("127.0.0.2:0")}, "h.example|4||127.0.0.2", "OK"},
	} {
		if got := strings.ReplaceAll(strings.TrimSuffix(string(connectData(&c.s)), "\x00"), "\x00", "|"); got != c.connect || resolved(&c.s) != c.resolve {
			t.Errorf("%q, %s", got, resolved(&c.s))
		}
	}
	e := envelope.Envelope{Sender: "a", UTF8: true, RequireTLS: true, Ret: "HDRS", EnvID: "x+2By"}
	d := &envelope.DSN{Notify: envelope.NotifySuccess | envelope.NotifyDelay, ORcpt: "rfc822;a@b"}
	if got := string(mailParameters(e)) + string(rcptParameters(d)); got != "SMTPUTF8\x00REQUIRETLS\x00RET=HDRS\x00ENVID=x+2By\x00NOTIFY=SUCCESS,DELAY\x00ORCPT=rfc822;a@b\x00" {
		t.Errorf("%q", got)
	}
}

// A session of several transactions has one conversation: resets abort, a second
// HELO is told, a transaction that was aborted leaves nothing.
func TestSession(t *testing.T) {
	fake := newFake(map[string]string{"R<no@example.org>": packet('r', "")})
	f := newFilter(t, "", fake.start(t).Address)
	i, ctx, tx := f.open(t), t.Context(), filtertest.Transaction("r@example.org", "s@example.org")
	check := func(v pipeline.Verdict, err error, want pipeline.Action) {
		t.Helper()
		if err != nil || v.Action != want {
			t.Fatalf("%v, %v", v, err)
		}
	}
	v, err := i.Connect(ctx, tx.Session)
	check(v, err, pipeline.Continue)
	v, err = i.Helo(ctx, tx.Session)
	check(v, err, pipeline.Continue)
	v, err = i.Sender(ctx, tx)
	check(v, err, pipeline.Continue)
	i.Reset()
	v, err = i.Helo(ctx, tx.Session)
	check(v, err, pipeline.Continue)
	for range 2 {
		v, err = i.Sender(ctx, tx)
		check(v, err, pipeline.Continue)
		for address, want := range map[string]pipeline.Action{"r@example.org": pipeline.Continue, "no@example.org": pipeline.Reject, "s@example.org": pipeline.Continue} {
			v, err = i.Recipient(ctx, tx, envelope.Recipient{Address: address})
			check(v, err, want)
		}
		v, err = i.Message(ctx, tx, message.FromString(small))
		check(v, err, pipeline.Continue)
	}
	i.Close()
	got := settled(fake, "K")
	for n, w := range got {
		if strings.HasPrefix(w, "R") {
			got[n] = "R" // their order is that of a map
		}
	}
	transaction := []string{"M<a@example.net>", "R", "R", "R", "T", "LReceived|1", "LSubject| x\n y", "N", "Bbody\r\n", "E"}
	want := append([]string{stranger, "Hmail.example.net", "M<a@example.net>", "A", "Hmail.example.net"}, transaction...)
	wantList(t, "heard", got[1:], append(append(want, transaction...), "K")...)
	if fake.dials != 1 {
		t.Errorf("%d connections", fake.dials)
	}
}

// A part of a message that was split is a transaction for its recipients.
func TestSplit(t *testing.T) {
	fake := newFake(nil)
	f := newFilter(t, "", fake.start(t).Address)
	i, ctx, tx := f.open(t), t.Context(), filtertest.Transaction("a@example.org", "b@example.org")
	for _, r := range tx.Envelope.Recipients {
		if _, err := i.Recipient(ctx, tx, r); err != nil {
			t.Fatal(err)
		}
	}
	for _, active := range [][]int{{0}, {1}} {
		tx.Active = active
		if _, err := i.Message(ctx, tx, message.FromString("\nx\n")); err != nil {
			t.Fatal(err)
		}
	}
	i.Close()
	wantList(t, "heard", settled(fake, "K")[3:],
		"M<a@example.net>", "R<a@example.org>", "R<b@example.org>", "A",
		"M<a@example.net>", "R<a@example.org>", "T", "N", "Bx\r\n", "E",
		"M<a@example.net>", "R<b@example.org>", "T", "N", "Bx\r\n", "E", "K")
}

// Connections serve one session after the other where the milter can do that.
func TestReuse(t *testing.T) {
	for _, c := range []struct {
		name   string
		fake   *fake
		config string
		want   int
	}{
		{"kept", newFake(nil), "", 1},
		{"not asked to", newFake(nil), "reuse = false", 5},
		{"version 5", &fake{version: 5}, "", 5},
		{"it forgets", &fake{version: 6, quits: true}, "", 5},
		{"mute", &fake{version: 6, flags: gomilter.OptNoConnReply | gomilter.OptNoHelo | gomilter.OptNoMailReply}, "", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFilter(t, c.config, c.fake.start(t).Address)
			for range 5 {
				filtertest.Must(t, f, small)
			}
			c.fake.mu.Lock()
			defer c.fake.mu.Unlock()
			if c.fake.dials != c.want {
				t.Errorf("%d connections, want %d", c.fake.dials, c.want)
			}
		})
	}
}

// A milter that was stopped and started between two commands of a session is told
// again what it knew, and so is another that takes its place.
func TestReplay(t *testing.T) {
	first, second := newFake(nil), newFake(map[string]string{"R<b@example.org>": packet('r', "")})
	one, two := first.start(t), second.start(t)
	f := newFilter(t, "", one.Address, two.Address)
	for n := range 2 {
		i, ctx, tx := f.open(t), t.Context(), filtertest.Transaction("a@example.org", "b@example.org")
		if _, err := i.Sender(ctx, tx); err != nil {
			t.Fatal(err)
		}
		for _, r := range tx.Envelope.Recipients {
			if _, err := i.Recipient(ctx, tx, r); err != nil {
				t.Fatal(err)
			}
		}
		if i.talk.server == one.Address {
			one.Stop()
		} else if n == 0 {
			i.Close() // the one that refuses came first
			continue
		}
		v, err := i.Message(ctx, tx, message.FromString("\nx\n"))
		if err != nil || v.Action != pipeline.Continue || len(v.Others) != 1 || v.Others[0].Action != pipeline.Reject || !slices.Equal(v.Others[0].Only, []int{1}) {
			t.Errorf("%+v, %v", v, err)
		}
		i.Close()
	}
}

// What was decided for the session holds for all of it.
func TestDecided(t *testing.T) {
	fake := newFake(map[string]string{"H": packet('r', "")})
	f := newFilter(t, "", fake.start(t).Address)
	i, ctx, tx := f.open(t), t.Context(), filtertest.Transaction()
	if v, err := i.Helo(ctx, tx.Session); err != nil || v.Action != pipeline.Reject {
		t.Fatal(v, err)
	}
	for range 2 { // as in shadow
		if v, err := i.Sender(ctx, tx); err != nil || v.Action != pipeline.Reject {
			t.Fatal(v, err)
		}
		if v, err := i.Message(ctx, tx, message.FromString(small)); err != nil || v.Action != pipeline.Reject {
			t.Fatal(v, err)
		}
	}
	i.Close()
	if got := settled(fake, "K"); len(got) != 4 {
		t.Errorf("heard %q", got)
	}
}

// SKIP spares a milter the rest of the body.
func TestSkip(t *testing.T) {
	fake := newFake(map[string]string{"B": packet('s', "")})
	fake.flags = gomilter.OptSkip
	f := newFilter(t, "", fake.start(t).Address)
	filtertest.Must(t, f, large)
	n := 0
	for _, w := range settled(fake, "K") {
		if strings.HasPrefix(w, "B") {
			if n++; len(w) != 1+gomilter.MaxBodyChunk {
				t.Errorf("a piece of %d bytes", len(w)-1)
			}
		}
	}
	if n != 1 {
		t.Errorf("%d pieces of a body", n)
	}
}

// A message that leaves: fields and body may change, and nothing else.
func TestDelivery(t *testing.T) {
	for name, c := range map[string]struct {
		says map[string]string
		want string
	}{
		"fields and body": {eom(indexed('i', 1, "X-B", "b"), packet('b', "x")), "continue [add X-B: b] true"},
		"refused":         {map[string]string{"E": packet('r', "")}, "reject [] false"},
		"put off":         {map[string]string{"M": packet('4', "")}, "defer [] false"},
		"all refused":     {map[string]string{"R": packet('r', "")}, "reject [] false"},
		"held":            {eom(packet('q', "x\x00")), "quarantine [] false"},
		"one refused":     {map[string]string{"R<a@example.org>": packet('r', "")}, "it wants some recipients only for"},
		"discarded":       {map[string]string{"E": packet('d', "")}, "it discards a message"},
		"sender":          {eom(packet('e', "<x@y>\x00"), packet('b', "x")), "it changes the envelope of"},
		"recipient":       {eom(packet('-', "<a@example.org>\x00")), "it wants some recipients only for"},
	} {
		fake := newFake(c.says)
		f := newFilter(t, "", fake.start(t).Address)
		i := f.open(t)
		d := &pipeline.Delivery{ID: "D1", Envelope: envelope.To("a@example.net", "a@example.org", "b@example.org"), Origin: pipeline.Origin{Standing: "relayed", Peer: "192.0.2.5:7"}}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		v, err := i.Deliver(ctx, d, message.FromString("Subject: x\n\nbody\n"))
		cancel()
		got := fmt.Sprint(v.Action, edits(v), v.Body != nil)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		v.Body.Release()
		i.Close()
		if got := fake.words(); got[1] != "C[192.0.2.5]|4|\x07192.0.2.5" {
			t.Errorf("%q", got[1])
		}
	}
}

// Each mistake in the configuration is told with its key.
func TestConfig(t *testing.T) {
	const at = "address = [\"unix:/a\"]\n"
	for config, want := range map[string]string{
		"":                                  "address",
		`address = ["/run/x"]`:              "address[0]",
		`address = ["local:/a", "unix:/a"]`: "address[1]",
		`address = ["inet:8891"]`:           "address[0]",
		at + "connections = 1001":           "connections",
		at + "connections = -1":             "connections",
		at + "body = -1":                    "body",
		at + "[macros]\n\"{x}\" = \"1\"":    "macros.{x}",
		at + "[macros]\nx = \"a\\nb\"":      "macros.x",
		at + "[macros]\n" + manyMacros(200): "macros",
		at + "[macros]\n\"a b\" = \"1\"":    "macros.a b",
	} {
		_, err := Kind().New(filtertest.Env(t), filtertest.Decode(config))
		k, ok := err.(interface{ Key() string })
		if !ok || k.Key() != want {
			t.Errorf("%s: %v", config, err)
		}
	}
	for in, want := range map[string]string{
		"inet:8891@localhost": "tcp:localhost:8891", "inet6:25@::1": "tcp:[::1]:25", "inet:25@[::1]": "tcp:[::1]:25", "local:/run/x": "unix:/run/x", "unix:/x": "unix:/x",
	} {
		if got := address(in); got != want {
			t.Errorf("%s is %s", in, got)
		}
	}
	if f, err := New(pipeline.Env{}, Options{Address: []string{"unix:/a"}}); err != nil || f.o.Body != defaultBody || f.o.Connections != defaultConnections {
		t.Error(err)
	}
}

func manyMacros(n int) (s string) {
	for i := range n {
		s += fmt.Sprintf("m%d = \"1\"\n", i)
	}
	return s
}
