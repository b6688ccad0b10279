package dkim

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	msgauth "github.com/emersion/go-msgauth/dkim"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
)

// sizes are those of bodies in bytes; a body above message.InMemory is in a
// file, as the daemon has it.
var sizes = []struct {
	name  string
	bytes int
}{{"4K", 4 << 10}, {"100K", 100 << 10}, {"10M", 10 << 20}}

const benchHead = "Received: from a (b [192.0.2.1]) by c with ESMTPS; Mon, 2 Nov 2026 10:00:00 +0000\nSubject: hello\nFrom: a@example.org\n" +
	"To: r@example.net\nDate: Mon, 2 Nov 2026 10:00:00 +0000\nMessage-ID: <1@example.org>\nMIME-Version: 1.0\nContent-Type: text/plain\n\n"

func benchText(size int) string {
	const line = "All work and no play makes Jack a dull boy, they say of him.\n"
	return benchHead + strings.Repeat(line, size/len(line))
}

// benchMessage is a message as the daemon has it.
func benchMessage(b *testing.B, text string) message.Message {
	b.Helper()
	spool, err := message.OpenDirectory(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	m, err := message.Read(strings.NewReader(text), message.Options{Spool: spool})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.Body().Release() }) //nolint:errcheck // the folder goes
	return m
}

// floor is what an operation is compared with.
type floor struct {
	name string
	run  func()
}

// compare measures an operation, and in turn with it its floors, so that
// whatever else the machine does weighs on all alike; it reports how many times
// their time the operation took, by the medians, and what the operation alone
// took and allocated.
func compare(b *testing.B, size int, run func(), floors ...floor) {
	b.Helper()
	b.ReportAllocs() // printed is what is reported below
	own := make([]time.Duration, 0, 1<<12)
	others := make([][]time.Duration, len(floors))
	for b.Loop() {
		// Who comes second finds caches full: they take turns.
		first := len(own)%2 == 0
		if first {
			own = append(own, timed(run))
		}
		for i, f := range floors {
			others[i] = append(others[i], timed(f.run))
		}
		if !first {
			own = append(own, timed(run))
		}
	}
	took := median(own)
	b.ReportMetric(float64(took), "ns/op")
	if size > 0 {
		b.ReportMetric(float64(size)*1e3/float64(took), "MB/s")
	}
	for i, f := range floors {
		b.ReportMetric(float64(took)/float64(max(median(others[i]), 1)), "x-"+f.name)
	}
	const runs = 5
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		run()
	}
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/runs, "B/op")
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/runs, "allocs/op")
}

func timed(run func()) time.Duration {
	start := time.Now()
	run()
	return time.Since(start)
}

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

var benchKeys = []struct {
	name string
	bits int
}{{"rsa2048", 2048}, {"ed25519", 0}}

// BenchmarkSign signs, relaxed/relaxed. The floors are go-msgauth on the same
// bytes in memory with the same fields, whose target is 1.2, and the key's
// operation alone.
func BenchmarkSign(b *testing.B) {
	for _, k := range benchKeys {
		for _, size := range sizes {
			b.Run(k.name+"/"+size.name, func(b *testing.B) {
				key := Key{Domain: "example.org", Selector: "sel", Signer: testKey(b, k.bits)}
				text := benchText(size.bytes)
				m := benchMessage(b, text)
				s := &Signer{}
				_, names := s.covered(m.Head())
				o := &msgauth.SignOptions{
					Domain: "example.org", Selector: "sel", Signer: key.Signer, HeaderKeys: names,
					HeaderCanonicalization: relaxed, BodyCanonicalization: relaxed,
				}
				sign := func() {
					if _, err := s.Sign(context.Background(), m, key); err != nil {
						b.Fatal(err)
					}
				}
				compare(b, len(text), sign, floor{"msgauth", func() {
					signer, err := msgauth.NewSigner(o)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := io.Copy(signer, strings.NewReader(text)); err != nil {
						b.Fatal(err)
					}
					if err := signer.Close(); err != nil {
						b.Fatal(err)
					}
				}}, floor{"key", func() { signRaw(b, key.Signer) }})
			})
		}
	}
}

func signRaw(b *testing.B, k crypto.Signer) []byte {
	digest := sha256.Sum256([]byte("x"))
	var o crypto.SignerOpts = crypto.SHA256
	if _, ok := k.(ed25519.PrivateKey); ok {
		o = crypto.Hash(0)
	}
	value, err := k.Sign(rand.Reader, digest[:], o)
	if err != nil {
		b.Fatal(err)
	}
	return value
}

// BenchmarkVerify verifies, beside the same floors.
func BenchmarkVerify(b *testing.B) {
	for _, k := range benchKeys {
		for _, size := range sizes {
			b.Run(k.name+"/"+size.name, func(b *testing.B) {
				z, key := zone{}, Key{Domain: "example.org", Selector: "sel", Signer: testKey(b, k.bits)}
				z.publish(b, key)
				text := signed(b, &Signer{}, key, benchText(size.bytes))
				m := benchMessage(b, text)
				v := &Verifier{Look: z.look}
				verify := func() {
					results, _, err := v.Verify(context.Background(), m)
					if err != nil || len(results) != 1 || results[0].Result != Pass {
						b.Fatal(results, err)
					}
				}
				o := &msgauth.VerifyOptions{LookupTXT: func(name string) ([]string, error) { return z.look(context.Background(), name) }}
				value := signRaw(b, key.Signer)
				compare(b, len(text), verify, floor{"msgauth", func() {
					all, err := msgauth.VerifyWithOptions(strings.NewReader(text), o)
					if err != nil || len(all) != 1 || all[0].Err != nil {
						b.Fatal(all, err)
					}
				}}, floor{"key", func() { verifyRaw(b, key.Signer.Public(), value) }})
			})
		}
	}
}

func verifyRaw(b *testing.B, k crypto.PublicKey, value []byte) {
	digest := sha256.Sum256([]byte("x"))
	ok := false
	switch k := k.(type) {
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(k, crypto.SHA256, digest[:], value) == nil
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, digest[:], value)
	}
	if !ok {
		b.Fatal("it does not verify")
	}
}

// BenchmarkThousandRecipients is the filter for a message of 4 KiB that goes to
// a thousand recipients one by one, with an RSA key. The floor is one RSA
// operation.
func BenchmarkThousandRecipients(b *testing.B) {
	dir := b.TempDir()
	key := testKey(b, 2048)
	writeKey(b, filepath.Join(dir, "example.org", "sel.pem"), key)
	o := DefaultSignOptions()
	o.Keys = []string{dir}
	f, err := NewSignFilter(pipeline.Env{Log: slog.New(slog.DiscardHandler)}, o)
	if err != nil {
		b.Fatal(err)
	}
	m := benchMessage(b, benchText(4<<10))
	d := delivery(pipeline.Local, "", "a@example.org")
	n := 0
	compare(b, 0, func() {
		n++
		d.ID = fmt.Sprint(n)
		for range 1000 {
			if v, err := f.Deliver(context.Background(), &d, m); err != nil || len(v.Edits) != 1 {
				b.Fatal(v, err)
			}
		}
	}, floor{"rsa", func() { signRaw(b, key) }})
}

// BenchmarkThousandThroughQueue is a message of 4 KiB for a thousand recipients
// in a hundred domains, from its submission to a queue on disk until three
// servers have all of it by SMTP. The floor is the RSA operation that it costs,
// and rsa-ops is how many those are.
func BenchmarkThousandThroughQueue(b *testing.B) {
	p := newPost(b)
	key := testKey(b, 2048)
	n := 0
	compare(b, 0, func() {
		n++
		p.send(b, benchText(4<<10))
		p.taken(b, 1000*n)
	}, floor{"rsa", func() { signRaw(b, key) }})
	b.ReportMetric(float64(p.made.Load())/float64(n), "rsa-ops")
}

// BenchmarkForged looks for forged results among two hundred fields.
func BenchmarkForged(b *testing.B) {
	h, _ := message.ParseHead(strings.Repeat("Received: from a by b\nAuthentication-Results: other.example 1; dkim=pass header.d=x\n", 100) + "\n")
	ids := []string{"mx.example.org"}
	text := []byte(h.String())
	compare(b, 0, func() {
		if _, n := forged(h, ids); n != 0 {
			b.Fatal(n)
		}
	}, floor{"scan", func() { bytes.Count(text, []byte("mx.example.org")) }})
}
