package dkim

import (
	"crypto"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
)

// keyFiles are the keys of testdata/keys, which prove nothing to anybody, by
// their bits; 0 is Ed25519.
var keyFiles = map[int]func() (crypto.Signer, error){
	0: readTestKey("ed25519"), 1024: readTestKey("rsa1024"), 2048: readTestKey("rsa2048"), 4096: readTestKey("rsa4096"),
}

func readTestKey(name string) func() (crypto.Signer, error) {
	return sync.OnceValues(func() (crypto.Signer, error) {
		b, err := os.ReadFile("testdata/keys/" + name + ".pem")
		if err != nil {
			return nil, err
		}
		return ParseKey(b)
	})
}

// testKey is a key of that many bits, the same one each time; 0 is Ed25519.
func testKey(t testing.TB, bits int) crypto.Signer {
	t.Helper()
	k, err := keyFiles[bits]()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// writeKey writes a key's file into a folder of keys.
func writeKey(t testing.TB, path string, k crypto.Signer) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pemOf(t, k), 0o600); err != nil {
		t.Fatal(err)
	}
	// It has been there for a while.
	old := time.Now().Add(-time.Hour)
	for _, p := range []string{path, filepath.Dir(path)} {
		if err := os.Chtimes(p, old, old); err != nil {
			t.Fatal(err)
		}
	}
}

func TestVerifySuite(t *testing.T) {
	const name = "authserv_id = \"mx.example.org\"\n"
	const plain = "From: a@example.net\nSubject: x\n\nb\n"
	none := "Authentication-Results: mx.example.org;\n\tdkim=none\n"
	filtertest.Run(t, filtertest.Suite{
		Kind: VerifyKind(), Config: name + "always_signed = [\"example.com\"]\non_missing = \"reject\"\n",
		Cases: []filtertest.Case{
			{Name: "no signature", Config: name, Message: plain, WantMessage: none + plain, WantReason: "no signature"},
			{
				Name: "forged results are removed", Config: name, WantReason: "2 results that claimed to be ours removed",
				Message:     "Authentication-Results: MX.example.org 1; dkim=pass\nAuthentication-Results: other.example; spf=pass\nAuthentication-results: (x) \"mx.example.org\"; dmarc=pass\n" + plain,
				WantMessage: none + "Authentication-Results: other.example; spf=pass\n" + plain,
			},
			{
				Name: "a bad signature", Config: name, Message: "DKIM-Signature: v=1; nonsense\n" + plain,
				WantMessage: "Authentication-Results: mx.example.org;\n\tdkim=neutral reason=\"\\\"nonsense\\\" is no tag\"\nDKIM-Signature: v=1; nonsense\n" + plain, WantReason: "neutral",
			},
			{Name: "missing, refused", Config: name + "always_signed = [\"example.net\"]\non_missing = \"reject\"\n", Message: plain, WantAction: pipeline.Reject, WantReply: "550 5.7.22", WantReason: "example.net always signs"},
			{Name: "missing, held", Config: name + "always_signed = [\"example.net\"]\non_missing = \"quarantine\"\n", Message: plain, WantAction: pipeline.Quarantine, WantMessage: none + plain},
			{Name: "missing, below", Config: name + "always_signed = [\"example.net\"]\non_missing = \"reject\"\n", Message: "From: <a@b.Example.NET>\n\n", WantAction: pipeline.Reject},
			{Name: "not on the list", Config: name + "always_signed = [\"ample.net\"]\non_missing = \"reject\"\n", Message: plain, WantMessage: none + plain},
		},
	})
}

func TestSignSuite(t *testing.T) {
	dir := t.TempDir()
	writeKey(t, filepath.Join(dir, "example.net", "sel.pem"), testKey(t, 2048))
	writeKey(t, filepath.Join(dir, "example.net", "ed.pem"), testKey(t, 0))
	filtertest.Run(t, filtertest.Suite{
		Kind: SignKind(), Config: "keys = [\"" + dir + "\"]\n",
		Session: func() *pipeline.Session {
			return &pipeline.Session{ID: "s1", Entrance: "submission", Protocol: "smtp", Start: time.Unix(1e9, 0), Standing: pipeline.Authenticated, User: "a@example.net", UID: -1}
		},
	})
}
