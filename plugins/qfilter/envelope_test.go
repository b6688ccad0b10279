package qfilter

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
)

// What a program writes on descriptor 4 becomes the envelope.
func TestEnvelope(t *testing.T) {
	long := strings.Repeat("a", envelope.MaxAddress)
	for name, c := range map[string]struct {
		from   string
		to     string // separated by blanks
		write  string // with ! for a NUL
		want   string // sender -> recipients
		action pipeline.Action
		err    string
	}{
		"nothing":            {"a@b", "r s", "", "a@b -> r s", 0, ""},
		"the same":           {"a@b", "r s", "Fa@b!Tr!Ts!!", "a@b -> r s", 0, ""},
		"another order":      {"a@b", "r s", "Fa@b!Ts!Tr!!", "a@b -> r s", 0, ""},
		"something behind":   {"a@b", "r", "Fa@b!Tr!!Tx!!", "a@b -> r", 0, ""},
		"a sender":           {"a@b", "r s", "Fx@y!Tr!Ts!!", "x@y -> r s", 0, ""},
		"nobody":             {"a@b", "r", "F!Tr!!", " -> r", 0, ""},
		"from nobody":        {"", "r", "Fx!Tr!!", "x -> r", 0, ""},
		"one leaves":         {"a@b", "r s t", "Fa@b!Tr!Tt!!", "a@b -> r t", 0, ""},
		"one comes":          {"a@b", "r", "Fa@b!Tr!Ts!!", "a@b -> r s", 0, ""},
		"one for another":    {"a@b", "r", "Fa@b!Ts!!", "a@b -> s", 0, ""},
		"one of two":         {"a@b", "r s", "Fa@b!Tr!Tx!!", "a@b -> r x", 0, ""},
		"all for one":        {"a@b", "r s", "Fx@y!Tx!!", "x@y -> x", 0, ""},
		"all for others":     {"a@b", "r s", "Fx@y!Tx!Ty!Tz!!", "x@y -> x y z", 0, ""},
		"nobody is left":     {"a@b", "r s", "Fa@b!!", "", pipeline.Discard, ""},
		"one twice":          {"a@b", "r", "Fa@b!Tr!Tr!!", "a@b -> r r", 0, ""},
		"one once":           {"a@b", "r r", "Fa@b!Tr!!", "a@b -> r", 0, ""},
		"both, twice":        {"a@b", "r r", "Fa@b!Tr!Tr!!", "a@b -> r r", 0, ""},
		"other letters":      {"a@b", "r", "Fa@b!TR!!", "a@b -> R", 0, ""},
		"long ones":          {"a@b", "r", "F" + long + "!T" + long + "!!", long + " -> " + long, 0, ""},
		"none to none":       {"a@b", "", "Fx@y!!", "x@y -> ", 0, ""},
		"too long":           {"a@b", "r", "Fa@b!T" + long + "a!!", "", pipeline.Defer, "more than 1002 bytes"},
		"cut off":            {"a@b", "r", "Fa@b!Tr!", "", pipeline.Defer, "cannot be used"},
		"cut off earlier":    {"a@b", "r", "Fa@b", "", pipeline.Defer, "cannot be used"},
		"only its end":       {"a@b", "r", "!", "", pipeline.Defer, "cannot be used"},
		"a wrong letter":     {"a@b", "r", "Fa@b!Xr!!", "", pipeline.Defer, "cannot be used"},
		"no sender":          {"a@b", "r", "Tr!!", "", pipeline.Defer, "cannot be used"},
		"an empty recipient": {"a@b", "r", "Fa@b!T!!", "", pipeline.Defer, "a recipient is empty"},
		"a line end":         {"a@b", "r", "Fa\nb!Tr!!", "", pipeline.Defer, "control character"},
		"a CR":               {"a@b", "r", "Fa@b!Tr\r!!", "", pipeline.Defer, "control character"},
		"one for none":       {"a@b", "", "Fa@b!Tr!!", "", pipeline.Defer, "a message that has none"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := Options{Command: doing(t, "say=4,")}
			if c.write != "" {
				o.Command = []string{script(t, `printf %s "$1" | tr '!' '\000' >&4`), c.write}
			}
			r := newRig(t, o)
			got := r.runAs(filtertest.Stranger(), envelope.To(c.from, strings.Fields(c.to)...), message.FromString(plain))
			if got.envelope != c.want || got.action != c.action || !strings.Contains(got.err, c.err) || c.err == "" && got.err != "" {
				t.Errorf("%.400v, want %.400v", got, c)
			}
			if c.want != "" && got.text != plain {
				t.Errorf("%q is stored", got.text)
			}
		})
	}
}

// Envelope and message are changed together, or a part of the recipients only.
func TestBoth(t *testing.T) {
	both := script(t, `echo 'X: y'; cat; printf 'Fx@y\0Ts@example.org\0Tnew@example.org\0\0' >&4`)
	r := newRig(t, Options{Command: []string{both}})
	got := r.runAs(filtertest.Stranger(), envelope.To("a@b", "r@example.org", "s@example.org"), message.FromString(plain))
	if got.text != "X: y\n"+plain || got.envelope != "x@y -> s@example.org new@example.org" || got.action != pipeline.Discard {
		t.Errorf("%+v", got)
	}
	// One who is decided about already is no program's business.
	f, err := New(environment(t), Options{Command: []string{both}})
	if err != nil {
		t.Fatal(err)
	}
	tx := transaction()
	tx.Envelope = envelope.To("a@b", "gone@example.org", "s@example.org", "r@example.org")
	tx.Active = []int{1, 2}
	v, err := (instance{f}).Message(t.Context(), tx, message.FromString(plain))
	if err != nil || len(v.Others) != 1 || !slices.Equal(v.Others[0].Only, []int{2}) || v.Others[0].Action != pipeline.Discard || len(v.Edits) != 3 {
		t.Errorf("%+v %v", v, err)
	}
}

// A recipient whose address a program writes anew in its place stays the same
// recipient, with what the client wants to be told about it.
func TestParameters(t *testing.T) {
	parts := func(all ...string) (e envelope.Envelope) {
		e.Sender = "a@b"
		for _, a := range all {
			e.Recipients = append(e.Recipients, envelope.Recipient{Address: a, DSN: &envelope.DSN{ORcpt: "rfc822;was-" + a, Notify: envelope.NotifyNever}})
		}
		return e
	}
	for name, c := range map[string]struct{ write, want string }{
		"in their places":  {"TA!Tb!TC!", "A rfc822;was-a, C rfc822;was-c, b rfc822;was-b"},
		"all of them":      {"TA!TB!TC!", "A rfc822;was-a, B rfc822;was-b, C rfc822;was-c"},
		"to one":           {"Tb!Tb!Tb!", "b , b , b rfc822;was-b"},
		"one goes":         {"Ta!Tc!", "a rfc822;was-a, c rfc822;was-c"},
		"another in front": {"Tx!Ta!Tb!", "a rfc822;was-a, b rfc822;was-b, x "},
	} {
		r := newRig(t, Options{Command: []string{script(t, `printf %s "$1" | tr '!' '\000' >&4`), "Fa@b!" + c.write + "!"}})
		o := r.chain.Run(t.Context(), &pipeline.Transaction{ID: "t1", Session: filtertest.Stranger(), Envelope: parts("a", "b", "c")}, message.FromString(plain))
		var got []string
		for _, out := range o.Outgoing {
			for _, r := range out.Envelope.Recipients {
				d := envelope.DSN{}
				if r.DSN != nil {
					d = *r.DSN
				}
				got = append(got, r.Address+" "+d.ORcpt)
				if (d.Notify == envelope.NotifyNever) != (d.ORcpt != "") {
					t.Errorf("%s: %+v", name, d)
				}
			}
		}
		o.Release()
		slices.Sort(got)
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s: %s, want %s", name, s, c.want)
		}
	}
}

// A program may name another qmail-queue, and the table says what that means.
func TestQueues(t *testing.T) {
	queues := map[string]string{
		"/usual": "continue", "/hold": "quarantine", "/drop": "discard", "/no": "554 5.7.1 not here", "/never": "error", "/later": "defer",
	}
	for _, c := range []struct {
		write, exit string
		action      pipeline.Action
		says        string // in reply, reason or error
	}{
		{"", "0", pipeline.Continue, ""},
		{"/usual", "0", pipeline.Continue, ""},
		{"/usual!", "0", pipeline.Continue, ""},
		{"/usual!e", "0", pipeline.Continue, ""},
		{"/hold!", "0", pipeline.Quarantine, "it is to go to the queue program /hold"},
		{"/drop!", "0", pipeline.Discard, "/drop"},
		{"/no!", "0", pipeline.Reject, "554 5.7.1 not here"},
		{"/later!", "0", pipeline.Defer, "451 4.7.1"},
		{"/never!", "0", pipeline.Defer, "wants the message to go to the queue program /never"},
		{"/other!", "0", pipeline.Defer, "write into the table queues"},
		{"!", "0", pipeline.Defer, "without a name"},
		{"/" + strings.Repeat("x", maxQueue), "0", pipeline.Defer, "more than 4095 bytes"},
		{"/other!", "31", pipeline.Reject, "554"},
		{"/other!", "99", pipeline.Discard, "exit 99"},
		{"/hold!", "44", pipeline.Accept, ""},
	} {
		q := queues
		if c.exit == "44" {
			q = map[string]string{"/hold": "accept"}
		}
		r := newRig(t, Options{Queues: q, Exits: map[string]string{"44": "accept"}, Command: []string{script(t, `printf %s "$1" | tr '!' '\000' >&5; exit $2`), c.write, c.exit}})
		got := r.run(plain)
		if got.action != c.action || !strings.Contains(got.reply+got.reason+got.err, c.says) {
			t.Errorf("%.40q: %.300v, want %v", c.write, got, c)
		}
		if want := map[bool]string{true: plain}[c.action == pipeline.Continue || c.action == pipeline.Accept || c.action == pipeline.Quarantine]; got.text != want {
			t.Errorf("%.40q: %q is stored", c.write, got.text)
		}
	}
	// The file is the same for all programs, and begins at its start for each.
	say := func(text string) string { return script(t, `printf %s "`+text+`" | tr '!' '\000' >&5`) }
	r := newRig(t, Options{Queues: queues, Programs: [][]string{{say("/a/longer/path!")}, {say("/hold!")}, {"true"}}})
	if got := r.run(plain); got.action != pipeline.Quarantine || got.text != plain {
		t.Errorf("%+v", got)
	}
}

// A message that a program has held by its exit code stays held, wherever it was
// to go.
func TestHeldStaysHeld(t *testing.T) {
	r := newRig(t, Options{
		Queues: map[string]string{"/drop": "discard"}, Exits: map[string]string{"40": "quarantine"},
		Command: []string{script(t, `echo X: y; cat; printf '/drop\0' >&5; exit 40`)},
	})
	if got := r.run(plain); got.action != pipeline.Quarantine || got.text != "X: y\n"+plain || !strings.Contains(got.reason, "exit 40") {
		t.Errorf("%+v", got)
	}
}

func FuzzEnvelope(f *testing.F) {
	for _, s := range []string{"", "F", "Fa\x00Tb\x00\x00", "Fa\x00Tb\x00", "F\x00\x00x", "Fa\x00Q", "Ta\x00\x00", "Fa\x00T\x00\x00", "Fa\x00Tb\x00Tb\x00Tc\x00\x00"} {
		f.Add([]byte(s), 2)
	}
	f.Fuzz(func(t *testing.T, raw []byte, n int) {
		e, err := parseEnvelope(raw)
		if err != nil {
			return
		}
		again, err := envelope.Append(nil, e)
		if err != nil || !e.NoScan && !bytes.HasPrefix(raw, again) {
			t.Fatalf("%q is read as %q: %v", raw, again, err)
		}
		// What is compared with it comes to the same recipients, each as often.
		was := envelope.To("a@b", "b", "c", "b")
		active := []int{0, 1, 2}[:min(max(n, 0), 3)]
		gone, added := compare(was, active, e)
		var left []string
		for _, i := range active {
			if !slices.Contains(gone, i) {
				left = append(left, was.Recipients[i].Address)
			}
		}
		got, want := append(left, added...), e.Addresses()
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("%q, want %q", got, want)
		}
	})
}

func FuzzQueue(f *testing.F) {
	for _, s := range []string{"", "\x00", "/bin/q", "/bin/q\x00", "/bin/q\x00ueue\x00"} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		path, err := parseQueue(b, whole)
		switch {
		case err == nil && (path == "") != (len(b) == 0), strings.Contains(path, "\x00"), !bytes.HasPrefix(b, []byte(path)):
			t.Fatalf("%q is %q", b, path)
		case err == nil && !whole && len(b) > 0 && len(path) == len(b):
			t.Fatalf("%q is cut off", b)
		}
	})
}

// FuzzSplit takes what a program may write apart: head and body are what it wrote,
// repaired if the message came in the canonical form, and no body is lost.
func FuzzSplit(f *testing.F) {
	for _, c := range [][2]string{
		{plain, plain},
		{plain, "X: y\n" + plain},
		{plain, "A: b\n\nnew\n"},
		{plain, "A: b\r\n\r\nnew\x00\r"},
		{"A: b\n\nB: c\n\nx\n", "B: c\n\nx\n"},
		{"A: b\n\nx", "A: b\r\n\r\nx"},
		{"", "x"},
		{"\n", "\n\n"},
		{"x\n", "A: b\nx\n"},
		{"A: b\n\nx\n", " y\n\nx\n"},
		{"A: b\n\nx\n", "A: b\n \n\nx\n"},
	} {
		f.Add([]byte(c[0]), []byte(c[1]), false)
		f.Add([]byte(c[0]), []byte(c[1]), true)
	}
	f.Fuzz(func(t *testing.T, in, out []byte, refuse bool) {
		if len(out) == 0 {
			return // an empty one leaves the message as it is
		}
		old := message.FromString(string(in))
		s := splitter{out: bytes.NewReader(out), size: int64(len(out)), old: old}
		if refuse {
			s.lines = message.Refuse
		}
		canonical := !bytes.ContainsAny(in, "\r\x00") && (len(in) == 0 || in[len(in)-1] == '\n')
		o := message.Options{Lines: message.Keep}
		if canonical {
			o.Lines = s.lines
		}
		head, body, err := s.split()
		want, wrong := message.Read(bytes.NewReader(out), o)
		if bytes.Equal(in, out) {
			want, wrong = old, nil
		}
		if (err == nil) != (wrong == nil) {
			t.Fatalf("%v, want %v", err, wrong)
		}
		if err != nil {
			return
		}
		m := old
		if body != nil {
			m = message.New(m.Head(), body)
		}
		if head != nil {
			m = message.New(*head, m.Body())
		}
		if got := m.Bytes(); !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("%q, want %q", got, want.Bytes())
		}
		if m.HeadText() != want.HeadText() {
			t.Fatalf("the head is %q, want %q", m.HeadText(), want.HeadText())
		}
		if body != nil && body != old.Body() && body.Size() > 0 && body.Size() == old.Body().Size() && bytes.Equal(m.Bytes()[len(m.HeadText()):], old.Bytes()[len(old.HeadText()):]) {
			t.Fatal("the body has been copied, and is the same")
		}
	})
}
