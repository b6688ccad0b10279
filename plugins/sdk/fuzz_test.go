package sdk

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/postern-mta/postern/plugins/wire"
)

// nosy is a plugin that looks at everything and answers for each recipient.
func nosy(needs Needs) Plugin[None] {
	message := func(_ context.Context, _ *None, m *Message) (Verdict, error) {
		v := Continue()
		if needs == NeedsHead || needs == NeedsBody {
			raw := ""
			for _, f := range m.Fields() {
				raw += f.Raw
				_ = m.Text(f.Name)
			}
			if raw != m.Head() {
				panic("the fields are not the head")
			}
			v = v.Replace("Subject", strings.Join(strings.Fields(m.Subject()), " "))
		}
		if needs == NeedsBody {
			b, err := io.ReadAll(m.Body())
			if err != nil {
				return v, err
			}
			if int64(len(b)) != m.BodySize {
				panic("the body has another size")
			}
		}
		for _, r := range m.Recipients {
			v = v.And(Quarantine(r).For(r))
		}
		return v, nil
	}
	return Plugin[None]{
		Name: "nosy", Needs: needs, Edits: EditsHead,
		Connect: func(_ context.Context, _ *None, s *Session) (Verdict, error) {
			return Defer("", s.Remote.String()), nil
		},
		Helo:   func(_ context.Context, _ *None, s *Session) (Verdict, error) { return Reject("", s.Helo), nil },
		Sender: func(_ context.Context, _ *None, tx *Transaction) (Verdict, error) { return Reject("", tx.Sender), nil },
		Recipient: func(_ context.Context, _ *None, tx *Transaction, r string) (Verdict, error) {
			return Reject("", r+tx.ID), nil
		},
		Message: message,
	}
}

// FuzzJudge gives a plugin calls that Postern would not make. None may end the
// process, and what is answered must be consistent.
func FuzzJudge(f *testing.F) {
	file := filepath.Join(f.TempDir(), "body")
	if err := os.WriteFile(file, []byte(strings.Repeat("0123456\n", 4<<10)), 0o600); err != nil {
		f.Fatal(err)
	}
	add := func(q *wire.JudgeRequest) {
		b, err := proto.Marshal(q)
		if err != nil {
			f.Fatal(err)
		}
		for needs := range needsOnWire {
			f.Add(uint8(needs), b)
		}
	}
	session := &wire.Session{RemoteIp: "192.0.2.1", RemotePort: 25, Helo: []byte("h")}
	tx := &wire.Transaction{Sender: []byte("s"), Recipients: [][]byte{[]byte("a"), []byte("b"), []byte("a")}, Active: []uint32{0, 2}}
	add(&wire.JudgeRequest{Stage: wire.Stage_STAGE_CONNECT, Session: session})
	add(&wire.JudgeRequest{Stage: wire.Stage_STAGE_HELO, Session: &wire.Session{RemoteIp: "x"}})
	add(&wire.JudgeRequest{Stage: wire.Stage_STAGE_SENDER, Session: session, Transaction: tx})
	add(&wire.JudgeRequest{Stage: wire.Stage_STAGE_RECIPIENT, Session: session, Transaction: tx, Recipient: []byte("r")})
	add(&wire.JudgeRequest{Stage: wire.Stage_STAGE_MESSAGE, Session: session, Transaction: tx, Message: &wire.Message{
		Head: []byte("Subject: a\n =?utf-8?q?=00=0A?=\nx\n y\n: z\n"), HeadSize: 40, BodySize: 2, Body: &wire.Message_Inline{Inline: []byte("b\n")},
	}})
	add(&wire.JudgeRequest{Stage: wire.Stage_STAGE_MESSAGE, Transaction: tx, Message: &wire.Message{BodySize: 16, Body: &wire.Message_File{File: &wire.File{Path: "x", Offset: 8, Size: 16}}}})
	add(&wire.JudgeRequest{Stage: 77, Transaction: &wire.Transaction{Active: []uint32{1 << 31}}})
	f.Fuzz(func(t *testing.T, needs uint8, b []byte) {
		q := new(wire.JudgeRequest)
		if proto.Unmarshal(b, q) != nil {
			return
		}
		if where := q.GetMessage().GetFile(); where.GetPath() != "" {
			where.Path = file
			if where.Size > 64<<10 {
				where.Size, q.Message.BodySize = 64<<10, 64<<10
			}
		}
		s, err := nosy(Needs(needs) % Needs(len(needsOnWire))).Server()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Configure(t.Context(), &wire.ConfigureRequest{Handle: q.Handle}); err != nil {
			t.Fatal(err)
		}
		r, err := s.Judge(t.Context(), q)
		if err != nil {
			if status.Code(err) == codes.Internal && strings.Contains(err.Error(), "panic") {
				t.Fatal(err)
			}
			return
		}
		named := map[uint32]bool{}
		for _, v := range r.GetVerdicts() {
			for _, n := range v.GetRecipients() {
				if int(n) >= len(q.GetTransaction().GetRecipients()) {
					t.Fatalf("recipient %d of %d", n, len(q.GetTransaction().GetRecipients()))
				}
				if named[n] {
					t.Fatalf("recipient %d is named twice", n)
				}
				named[n] = true
			}
			if text := v.GetReply().GetText() + v.GetReason(); strings.ContainsAny(text, "\r\n\x00") {
				t.Fatalf("a text of several lines: %q", text)
			}
		}
		if _, err := proto.Marshal(r); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzOptions gives a filter options that Postern would not give it.
func FuzzOptions(f *testing.F) {
	for _, text := range []string{
		`{"must": "x"}`, `{}`, `[]`, `{"must": "x", "small": 300}`, `{"whole": 1e99}`, `{"list": [null], "table": {"a": 1}}`,
		`{"must": "x", "net": "::/0", "pattern": "(", "wait": -1, "size": 1.5, "flag": "true"}`, `{"must": null, "must": "y", "": 0}`,
	} {
		f.Add([]byte(text))
	}
	s, err := schemaOf(new(all))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var o, again all
		wrong := s.decode(text, &o)
		if len(wrong) == 0 && o.Must == "" && !strings.Contains(string(text), "must") {
			t.Fatalf("what must be written is not, and nobody says so: %s", text)
		}
		for _, p := range wrong {
			if _, err := proto.Marshal(p); err != nil {
				t.Fatal(err)
			}
			if p.GetText() == "" {
				t.Fatal("a problem without a word")
			}
		}
		if len(s.decode(text, &again)) != len(wrong) {
			t.Fatal("twice the same is not the same")
		}
	})
}
