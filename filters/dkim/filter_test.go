package dkim

import (
	"context"
	"crypto"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
)

// resolver is a zone as filters have it.
type resolver struct {
	filtertest.NoDNS
	zone zone
	wait time.Duration
}

func (r resolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	if r.wait > 0 {
		select {
		case <-time.After(r.wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return r.zone.look(ctx, name)
}

const letter = "From: Joe <joe@example.org>\nTo: sue@example.net\nSubject: hello\n\nHello.\n"

// What becomes of mail by its results.
func TestPolicy(t *testing.T) {
	z := zone{}
	k := Key{Domain: "example.org", Selector: "sel", Signer: testKey(t, 0)}
	z.publish(t, k)
	testing := Key{Domain: "testing.example", Selector: "sel", Signer: testKey(t, 0)}
	z.publish(t, testing)
	z[testing.Query()][0] += "; t=y"
	away := Key{Domain: "example.org", Selector: "away", Signer: testKey(t, 0)}
	z[away.Query()] = []string{"TEMPFAIL"}
	good := signed(t, &Signer{}, k, letter)
	bad := strings.Replace(good, "Hello.", "Hullo.", 1)
	later := signed(t, &Signer{}, away, letter)
	tested := strings.Replace(signed(t, &Signer{}, testing, letter), "Hello.", "Hullo.", 1)
	strict := func(o *VerifyOptions) {
		o.OnFail, o.OnMissing, o.OnTemporary, o.AlwaysSigned = "reject", "reject", "defer", []string{"example.org"}
	}
	for _, c := range []struct {
		name    string
		set     func(*VerifyOptions)
		text    string
		action  pipeline.Action
		reply   string
		symbols string
		score   float64
	}{
		{"good", strict, good, pipeline.Continue, "", "DKIM_PASS", 0},
		{"good beside bad", strict, FieldName + ": v=1; a=ed25519-sha256; d=example.org; s=sel; h=From; bh=" + strings.Repeat("A", 43) + "=; b=AAAA\n" + good, pipeline.Continue, "", "DKIM_PASS", 0},
		{"fail continues", nil, bad, pipeline.Continue, "", "DKIM_FAIL", 0},
		{"fail scores", func(o *VerifyOptions) { o.OnFail = "score" }, bad, pipeline.Continue, "", "DKIM_FAIL", 2},
		{"fail is held", func(o *VerifyOptions) { o.OnFail = "quarantine" }, bad, pipeline.Quarantine, "", "DKIM_FAIL", 0},
		{"fail is refused", func(o *VerifyOptions) { o.OnFail = "reject" }, bad, pipeline.Reject, "550 5.7.20 ", "DKIM_FAIL", 0},
		{"fail of a tester", func(o *VerifyOptions) { o.OnFail = "reject" }, tested, pipeline.Continue, "", "", 0},
		{"missing and failing", strict, bad, pipeline.Reject, "550 5.7.22 mail from example.org", "DKIM_MISSING DKIM_FAIL", 0},
		{"missing", strict, letter, pipeline.Reject, "550 5.7.22 ", "DKIM_MISSING DKIM_NONE", 0},
		{"missing scores", func(o *VerifyOptions) { strict(o); o.OnMissing = "score" }, letter, pipeline.Continue, "", "DKIM_MISSING DKIM_NONE", 5},
		{"missing below", strict, "From: joe@sub.EXAMPLE.org\n\n", pipeline.Reject, "550", "DKIM_MISSING DKIM_NONE", 0},
		{"missing of a second author", strict, "From: joe@other.example, sue@example.org\n\n", pipeline.Reject, "550", "DKIM_MISSING DKIM_NONE", 0},
		{"missing of a second From", strict, "From: joe@other.example\nFrom: sue@example.org\n\n", pipeline.Reject, "550", "DKIM_MISSING DKIM_NONE", 0},
		{"missing of a From that is none", strict, "From: \"x\" <joe@other.example> <sue@example.org\n\n", pipeline.Reject, "550", "DKIM_MISSING DKIM_NONE", 0},
		{"no author", strict, "To: joe@example.org\n\n", pipeline.Continue, "", "DKIM_NONE", 0},
		{"another's", strict, "From: joe@notexample.org\n\n", pipeline.Continue, "", "DKIM_NONE", 0},
		{"author in the name only", strict, "From: \"joe@example.org\" <joe@other.example>\n\n", pipeline.Continue, "", "DKIM_NONE", 0},
		{"signed by another", strict, strings.Replace(good, "From: Joe <joe@example.org>", "From: Joe <joe@other.example>", 1), pipeline.Reject, "550 5.7.20 ", "DKIM_FAIL", 0},
		{"temporary puts off who would be refused", strict, later, pipeline.Defer, "451 4.7.5 ", "DKIM_TEMPORARY", 0},
		{"temporary continues", nil, later, pipeline.Continue, "", "DKIM_TEMPORARY", 0},
		{"temporary is put off", func(o *VerifyOptions) { o.OnTemporary = "defer" }, later, pipeline.Defer, "451 4.7.5 ", "DKIM_TEMPORARY", 0},
		{"temporary beside good", strict, signed(t, &Signer{}, away, good), pipeline.Continue, "", "DKIM_PASS", 0},
	} {
		o := DefaultVerifyOptions()
		o.AuthservID = "mx.example.org"
		if c.set != nil {
			c.set(&o)
		}
		f, err := NewVerifyFilter(pipeline.Env{Resolver: resolver{zone: z}}, o)
		if err != nil {
			t.Fatal(err)
		}
		v, err := f.Message(context.Background(), &pipeline.Transaction{Session: &pipeline.Session{}}, message.FromString(c.text))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		score := 0.0
		for _, s := range v.Symbols {
			names = append(names, s.Name)
			score += s.Score
		}
		if v.Action != c.action || strings.Join(names, " ") != c.symbols || score != c.score {
			t.Errorf("%s: %v, %v, %v: %s", c.name, v.Action, names, score, v.Reason)
		}
		if c.reply != "" && !strings.HasPrefix(v.Reply.SMTP(), c.reply) {
			t.Errorf("%s: %s", c.name, v.Reply.SMTP())
		}
	}
}

// Results of the filters before are in the field, and ours for those after.
func TestResultsAreShared(t *testing.T) {
	z, k := zone{}, Key{Domain: "example.org", Selector: "sel", Signer: testKey(t, 0)}
	z.publish(t, k)
	f, err := NewVerifyFilter(pipeline.Env{Resolver: resolver{zone: z}}, VerifyOptions{AuthservID: "mx.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	spf := pipeline.AuthResult{Method: "spf", Result: "pass", Props: []pipeline.Prop{{Name: "smtp.mailfrom", Value: "example.org"}}}
	v, err := f.Message(context.Background(), &pipeline.Transaction{Session: &pipeline.Session{}, Results: []pipeline.AuthResult{spf}}, message.FromString(signed(t, &Signer{}, k, letter)))
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Results) != 1 || v.Results[0].Result != Pass || v.Results[0].Props[0] != (pipeline.Prop{Name: "header.d", Value: "example.org"}) {
		t.Errorf("%+v", v.Results)
	}
	field := v.Edits[len(v.Edits)-1].Field
	if field.Name != ResultsField || !strings.Contains(field.Value, "spf=pass smtp.mailfrom=example.org;\n\tdkim=pass header.d=example.org") {
		t.Errorf("%q", field.Value)
	}
}

// Keys that do not come in time are temporary, and asked for at once.
func TestSlowDNS(t *testing.T) {
	z := zone{}
	text := letter
	for _, s := range []string{"a", "b", "c", "d", "e"} {
		k := Key{Domain: "example.org", Selector: s, Signer: testKey(t, 0)}
		z.publish(t, k)
		text = signed(t, &Signer{}, k, text)
	}
	v := &Verifier{Look: resolver{zone: z, wait: time.Hour}.LookupTXT, Wait: 10 * time.Millisecond}
	got, _, err := v.Verify(context.Background(), message.FromString(text))
	if err != nil || len(got) != 5 {
		t.Fatal(got, err)
	}
	for _, r := range got {
		if r.Result != TempError {
			t.Error(r)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	v.Wait = time.Hour
	if _, _, err := v.Verify(ctx, message.FromString(text)); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// countingKey counts what is signed with a key.
type countingKey struct {
	crypto.Signer
	n *atomic.Int32
}

func (k countingKey) Sign(rand io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	k.n.Add(1)
	return k.Signer.Sign(rand, digest, o)
}

// signRig is a dkim-sign with keys of two domains.
type signRig struct {
	dir  string
	log  *strings.Builder
	zone zone
}

func newSignRig(t *testing.T) *signRig {
	r := &signRig{dir: t.TempDir(), log: &strings.Builder{}, zone: zone{}}
	for _, k := range []Key{{Domain: "example.org", Selector: "sel", Signer: testKey(t, 1024)}, {Domain: "example.net", Selector: "ed", Signer: testKey(t, 0)}} {
		writeKey(t, filepath.Join(r.dir, k.Domain, k.Selector+".pem"), k.Signer)
		r.zone.publish(t, k)
	}
	return r
}

func (r *signRig) filter(t *testing.T, set func(*SignOptions)) *SignFilter {
	t.Helper()
	o := DefaultSignOptions()
	o.Keys = []string{r.dir}
	if set != nil {
		set(&o)
	}
	f, err := NewSignFilter(pipeline.Env{Log: slog.New(slog.NewTextHandler(r.log, nil))}, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// sign is a message as it leaves.
func sign(t *testing.T, f *SignFilter, d pipeline.Delivery, text string) (out, reason string, err error) {
	t.Helper()
	m := message.FromString(text)
	v, err := f.Deliver(context.Background(), &d, m)
	if err != nil {
		return "", "", err
	}
	h := m.Head()
	for _, e := range v.Edits {
		if h, err = h.Edit(e.Field); err != nil {
			t.Fatal(err)
		}
	}
	return string(m.WithHead(h).Bytes()), v.Reason, nil
}

func delivery(standing pipeline.Standing, user, sender string) pipeline.Delivery {
	return pipeline.Delivery{ID: "q1", Envelope: envelope.To(sender, "r@example.com"), Origin: pipeline.Origin{Standing: standing.String(), User: user}}
}

// Who signs what.
func TestChoice(t *testing.T) {
	r := newSignRig(t)
	user := []string{chooseUser}
	for _, c := range []struct {
		name         string
		standing     pipeline.Standing
		user, sender string
		from         string
		set          func(*SignOptions)
		want         string // domains of the signatures, from the top
	}{
		{"a user's", pipeline.Authenticated, "joe@example.org", "joe@example.org", "joe@example.org", nil, "example.org"},
		{"a relay's", pipeline.Relayed, "", "joe@example.org", "joe@example.org", nil, "example.org"},
		{"a local program's", pipeline.Local, "", "root@example.org", "root@example.org", nil, "example.org"},
		{"our own bounce", pipeline.Local, "", "", "MAILER-DAEMON@mx.example.org", nil, "example.org"},
		{"our own double bounce", pipeline.Local, "", "#@[]", "MAILER-DAEMON@mx.example.org", nil, "example.org"},
		{"a stranger's", pipeline.Stranger, "", "joe@example.org", "joe@example.org", nil, ""},
		{"a stranger's that is forwarded", pipeline.Stranger, "joe@example.org", "joe@example.org", "ceo@example.org", func(o *SignOptions) { o.Domain = "example.org" }, ""},
		{"below", pipeline.Local, "", "a@b.c.example.org", "a@b.c.example.org", nil, "example.org"},
		{"aligned, not equal", pipeline.Local, "", "bounces@lists.example.org", "a@example.org", nil, "example.org"},
		{"capitals", pipeline.Local, "", "A@EXAMPLE.ORG", "A@Example.Org", nil, "example.org"},
		{"VERP", pipeline.Local, "", "list-@example.org-@[]", "list@example.org", nil, "example.org"},
		{"not aligned", pipeline.Local, "", "a@example.net", "a@example.org", nil, ""},
		{"not aligned, but a user", pipeline.Authenticated, "joe@example.net", "a@example.com", "a@example.org", nil, "example.net"},
		{"user only", pipeline.Authenticated, "joe@example.net", "a@example.org", "a@example.org", func(o *SignOptions) { o.Choose = user }, "example.net"},
		{"user without a domain", pipeline.Authenticated, "joe", "a@example.org", "a@example.org", func(o *SignOptions) { o.Choose = user }, ""},
		{"fixed", pipeline.Local, "", "a@example.com", "a@example.edu", func(o *SignOptions) { o.Domain = "example.net" }, "example.net"},
		{"fixed comes last", pipeline.Local, "", "a@example.org", "a@example.org", func(o *SignOptions) { o.Domain = "example.net" }, "example.org"},
		{"no key", pipeline.Local, "", "a@example.com", "a@example.com", nil, ""},
		{"no domain", pipeline.Local, "", "a", "a", nil, ""},
		{"not below", pipeline.Local, "", "a@notexample.org", "a@notexample.org", nil, ""},
		{"a path for a domain", pipeline.Local, "", "a@../example.org", "a@../example.org", nil, ""},
		{"two authors", pipeline.Local, "", "a@example.org", "a@example.org, b@example.net", nil, ""},
		{"two From fields", pipeline.Local, "", "a@example.org", "a@example.org\nFrom: b@example.org", func(o *SignOptions) { o.Domain = "example.org" }, ""},
		{"no From field", pipeline.Local, "", "a@example.org", "a@example.org\n\nFrom: x", func(o *SignOptions) { o.Domain = "example.org" }, "example.org"},
	} {
		out, reason, err := sign(t, r.filter(t, c.set), delivery(c.standing, c.user, c.sender), "From: "+c.from+"\nSubject: x\n\nb\n")
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var domains []string
		for _, got := range r.zone.verify(t, out) {
			if got.Result != Pass {
				t.Errorf("%s: %v", c.name, got)
			}
			domains = append(domains, got.Domain)
		}
		if strings.Join(domains, " ") != c.want || reason == "" {
			t.Errorf("%s: signed by %q, want %q: %s", c.name, domains, c.want, reason)
		}
	}
}

// Nothing is signed twice, unless the signature no longer holds.
func TestNeverTwice(t *testing.T) {
	r := newSignRig(t)
	f := r.filter(t, func(o *SignOptions) { o.Expires = 2 * time.Hour })
	d := delivery(pipeline.Local, "", "joe@example.org")
	once, _, err := sign(t, f, d, letter)
	if err != nil || strings.Count(once, FieldName) != 1 {
		t.Fatal(once, err)
	}
	again, reason, err := sign(t, f, d, once)
	if err != nil || again != once || !strings.Contains(reason, "already") {
		t.Errorf("%s: %v\n%s", reason, err, again)
	}
	for name, text := range map[string]string{
		"changed":          strings.Replace(once, "Hello.", "Hullo.", 1),
		"claimed":          FieldName + ": v=1; a=rsa-sha256; d=example.org; s=sel; h=From; bh=AAAA; b=AAAA\n" + letter,
		"another's":        strings.Replace(once, "s=sel", "s=les", 1),
		"does not sign it": strings.Replace(once, "From: ", "From: x@example.org\nX: ", 1),
	} {
		again, reason, err := sign(t, f, d, text)
		if err != nil || strings.Count(again, FieldName) != 2 {
			t.Errorf("%s: %s: %v\n%s", name, reason, err, again)
		}
		if got := r.zone.verify(t, again); got[0].Result != Pass {
			t.Errorf("%s: %v", name, got)
		}
	}
	// What has expired is signed again.
	f.cache.now = func() time.Time { return time.Now().Add(3 * time.Hour) }
	if again, reason, err := sign(t, f, d, once); err != nil || strings.Count(again, FieldName) != 2 {
		t.Errorf("expired: %s: %v", reason, err)
	}
}

// A message is signed once with each key, whoever it goes to and however many
// ask at the same time.
func TestOneOperation(t *testing.T) {
	r := newSignRig(t)
	f := r.filter(t, nil)
	var n atomic.Int32
	path := filepath.Join(r.dir, "example.org", "sel.pem")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f.keys.parsed[path] = parsedKey{stampOf(info), countingKey{testKey(t, 1024), &n}, "counted"}
	m := message.FromString(letter)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 125 {
				d := delivery(pipeline.Local, "", "joe@example.org")
				if v, err := f.Deliver(context.Background(), &d, m); err != nil || len(v.Edits) != 1 {
					t.Error(v, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n.Load() != 1 {
		t.Errorf("%d operations for 1,000 recipients", n.Load())
	}
	// Another message, another form and another time are signed anew.
	d := delivery(pipeline.Local, "", "joe@example.org")
	d.ID = "q2"
	f.Deliver(context.Background(), &d, m) //nolint:errcheck // it is counted
	d.Form = message.EightBit              // more than it needs
	f.Deliver(context.Background(), &d, m) //nolint:errcheck // likewise
	d.ID = "q3"
	for d.Form = message.SevenBit; d.Form <= message.UTF8; d.Form++ {
		f.Deliver(context.Background(), &d, message.FromString(letter+"Gr\xc3\xbc\xc3\x9fe\n")) //nolint:errcheck // likewise
	}
	f.cache.now = func() time.Time { return time.Now().Add(2 * cacheLife) }
	f.Deliver(context.Background(), &d, m) //nolint:errcheck // likewise
	if n.Load() != 5 {
		t.Errorf("%d operations, want 5", n.Load())
	}
	for i := range 2 * maxCached {
		d.ID = "q" + strings.Repeat("x", i%50) + string(rune('a'+i%26)) + time.Duration(i).String()
		f.cache.get(context.Background(), [32]byte{byte(i), byte(i >> 8), 1}, func() (string, error) { return "x", nil }) //nolint:errcheck // it fills up
	}
	if len(f.cache.entries) > maxCached || len(f.cache.order) > maxCached {
		t.Errorf("%d signatures are kept", len(f.cache.entries))
	}
}

// Keys come, change and go while the filter runs; one that cannot be used puts
// mail off and tells the log alone where it is.
func TestKeysChange(t *testing.T) {
	r := newSignRig(t)
	f := r.filter(t, nil)
	d := delivery(pipeline.Local, "", "joe@example.org")
	path := filepath.Join(r.dir, "example.org", "sel.pem")
	count := func(want int) {
		t.Helper()
		out, reason, err := sign(t, f, d, letter)
		if err != nil || strings.Count(out, FieldName) != want {
			t.Errorf("%s: %v\n%s", reason, err, out)
		}
	}
	count(1)
	writeKey(t, filepath.Join(r.dir, "example.org", "ed.pem"), testKey(t, 0))
	count(2)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	count(1)
	writeKey(t, path, testKey(t, 2048))
	r.zone.publish(t, Key{Domain: "example.org", Selector: "sel", Signer: testKey(t, 2048)})
	r.zone.publish(t, Key{Domain: "example.org", Selector: "ed", Signer: testKey(t, 0)})
	out, _, err := sign(t, f, d, letter)
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range r.zone.verify(t, out) {
		if got.Result != Pass {
			t.Error(got)
		}
	}
	for name, content := range map[string]string{"no PEM": "nonsense", "empty": "", "a certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "encrypted": "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		r.log.Reset()
		_, _, err := sign(t, f, d, letter)
		if err == nil || strings.Contains(err.Error(), r.dir) || !strings.Contains(err.Error(), "example.org") {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.Contains(r.log.String(), path) {
			t.Errorf("%s: the log says %s", name, r.log)
		}
		// Other domains' mail goes on.
		if out, _, err := sign(t, f, delivery(pipeline.Local, "", "a@example.net"), "From: a@example.net\n\nb\n"); err != nil || !strings.Contains(out, FieldName) {
			t.Error(out, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := sign(t, f, d, letter); err == nil {
		t.Error("a folder for a key")
	}
}

// The layout of qmail-dk: a pattern with the domain, parents in turn.
func TestQmailKeys(t *testing.T) {
	dir := t.TempDir()
	writeKey(t, filepath.Join(dir, "example.org", "default"), testKey(t, 1024))
	writeKey(t, filepath.Join(dir, "example.org", "ed2026"), testKey(t, 0))
	writeKey(t, filepath.Join(dir, "org", "default"), testKey(t, 1024))
	r := newSignRig(t)
	f := r.filter(t, func(o *SignOptions) { o.Keys = []string{dir + "/%/default", dir + "/%/ed2026"} })
	z := zone{}
	z.publish(t, Key{Domain: "example.org", Selector: "default", Signer: testKey(t, 1024)})
	z.publish(t, Key{Domain: "example.org", Selector: "ed2026", Signer: testKey(t, 0)})
	out, reason, err := sign(t, f, delivery(pipeline.Local, "", "a@sub.example.org"), "From: a@sub.example.org\n\nb\n")
	if err != nil {
		t.Fatal(err)
	}
	got := z.verify(t, out)
	if len(got) != 2 || got[0].Result != Pass || got[1].Result != Pass || got[0].Domain != "example.org" {
		t.Errorf("%v: %s", got, reason)
	}
	// A registry is nobody's parent.
	if out, _, _ := sign(t, f, delivery(pipeline.Local, "", "a@other.org"), "From: a@other.org\n\nb\n"); strings.Contains(out, FieldName) {
		t.Error(out)
	}
}

// What a configuration may not say.
func TestOptions(t *testing.T) {
	for config, want := range map[string]string{
		"signatures = -1": "signatures", "signatures = 1000": "signatures", "wait = -1": "wait", "drift = -1": "drift",
		"on_fail = \"explode\"": "on_fail", "partial = \"some\"": "partial", "on_missing = \"defer\"": "on_missing", "on_temporary = \"reject\"": "on_temporary",
		"authserv_id = \"a b\"": "authserv_id", "authserv_id = \"a;b\"": "authserv_id", "also_ours = [\"\"]": "also_ours[0]",
		"always_signed = [\"example.org\", \"a b\"]": "always_signed[1]", "fail_score = nan": "fail_score", "missing_score = 1e9": "missing_score",
	} {
		_, err := VerifyKind().New(filtertest.Env(t), filtertest.Decode(config))
		var key pipeline.KeyError
		if !errors.As(err, &key) || key.Key() != want {
			t.Errorf("%s: %v", config, err)
		}
	}
	for config, want := range map[string]string{
		"keys = []": "keys", "keys = [\"relative\"]": "keys[0]", "keys = [\"/a/%/\"]": "keys[0]", "keys = [\"/a/b%\"]": "keys[0]", "selectors = [\"a/b\"]": "selectors[0]",
		"choose = [\"from\", \"to\"]": "choose[1]", "domain = \"a b\"": "domain", "headers = [\"Subject\"]": "headers", "headers = [\"From\", \"a b\"]": "headers[1]",
		"headers = [\"From\", \"Received\"]": "headers[1]", "oversign = [\"DKIM-Signature\"]": "oversign[0]", "canonicalization = \"relaxed\"": "canonicalization", "expires = 60_000_000_000": "expires",
		"headers = [\"From\", \"" + strings.Repeat("x", 900) + "\"]": "headers",
	} {
		_, err := SignKind().New(filtertest.Env(t), filtertest.Decode(config))
		var key pipeline.KeyError
		if !errors.As(err, &key) || key.Key() != want {
			t.Errorf("%s: %v", config, err)
		}
	}
}

// Odd mail of our own is signed as far as it can be, and never stuck.
func TestOddMailLeaves(t *testing.T) {
	r := newSignRig(t)
	f := r.filter(t, nil)
	for name, text := range map[string]string{
		"thousands of fields": "From: joe@example.org\n" + strings.Repeat("To: a@b\nSubject: x\nList-Unsubscribe-Post: y\n", 3000) + "\nb\n",
		"blank lines":         "From: joe@example.org\n\na\n" + strings.Repeat("\n", 3<<20) + "b\n",
		"no end":              "From: joe@example.org",
		"no blank line":       "From: joe@example.org\nnot a field\nbody\n",
		"mbox":                "From joe\nFrom: joe@example.org\n\nb\n",
	} {
		d := delivery(pipeline.Local, "", "joe@example.org")
		out, reason, err := sign(t, f, d, text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := r.zone.verify(t, out)
		if name == "blank lines" {
			if len(got) != 0 || !strings.Contains(reason, "blank lines") {
				t.Errorf("%s: %v, %s", name, got, reason)
			}
		} else if len(got) != 1 || got[0].Result != Pass {
			t.Errorf("%s: %v, %s\n%.500s", name, got, reason, out)
		}
	}
}
