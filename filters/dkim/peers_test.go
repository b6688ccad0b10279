package dkim

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// run is what a program prints; "/usr/bin/python3" is Debian's.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	printed, _ := runBoth(t, name, args...)
	return printed
}

// runBoth is what a program prints, and what it says as errors.
func runBoth(t *testing.T, name string, args ...string) (printed, said string) {
	t.Helper()
	c := exec.Command(name, args...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		t.Fatalf("%s %.500q: %v (is it installed? see DEPS in the Makefile)\n%s%s", name, args, err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String(), stderr.String()
}

// rig is a folder of messages and keys for peers.
type rig struct {
	dir  string
	keys map[string]crypto.Signer // by selector
}

// selectors of the rig's keys, with their bits.
var rigKeys = []struct {
	selector string
	bits     int
}{{"rsa2048", 2048}, {"rsa4096", 4096}, {"ed", 0}}

func newRig(t *testing.T) *rig {
	r := &rig{dir: t.TempDir(), keys: map[string]crypto.Signer{}}
	dns := ""
	for _, k := range rigKeys {
		key := testKey(t, k.bits)
		r.keys[k.selector] = key
		text, err := Record(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		name := k.selector + middle + "example.org"
		dns += name + " " + text + "\n"
		content := pemOf(t, key)
		if k, ok := key.(*rsa.PrivateKey); ok { // the one form that all of them read
			content = pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)})
		}
		r.write(t, k.selector+".pem", string(content))
		if k, ok := key.(ed25519.PrivateKey); ok {
			r.write(t, "ed.seed", base64.StdEncoding.EncodeToString(k.Seed()))
		}
	}
	r.write(t, "dns", dns)
	return r
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

func (r *rig) write(t *testing.T, name, content string) string {
	t.Helper()
	if err := os.WriteFile(r.path(name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return r.path(name)
}

// results are the lines of the verifying peers, by the file's name.
func results(out string) map[string][]string {
	all := map[string][]string{}
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		all[filepath.Base(words[0])] = words[1:]
	}
	return all
}

// sample is a message that we signed.
type sample struct {
	file, shape, selector, form string
}

// signAll signs every shape in every form with every key, and with two keys at
// once.
func (r *rig) signAll(t *testing.T) []sample {
	t.Helper()
	var all []sample
	for shape, text := range shapes() {
		for _, k := range rigKeys {
			for _, form := range []string{"simple/simple", "relaxed/relaxed"} {
				if len(text) > 1<<20 && (k.bits == 4096 || form == "simple/simple") {
					continue
				}
				header, body, _ := strings.Cut(form, "/")
				out := signed(t, &Signer{HeaderForm: header, BodyForm: body}, Key{Domain: "example.org", Selector: k.selector, Signer: r.keys[k.selector]}, text)
				s := sample{fmt.Sprintf("m%03d", len(all)), shape, k.selector, form}
				r.write(t, s.file, out)
				all = append(all, s)
			}
		}
		if len(text) > 1<<20 {
			continue
		}
		out := signed(t, &Signer{}, Key{Domain: "example.org", Selector: "ed", Signer: r.keys["ed"]}, text)
		out = signed(t, &Signer{}, Key{Domain: "example.org", Selector: "rsa2048", Signer: r.keys["rsa2048"]}, out)
		s := sample{fmt.Sprintf("m%03d", len(all)), shape, "both", "relaxed/relaxed"}
		r.write(t, s.file, out)
		all = append(all, s)
	}
	return all
}

func (r *rig) paths(all []sample) []string {
	var paths []string
	for _, s := range all {
		paths = append(paths, r.path(s.file))
	}
	return paths
}

// unable are the shapes that a peer cannot do, and why; none reaches it from us
// by mail, since they are mended or because the sender's own header lacks them.
func unable(peer, shape, form string) bool {
	switch peer {
	case "dkimpy":
		return shape == "blank name" // it takes such a header for none
	case "Mail DKIM":
		return shape == "no final line" && strings.HasSuffix(form, simple) // it does not add the line's end
	case "OpenDKIM":
		if shape == "no final line" {
			return true // its reader of files needs the line's end
		}
		// A milter is not told of the blanks around a value.
		return (shape == "odd blanks" || shape == "empty fields") && strings.HasPrefix(form, simple)
	}
	return false
}

// What we sign, dkimpy, Mail::DKIM and OpenDKIM verify.
func TestPeersVerify(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	all := r.signAll(t)
	for _, peer := range []struct {
		name   string
		verify func(*testing.T, *rig, []sample) map[string][]string
	}{{"dkimpy", verifyByPython}, {"Mail DKIM", verifyByPerl}, {"OpenDKIM", verifyByMilter}} {
		t.Run(peer.name, func(t *testing.T) {
			able := slices.DeleteFunc(slices.Clone(all), func(s sample) bool {
				// Debian's Mail::DKIM has no Ed25519.
				return unable(peer.name, s.shape, s.form) || peer.name == "Mail DKIM" && s.selector == "ed"
			})
			got := peer.verify(t, r, able)
			for _, s := range able {
				results := got[s.file]
				want := []string{"pass"}
				switch {
				case s.selector == "both" && peer.name == "dkimpy":
					want = []string{"pass", "pass"}
				case s.selector == "both" && peer.name == "Mail DKIM":
					want = []string{"pass", "invalid"}
				}
				if !slices.Equal(results, want) {
					t.Errorf("%s by %s, %s: %v, want %v", s.shape, s.selector, s.form, results, want)
				}
			}
		})
	}
}

func verifyByPython(t *testing.T, r *rig, all []sample) map[string][]string {
	return results(run(t, "/usr/bin/python3", slices.Concat([]string{"testdata/peers/dkimpy.py", "verify", r.path("dns")}, r.paths(all))...))
}

func verifyByPerl(t *testing.T, r *rig, all []sample) map[string][]string {
	return results(run(t, "perl", slices.Concat([]string{"testdata/peers/maildkim.pl", "verify", r.path("dns")}, r.paths(all))...))
}

// verifyByMilter has opendkim say what its milter would.
func verifyByMilter(t *testing.T, r *rig, all []sample) map[string][]string {
	conf := r.write(t, "verify.conf", "Mode v\nTestDNSData file:"+r.path("dns")+"\n")
	got := map[string][]string{}
	printed, said := runBoth(t, "opendkim", "-x", conf, "-t", strings.Join(r.paths(all), ","))
	for line := range strings.Lines(printed + said) {
		words := strings.SplitN(strings.TrimSpace(line), ": ", 3)
		if len(words) != 3 {
			t.Fatalf("%q", line)
		}
		result := words[2]
		if strings.HasPrefix(result, "verification (") && strings.HasSuffix(result, ") succeeded") {
			result = "pass"
		}
		file := filepath.Base(words[1])
		got[file] = append(got[file], result)
	}
	return got
}

// What they sign, we verify.
func TestPeersSign(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	z := zone{}
	for selector, key := range r.keys {
		z.publish(t, Key{Domain: "example.org", Selector: selector, Signer: key})
	}
	for _, peer := range []struct {
		name string
		sign func(t *testing.T, r *rig, selector, header, body string, paths []string)
	}{{"dkimpy", signByPython}, {"Mail DKIM", signByPerl}, {"OpenDKIM", signByMilter}} {
		t.Run(peer.name, func(t *testing.T) {
			for _, form := range []string{"simple/simple", "relaxed/relaxed"} {
				var names, paths, large []string
				for shape, text := range shapes() {
					switch {
					case unable(peer.name, shape, form):
					case len(text) > 1<<20:
						large = append(large, shape)
					default:
						names = append(names, shape)
						paths = append(paths, r.write(t, fmt.Sprintf("s%02d", len(paths)), text))
					}
				}
				for _, k := range rigKeys {
					if k.bits == 0 && (peer.name == "Mail DKIM" || peer.name == "OpenDKIM" && form == "simple/simple") {
						continue // Debian's has no Ed25519; what this one makes of it, it does not verify itself
					}
					names, paths := slices.Clone(names), slices.Clone(paths)
					if k.bits == 4096 && form == "simple/simple" {
						names, paths = names[:3], paths[:3] // dkimpy takes a second for each
					}
					for _, shape := range large {
						if k.bits == 2048 && form == "relaxed/relaxed" { // the key makes no difference to a large body
							names = append(names, shape)
							paths = append(paths, r.write(t, fmt.Sprintf("s%02d", len(paths)), shapes()[shape]))
						}
					}
					header, body, _ := strings.Cut(form, "/")
					peer.sign(t, r, k.selector, header, body, paths)
					for i, p := range paths {
						b, err := os.ReadFile(p + ".signed")
						if err != nil {
							t.Fatal(err)
						}
						got := z.verify(t, string(b))
						if len(got) != 1 || got[0].Result != Pass || got[0].Selector != k.selector {
							t.Errorf("%s by %s, %s: %v\n%.1500s", names[i], k.selector, form, got, b)
						}
						os.Remove(p + ".signed") //nolint:errcheck // or the next one replaces it
					}
				}
			}
		})
	}
}

func signByPython(t *testing.T, r *rig, selector, header, body string, paths []string) {
	key, algorithm := r.path(selector+".pem"), rsaSHA256
	if selector == "ed" {
		key, algorithm = r.path("ed.seed"), ed25519SHA256
	}
	run(t, "/usr/bin/python3", slices.Concat([]string{"testdata/peers/dkimpy.py", "sign", key, algorithm, header, body, selector, "example.org"}, paths)...)
}

func signByPerl(t *testing.T, r *rig, selector, header, body string, paths []string) {
	run(t, "perl", slices.Concat([]string{"testdata/peers/maildkim.pl", "sign", r.path(selector + ".pem"), header, body, selector, "example.org"}, paths)...)
}

// insertion is the header field that opendkim asks for, as it prints it.
var insertion = regexp.MustCompile(`(?s)### INSHEADER: idx=\d+ hname='DKIM-Signature' hvalue='(.*?)'\n`)

func signByMilter(t *testing.T, r *rig, selector, header, body string, paths []string) {
	algorithm := rsaSHA256
	if selector == "ed" {
		algorithm = ed25519SHA256
	}
	conf := r.write(t, "sign.conf", fmt.Sprintf("Mode s\nRequireSafeKeys no\nDomain example.org\nSelector %s\nKeyFile %s\nSignatureAlgorithm %s\nCanonicalization %s/%s\nDiagnostics yes\n",
		selector, r.path(selector+".pem"), algorithm, header, body))
	fields := insertion.FindAllStringSubmatch(run(t, "opendkim", "-x", conf, "-v", "-v", "-t", strings.Join(paths, ",")), -1)
	if len(fields) != len(paths) {
		t.Fatalf("opendkim signs %d of %d messages", len(fields), len(paths))
	}
	for i, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p+".signed", append([]byte("DKIM-Signature: "+fields[i][1]+"\n"), b...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
