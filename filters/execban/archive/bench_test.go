package archive

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/klauspost/compress/flate"

	"github.com/postern-mta/postern/filters/execban/archive/archivetest"
)

// prose is text that packs as text does.
func prose(n int) []byte {
	words := bytes.Fields([]byte("the quick brown fox jumps over a lazy dog while seven wizards box with jugs of liquor and amazingly few discotheques provide jukeboxes"))
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(append(b, words[r.IntN(len(words))]...), ' ')
		if r.IntN(4) == 0 {
			b = append(b, byte('0'+r.IntN(10)), byte('a'+r.IntN(26)))
		}
	}
	return b[:n]
}

// BenchmarkZip walks a zip of about 20 MiB, packed, and compares with the floor:
// unpacking the same bytes to nowhere.
func BenchmarkZip(b *testing.B) {
	var members []archivetest.Member
	unpacked := int64(0)
	for i := range 8 {
		content := prose(6 << 20)
		members = append(members, archivetest.Member{Name: string(rune('a'+i)) + ".txt", Content: content, Method: archivetest.Deflated})
		unpacked += int64(len(content))
	}
	content := archivetest.Zip("", members...)
	b.Logf("%d bytes, %d unpacked", len(content), unpacked)
	var packed bytes.Buffer
	w, _ := flate.NewWriter(&packed, 9)
	w.Write(members[0].Content)
	w.Close()
	var floor time.Duration
	b.Run("inflate", func(b *testing.B) {
		b.SetBytes(unpacked)
		for b.Loop() {
			for range members {
				io.Copy(io.Discard, flate.NewReader(bytes.NewReader(packed.Bytes())))
			}
		}
		floor = b.Elapsed() / time.Duration(b.N)
	})
	b.Run("walk", func(b *testing.B) {
		b.SetBytes(unpacked)
		b.ReportAllocs()
		space := &reused{}
		for b.Loop() {
			walker := Walker{Temp: func() Temp { space.b = space.b[:0]; return space }}
			members := 0
			err := walker.Walk(context.Background(), "x.zip", bytes.NewReader(content), int64(len(content)), func(m Member) error {
				members++
				return m.Err
			})
			if err != nil || members != 8 {
				b.Fatal(members, err)
			}
		}
		b.ReportMetric(float64(b.Elapsed()/time.Duration(b.N))/float64(floor), "x-inflate")
	})
}

// reused is a temporary file in memory that keeps its room.
type reused struct{ memory }

func (r *reused) Close() error { return nil }
