package rules_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/rules"
)

// BenchmarkCDB looks up domains in a file of 100,000, half of them there, and tells how many times a map's time that takes:
// the map is the floor.
func BenchmarkCDB(b *testing.B) {
	const n = 100_000
	var records []rules.CDBRecord
	table := map[string]string{}
	keys := make([][]byte, 2*n)
	for i := range n {
		key := fmt.Sprintf("domain%d.example.org", i)
		records = append(records, rules.CDBRecord{Key: key})
		table[key] = ""
		keys[2*i], keys[2*i+1] = []byte(key), []byte("x"+key)
	}
	path := filepath.Join(b.TempDir(), "morercpthosts.cdb")
	if err := os.WriteFile(path, writeCDB(b, records...), 0o644); err != nil {
		b.Fatal(err)
	}
	f, err := rules.OpenCDBFile(path, rules.FileOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	dst := make([]byte, 0, 64)
	b.ReportAllocs()
	i, start := 0, time.Now()
	for b.Loop() {
		at := i * 7919 % len(keys)
		if _, ok, err := f.Find(keys[at], dst); err != nil || ok != (at%2 == 0) {
			b.Fatal(at, ok, err)
		}
		i++
	}
	cdb := time.Since(start)
	start = time.Now()
	for j := range i {
		at := j * 7919 % len(keys)
		if _, ok := table[string(keys[at])]; ok != (at%2 == 0) {
			b.Fatal(at, ok)
		}
	}
	b.ReportMetric(float64(cdb)/float64(time.Since(start)), "times-map")
}

// BenchmarkTCPRules asks for a client without a rule of its own, the dearest case.
func BenchmarkTCPRules(b *testing.B) {
	var source strings.Builder
	for i := range 256 {
		fmt.Fprintf(&source, "10.%d.:deny\n192.0.2.%d:allow,RELAYCLIENT=\"\"\n", i, i)
	}
	source.WriteString("198.51.100.0/24:deny\n:allow\n")
	parsed := tcpRules(b, source.String())
	path := filepath.Join(b.TempDir(), "tcp.cdb")
	if err := os.WriteFile(path, writeCDB(b, parsed.Records()...), 0o644); err != nil {
		b.Fatal(err)
	}
	file, err := rules.OpenTCPRules(path, rules.FileOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	for _, ip := range []string{"203.0.113.77", "2001:db8:1:2:3:4:5:6"} {
		c := rules.TCPClient{IP: netip.MustParseAddr(ip), Host: "mx.customer.example.net"}
		for name, match := range map[string]func(rules.TCPClient) (rules.TCPVerdict, error){"source": parsed.Match, "compiled": file.Match} {
			b.Run(name+"/"+ip, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if v, err := match(c); err != nil || !v.Found || v.Deny {
						b.Fatal(v, err)
					}
				}
			})
		}
	}
}
