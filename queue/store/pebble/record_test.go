package pebble

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/queue/store"
)

// record is one kind of record: decode gives back what encode makes of it.
type record struct {
	name string
	// again decodes and encodes; nil if the record is refused.
	again func(b []byte) ([]byte, error)
	valid [][]byte
}

func records() []record {
	due := time.Unix(1_790_000_000, 0).UTC()
	full := header{
		recipients: 2, shared: true,
		message: store.Message{
			Envelope: envelope.Envelope{Sender: "a@b", NoScan: true, UTF8: true, RequireTLS: true, Ret: "FULL", EnvID: "x+2B"},
			Head:     "A: b\n\n", Form: message.UTF8, Origin: []byte("o"), Bounce: 2, Arrived: time.UnixMilli(1_790_000_000_123).UTC(),
			Body: store.BodyInfo{Of: 1 << 62, File: true, Size: 1 << 40, LFs: 300, EightBit: true},
		},
	}
	state := store.State{
		Status: store.Failed, Attempts: 65535, Due: due, Last: due, Where: "mx [192.0.2.1]:25", Perhaps: true, Warned: true, Reported: true,
		Reply: reply.Make(550, reply.Enhanced{Subject: 1, Detail: 1}, "no such user"),
	}
	two := []envelope.Recipient{{Address: "x@y"}, {Address: "\"\n\" z@y", DSN: &envelope.DSN{Notify: envelope.NotifyDelay, ORcpt: "rfc822;q"}}}
	hold := store.Hold{Reason: "r", Filter: "f", By: "b", Since: due}
	return []record{
		{"header", func(b []byte) ([]byte, error) {
			h, err := decodeHeader(envelopeKey(1, 0), b)
			return appendHeader(nil, &h), err
		}, [][]byte{appendHeader(nil, &full), appendHeader(nil, &header{recipients: 1})}},
		{"recipients", func(b []byte) ([]byte, error) {
			r, err := decodeRecipients(envelopeKey(1, 1), b, 2, nil)
			return appendRecipients(nil, r), err
		}, [][]byte{appendRecipients(nil, two)}},
		{"state", func(b []byte) ([]byte, error) {
			s, err := decodeState(stateKey(1, 1), b)
			return appendState(nil, &s), err
		}, [][]byte{appendState(nil, &state), appendState(nil, &store.State{})}},
		{"hold", func(b []byte) ([]byte, error) {
			h, err := decodeHold(holdKey(1), b)
			return appendHold(nil, &h), err
		}, [][]byte{appendHold(nil, &hold), appendHold(nil, &store.Hold{})}},
		{"body", func(b []byte) ([]byte, error) {
			content, file, size, err := decodeBody(bodyKey(1), b)
			if file {
				return appendBodyFile(nil, size), err
			}
			return append([]byte{bodyInline}, content...), err
		}, [][]byte{{bodyInline}, []byte("\x00text"), appendBodyFile(nil, 70_000)}},
		{"number", func(b []byte) ([]byte, error) {
			n, err := decodeNumber(idsKey, b)
			return appendNumber(nil, n), err
		}, [][]byte{appendNumber(nil, 0), appendNumber(nil, 1<<63)}},
	}
}

func checkRecord(t *testing.T, r record, b []byte) (taken bool) {
	t.Helper()
	got, err := r.again(b)
	if err == nil {
		if !bytes.Equal(got, b) {
			t.Errorf("%s: %q is read as what is written %q", r.name, b, got)
		}
		return true
	}
	var d *Damage
	if !errors.As(err, &d) || d.Offset < 0 || d.Offset > len(b) || d.Key == "" {
		t.Errorf("%s: %q gives the error %v", r.name, b, err)
	}
	return false
}

func TestRecords(t *testing.T) {
	for _, r := range records() {
		for _, b := range r.valid {
			if !checkRecord(t, r, b) {
				_, err := r.again(b)
				t.Errorf("%s: %q is refused: %v", r.name, b, err)
			}
			for n := range b { // nothing shorter is a record, nor longer
				if checkRecord(t, r, b[:n]) && b[0] != bodyInline {
					t.Errorf("%s: %q is taken, of %d bytes", r.name, b[:n], len(b))
				}
			}
			if b[0] != bodyInline && checkRecord(t, r, append(bytes.Clone(b), 0)) {
				t.Errorf("%s: a byte more is taken", r.name)
			}
			for i := range b { // no byte may be spoiled into a panic
				for _, c := range []byte{0, 1, 2, 0x7f, 0x80, 0xff} {
					spoilt := bytes.Clone(b)
					spoilt[i] = c
					checkRecord(t, r, spoilt)
				}
			}
		}
	}
}

// TestStateBounds writes what a caller should not have given, and reads it.
func TestStateBounds(t *testing.T) {
	s := store.State{
		Due: time.Unix(-5, 0), Last: time.Unix(1<<60, 0), Where: strings.Repeat("w", 400) + "\n",
		Reply: reply.Reply{Class: 9, Code: -1, Text: strings.Repeat("x", store.MaxReply-1) + " \r\nT evil@x"},
	}
	got, err := decodeState(stateKey(1, 0), appendState(nil, &s))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Reply.Text) > store.MaxReply || len(got.Where) > store.MaxWhere || strings.Contains(got.Reply.Text, "\n") || got.Due.Unix() != 0 || got.Reply.Code != 0 {
		t.Errorf("%+v", got)
	}
	h := store.Hold{Reason: strings.Repeat("r", 5000), Since: time.Unix(-1, 0)}
	if back, err := decodeHold(holdKey(1), appendHold(nil, &h)); err != nil || len(back.Reason) != maxHoldText {
		t.Errorf("%v %v", back, err)
	}
}

func TestDamageSaysWhereAndWhat(t *testing.T) {
	b := records()[0].valid[0]
	b[1] = 0xff
	_, err := decodeHeader(envelopeKey(7, 0), b)
	if want := "damaged record e 0000000000007.0 at byte 2: unknown flags 0xff: the message is set aside, see `postern queue verify`"; err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
}

func FuzzRecord(f *testing.F) {
	all := records()
	for i, r := range all {
		for _, b := range r.valid {
			f.Add(uint8(i), b)
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		checkRecord(t, all[int(kind)%len(all)], b)
	})
}

func TestKeys(t *testing.T) {
	for _, c := range []struct {
		key  []byte
		name string
	}{
		{bodyKey(1), "b 0000000000001"},
		{envelopeKey(1, 2), "e 0000000000001.2"},
		{stateKey(1, 3), "s 0000000000001.3"},
		{holdKey(1), "ph 0000000000001"},
		{sharerKey(1, 2), "pr 0000000000001 0000000000002"},
		{policyKey("x"), `"ppx"`},
		{nil, "the empty key"},
	} {
		if got := keyName(c.key); got != c.name {
			t.Errorf("%q is %q, not %q", c.key, got, c.name)
		}
	}
	if got := successor([]byte{1, 0xff, 0xff}); !reflect.DeepEqual(got, []byte{2}) {
		t.Errorf("%v", got)
	}
	if bytes.Compare(envelopeKey(1, 1<<31), envelopeKey(2, 0)) >= 0 || bytes.Compare(stateKey(255, 0), stateKey(256, 0)) >= 0 {
		t.Error("keys do not sort as numbers")
	}
}
