package limit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// Record is what outlives a restart: what was found out, or what operators have
// said. On disk it is lines of JSON: a head with version and time, one for each
// thing, and at the end their number and a sum (CRC-32C) of all that is before.
type Record struct {
	// Time is when it was made.
	Time    time.Time
	Learned []Learned
	Blocks  []BlockState
	Used    []Used
	Held    []Held
}

// recordVersion is that of the records that are written and read.
const recordVersion = 1

// The bounds of a record that is read.
const (
	maxLine = 32 << 10
	// MaxLearned is the most that a record has of each kind of thing.
	MaxLearned = 100_000
	maxName    = 1000
	maxReason  = 4 << 10
)

// line is a line of a record; one of the fields is set.
type line struct {
	Head    *head       `json:"limits,omitempty"`
	Learned *Learned    `json:"learned,omitempty"`
	Block   *BlockState `json:"block,omitempty"`
	Used    *Used       `json:"used,omitempty"`
	Held    *held       `json:"held,omitempty"`
	End     *end        `json:"end,omitempty"`
}

type head struct {
	Version int       `json:"version"`
	Time    time.Time `json:"time"`
}

type end struct {
	Lines int    `json:"lines"`
	Sum   uint32 `json:"sum"`
}

// held is a Held as it is written.
type held struct {
	Level     Level      `json:"level"`
	Name      string     `json:"name"`
	Suspended bool       `json:"suspended,omitempty"`
	Bounds    heldBounds `json:"bounds,omitzero"`
	Since     time.Time  `json:"since,omitzero"`
	Until     time.Time  `json:"until,omitzero"`
	Why       string     `json:"why,omitempty"`
}

type heldBounds struct {
	Connections    int  `json:"connections,omitempty"`
	NewConnections Rate `json:"new_connections,omitzero"`
	Messages       Rate `json:"messages,omitzero"`
	MessagesEach   int  `json:"messages_each,omitempty"`
	RecipientsEach int  `json:"recipients_each,omitempty"`
}

// MarshalText is encoding.TextMarshaler.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText is encoding.TextUnmarshaler, the inverse of String.
func (l *Level) UnmarshalText(text []byte) error {
	for i, name := range levelNames {
		if name == string(text) {
			*l = Level(i)
			return nil
		}
	}
	return fmt.Errorf("%.40q is no level", text)
}

var recordSum = crc32.MakeTable(crc32.Castagnoli)

// Write writes a record.
func (r *Record) Write(w io.Writer) error {
	out := bufio.NewWriterSize(w, 64<<10)
	sum, lines := uint32(0), 0
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	put := func(l line) error {
		b.Reset()
		if err := enc.Encode(l); err != nil {
			return err
		}
		sum = crc32.Update(sum, recordSum, b.Bytes())
		lines++
		_, err := b.WriteTo(out)
		return err
	}
	if err := put(line{Head: &head{recordVersion, r.Time.UTC()}}); err != nil {
		return err
	}
	for i := range r.Learned {
		if err := put(line{Learned: &r.Learned[i]}); err != nil {
			return err
		}
	}
	for i := range r.Blocks {
		if err := put(line{Block: &r.Blocks[i]}); err != nil {
			return err
		}
	}
	for i := range r.Used {
		if err := put(line{Used: &r.Used[i]}); err != nil {
			return err
		}
	}
	for _, h := range r.Held {
		err := put(line{Held: &held{
			h.Key.Level, h.Key.Name, h.Suspended, heldBounds(h.Bounds), utc(h.Since), utc(h.Until), h.Why,
		}})
		if err != nil {
			return err
		}
	}
	if err := put(line{End: &end{lines, sum}}); err != nil {
		return err
	}
	return out.Flush()
}

// utc is a time in UTC, in which a zero one stays what it is.
func utc(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC()
}

// ReadRecord reads a record. With an error, which tells the first thing that is
// wrong with it, comes what can be understood all the same.
func ReadRecord(from io.Reader) (r Record, err error) {
	in := bufio.NewScanner(from)
	in.Buffer(make([]byte, 0, 4<<10), maxLine)
	wrong := func(n int, e error) {
		if err == nil {
			err = fmt.Errorf("line %d: %w", n, e)
		}
	}
	sum, n, ended := uint32(0), 0, false
	for ; in.Scan(); n++ {
		var l line
		text := in.Bytes()
		switch e := json.Unmarshal(text, &l); {
		case e != nil:
			wrong(n+1, e)
		case ended:
			wrong(n+1, errors.New("it is behind the end"))
			return r, err
		case n == 0 && l.Head == nil:
			wrong(n+1, errors.New("this is no record of limits"))
			return r, err
		case l.Head != nil && (n > 0 || l.Head.Version != recordVersion):
			wrong(n+1, fmt.Errorf("a record of version %d: only %d is understood", l.Head.Version, recordVersion))
			return r, err
		case l.Head != nil:
			r.Time = l.Head.Time
		case l.End != nil:
			if ended = true; l.End.Lines != n || l.End.Sum != sum {
				wrong(n+1, errors.New("the sum does not agree"))
			}
		default:
			if e := r.take(&l); e != nil {
				wrong(n+1, e)
			}
		}
		sum = crc32.Update(crc32.Update(sum, recordSum, text), recordSum, []byte{'\n'})
	}
	switch {
	case in.Err() != nil:
		wrong(n+1, in.Err())
	case !ended:
		wrong(n+1, errors.New("the end is missing"))
	}
	return r, err
}

// take takes in a line.
func (r *Record) take(l *line) error {
	switch {
	case max(len(r.Learned), len(r.Blocks), len(r.Used), len(r.Held)) >= MaxLearned:
		return errors.New("there are too many")
	case l.Learned != nil:
		if !named(l.Learned.Site) || !clean(l.Learned.Source) {
			return errors.New("a site without a name")
		}
		r.Learned = append(r.Learned, *l.Learned)
	case l.Block != nil:
		if !named(l.Block.Provider) || !clean(l.Block.Source) {
			return errors.New("a provider without a name")
		}
		r.Blocks = append(r.Blocks, *l.Block)
	case l.Used != nil:
		r.Used = append(r.Used, *l.Used) // which ImportUsed checks
	case l.Held != nil:
		h, err := l.Held.held()
		if err != nil {
			return err
		}
		r.Held = append(r.Held, h)
	default:
		return errors.New("it says nothing that is understood")
	}
	return nil
}

func named(s string) bool { return s != "" && clean(s) }

// clean reports whether a text can be a name.
func clean(s string) bool {
	return len(s) <= maxName && !strings.ContainsAny(s, "\x00\r\n") && utf8.ValidString(s)
}

// held is what is written, checked.
func (h *held) held() (Held, error) {
	b := h.Bounds
	got := Held{
		Key: Key{h.Level, h.Name}, Suspended: h.Suspended, Bounds: Bounds(b),
		Since: h.Since, Until: h.Until, Why: clipped(h.Why, maxReason),
	}
	for _, n := range []int{b.Connections, b.MessagesEach, b.RecipientsEach} {
		if n < None || n > math.MaxInt32 {
			return Held{}, fmt.Errorf("%d is no limit", n)
		}
	}
	switch {
	case !named(h.Name) || h.Level == Adapted:
		return Held{}, errors.New("it is not said what it is about")
	case h.Suspended == (got.Bounds != Bounds{}):
		return Held{}, errors.New("it is neither a suspension nor a limit")
	}
	return got, nil
}
