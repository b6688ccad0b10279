package queuetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"

	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/queue/store"
)

// Model is what a store holds, in a map.
type Model struct {
	Messages map[store.ID]Stored
	Policies map[string]string
}

// Stored is a message in a Model.
type Stored struct {
	// Message has no BodyInfo.File: that is the store's own business.
	Message store.Message
	Body    string
	States  map[uint32]store.State
	Hold    *store.Hold
}

// NewModel is an empty store.
func NewModel() *Model {
	return &Model{Messages: make(map[store.ID]Stored), Policies: make(map[string]string)}
}

// Clone is a copy that can be changed by Apply.
func (m *Model) Clone() *Model {
	return &Model{Messages: maps.Clone(m.Messages), Policies: maps.Clone(m.Policies)}
}

// Apply does what a store does with a batch.
func (m *Model) Apply(b *store.Batch) {
	bodies := make(map[store.ID]*message.Body)
	for _, p := range b.Puts {
		if of := p.Message.Body.Of; of == 0 || of == p.Message.ID {
			bodies[p.Message.ID] = p.Body
		}
	}
	for _, p := range b.Puts {
		msg := p.Message
		if msg.Body.Of == 0 {
			msg.Body.Of = msg.ID
		}
		body := bodies[msg.Body.Of]
		msg.Body = store.BodyInfo{Of: msg.Body.Of, Size: body.Size(), LFs: body.LFs(), EightBit: body.EightBit()}
		m.Messages[msg.ID] = Stored{Message: msg, Body: content(body), Hold: p.Hold}
	}
	for _, c := range b.States {
		if s, ok := m.Messages[c.ID]; ok {
			s.States = maps.Clone(s.States)
			if s.States == nil {
				s.States = make(map[uint32]store.State)
			}
			s.States[c.Recipient] = c.State
			m.Messages[c.ID] = s
		}
	}
	for _, c := range b.Holds {
		if s, ok := m.Messages[c.ID]; ok {
			s.Hold = c.Hold
			m.Messages[c.ID] = s
		}
	}
	for _, id := range b.Removes {
		delete(m.Messages, id)
	}
	for _, p := range b.Policies {
		if len(p.Value) == 0 {
			delete(m.Policies, p.Name)
		} else {
			m.Policies[p.Name] = string(p.Value)
		}
	}
}

func content(b *message.Body) string {
	text, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	if err != nil {
		panic(fmt.Sprintf("a body of the test cannot be read: %v", err))
	}
	return string(text)
}

// IDs are those of all messages, ascending.
func (m *Model) IDs() []store.ID { return slices.Sorted(maps.Keys(m.Messages)) }

// Diff says how got differs, "" if it does not.
func (m *Model) Diff(got *Model) string {
	for _, id := range got.IDs() {
		if _, ok := m.Messages[id]; !ok {
			return fmt.Sprintf("message %s is there and should not be", id)
		}
	}
	for _, id := range m.IDs() {
		want := m.Messages[id]
		have, ok := got.Messages[id]
		switch {
		case !ok:
			return fmt.Sprintf("message %s is missing", id)
		case have.Body != want.Body:
			return fmt.Sprintf("message %s has a body of %d bytes that is not the one of %d bytes that was put", id, len(have.Body), len(want.Body))
		case !reflect.DeepEqual(have.Message, want.Message):
			return fmt.Sprintf("message %s is %+v, not %+v", id, have.Message, want.Message)
		case len(have.States)+len(want.States) > 0 && !reflect.DeepEqual(have.States, want.States):
			return fmt.Sprintf("message %s has the states %+v, not %+v", id, have.States, want.States)
		case !reflect.DeepEqual(have.Hold, want.Hold):
			return fmt.Sprintf("message %s has the hold %+v, not %+v", id, have.Hold, want.Hold)
		}
	}
	if !maps.Equal(m.Policies, got.Policies) {
		return fmt.Sprintf("the policies are %q, not %q", got.Policies, m.Policies)
	}
	return ""
}

// Read reads all of a store, each message by Scan and by Message.
func Read(s store.Store) (*Model, error) {
	r, err := s.Reader()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	m := NewModel()
	var last store.ID
	err = r.Scan(0, func(e *store.Entry) error {
		id := e.Message.ID
		if id <= last {
			return fmt.Errorf("scan gives %s after %s", id, last)
		}
		last = id
		one, err := readOne(r, e)
		if err != nil {
			return fmt.Errorf("message %s: %w", id, err)
		}
		m.Messages[id] = one
		return nil
	})
	if err != nil {
		return nil, err
	}
	policies, err := r.Policies()
	for _, p := range policies {
		m.Policies[p.Name] = string(p.Value)
	}
	return m, err
}

func readOne(r store.Reader, e *store.Entry) (Stored, error) {
	msg, err := r.Message(e.Message.ID)
	if err != nil {
		return Stored{}, err
	}
	if !reflect.DeepEqual(msg, e.Message) {
		return Stored{}, fmt.Errorf("a scan gives %+v, a look %+v", e.Message, msg)
	}
	body, err := r.Body(msg)
	if err != nil {
		return Stored{}, fmt.Errorf("its body: %w", err)
	}
	defer body.Release()
	var text bytes.Buffer
	if _, err := message.New(message.Head{}, body).WriteTo(&text); err != nil {
		return Stored{}, fmt.Errorf("its body: %w", err)
	}
	if body.Size() != msg.Body.Size || body.LFs() != msg.Body.LFs || body.EightBit() != msg.Body.EightBit {
		return Stored{}, errors.New("its body is described wrongly")
	}
	one := Stored{Message: *msg, Body: text.String()}
	one.Message.Body.File = false
	for i, s := range e.States {
		if s.ID != msg.ID || i > 0 && s.Recipient <= e.States[i-1].Recipient {
			return Stored{}, fmt.Errorf("states out of order: %+v", e.States)
		}
		if one.States == nil {
			one.States = make(map[uint32]store.State)
		}
		one.States[s.Recipient] = s.State
	}
	if e.Hold != nil {
		h := *e.Hold
		one.Hold = &h
	}
	return one, nil
}
