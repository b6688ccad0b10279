package rules_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/rules"
)

func lines(text string) []rules.Line {
	all, err := rules.ControlLines(strings.NewReader(text), 1<<20)
	if err != nil {
		panic(err)
	}
	return all
}

func tcpRules(t testing.TB, source string) *rules.TCPRules {
	t.Helper()
	r, err := rules.ParseTCPRules(lines(source))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// compiled is the source as Debian's tcprules compiles it.
func compiled(t testing.TB, source string) (path string) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "rules.cdb")
	cmd := exec.Command("tcprules", path, filepath.Join(dir, "tmp"))
	cmd.Stdin = strings.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tcprules (of ucspi-tcp): %v: %s", err, out)
	}
	return path
}

const tcpSource = `# comment
127.:allow,RELAYCLIENT=""
10.0.:allow,RELAYCLIENT="@fix.me",DATABYTES=/1000/
10.2-3.:deny
192.0.2.37-53:allow,A="b",A="c"
192.0.2.40:deny,WHY="second"
192.0.:allow,N="1"
joe@192.0.2.1:deny
joe@=mx.example.org:allow,J="1"
=mx.example.org:allow,H="1"
=.example.org:allow,H="2"
=.org:deny
=:allow,NAMED=""
198.51.100.7:allow,=""
198.51.250-300.:deny
198.51.-3.:allow,Z="x=y:z,\"
:allow,LAST="1"
`

// TestTCPRulesLikeTCPServer: for any rules and clients, source and compiled rules give what tcprulescheck prints, and the
// file that Records and WriteCDB make is that of tcprules.
func TestTCPRulesLikeTCPServer(t *testing.T) {
	sources := []string{tcpSource, "", ":deny\n", "10.:allow\n10.:deny\n"}
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 3 {
		sources = append(sources, randomSource(rnd))
	}
	for _, source := range sources {
		path := compiled(t, source)
		parsed := tcpRules(t, source)
		file, err := rules.OpenTCPRules(path, rules.FileOptions{})
		if err != nil {
			t.Fatal(err)
		}
		clients := []rules.TCPClient{
			{IP: netip.MustParseAddr("192.0.2.1"), Info: "joe", Host: "mx.example.org"},
			{IP: netip.MustParseAddr("192.0.9.1"), Info: "joe", Host: "mx.example.org"},
			{IP: netip.MustParseAddr("198.51.100.7")},
		}
		for range 25 {
			clients = append(clients, randomClient(rnd))
		}
		for _, c := range clients {
			want := tcprulescheck(t, path, c)
			for name, match := range map[string]func(rules.TCPClient) (rules.TCPVerdict, error){"source": parsed.Match, "compiled": file.Match} {
				got, err := match(c)
				if err != nil || asCheck(got) != want {
					t.Errorf("%s, %+v:\n%s%v\nwant\n%s\nof\n%s", name, c, asCheck(got), err, want, source)
				}
			}
		}
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	}
	theirs, err := os.ReadFile(compiled(t, tcpSource))
	if err != nil {
		t.Fatal(err)
	}
	if ours := writeCDB(t, tcpRules(t, tcpSource).Records()...); !bytes.Equal(ours, theirs) {
		t.Errorf("our file has %d bytes, tcprules' %d, and they differ", len(ours), len(theirs))
	}
}

// asCheck is a verdict as tcprulescheck prints it, its variables sorted.
func asCheck(v rules.TCPVerdict) string {
	v.Env = maps.Clone(v.Env)
	if v.Deny {
		v.Env = nil
	}
	return v.String()
}

func tcprulescheck(t *testing.T, path string, c rules.TCPClient) string {
	t.Helper()
	cmd := exec.Command("tcprulescheck", path)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TCPREMOTEIP=" + c.IP.String()}
	if c.Host != "" {
		cmd.Env = append(cmd.Env, "TCPREMOTEHOST="+c.Host)
	}
	if c.Info != "" {
		cmd.Env = append(cmd.Env, "TCPREMOTEINFO="+c.Info)
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tcprulescheck (of ucspi-tcp): %v", err)
	}
	// The last assignment of a variable counts; the order does not.
	var rest []string
	env := map[string]string{}
	for line := range strings.Lines(string(out)) {
		text, set := strings.CutPrefix(line, "set environment variable ")
		if name, value, _ := strings.Cut(text, "="); set && name != "" {
			env[name] = value
		} else if !set {
			rest = append(rest, line)
		}
	}
	var b strings.Builder
	b.WriteString(rest[0])
	if !strings.HasPrefix(rest[len(rest)-1], "deny") {
		for _, name := range slices.Sorted(maps.Keys(env)) {
			b.WriteString("set environment variable " + name + "=" + env[name])
		}
	}
	b.WriteString(rest[len(rest)-1])
	return b.String()
}

func randomSource(rnd *rand.Rand) string {
	var b strings.Builder
	for i := range 40 {
		c := randomClient(rnd)
		address := c.IP.String()
		switch rnd.IntN(6) {
		case 0:
			address = address[:strings.LastIndexByte(address, '.')+1]
		case 1:
			address = address[:strings.IndexByte(address, '.')+1]
		case 2:
			address = fmt.Sprintf("10.%d-%d.", rnd.IntN(5), rnd.IntN(9))
		case 3:
			address = "=" + c.Host
		case 4:
			address = "=" + c.Host[max(0, strings.IndexByte(c.Host, '.')):]
		case 5:
			address = c.Info + "@" + address
		}
		fmt.Fprintf(&b, "%s:%s,N=\"%d\"\n", address, []string{"allow", "deny"}[rnd.IntN(2)], i)
	}
	return b.String()
}

func randomClient(rnd *rand.Rand) rules.TCPClient {
	pick := func(from ...string) string { return from[rnd.IntN(len(from))] }
	ip := netip.AddrFrom4([4]byte{byte(10 + rnd.IntN(2)), byte(rnd.IntN(6)), byte(rnd.IntN(2)), byte(rnd.IntN(3))})
	if rnd.IntN(3) == 0 {
		ip = netip.AddrFrom4([4]byte{192, 0, 2, byte(30 + rnd.IntN(30))})
	}
	return rules.TCPClient{IP: ip, Host: pick("", "mx.example.org", "a.b.example.org", "example.org", "x.net", "localhost"), Info: pick("", "", "joe", "ann")}
}

// TestTCPRulesIPv6AndNetworks: what plain tcprules does not know, from a source and from the records made of it.
func TestTCPRulesIPv6AndNetworks(t *testing.T) {
	const source = `::1:allow,R="loop"
2001:DB8:0::0001:deny
2001:db8::/32:allow,R="32"
2001:db8:1::/48:allow,R="48"
2001:db8:2:allow,R="exact text is no address"
`
	if _, err := rules.ParseTCPRules(lines(source)); err == nil || !strings.Contains(err.Error(), "line 5") {
		t.Errorf("an address cut short: %v", err)
	}
	const good = `::1:allow,R="loop"
2001:DB8:0::0001:deny
2001:db8::/32:allow,R="32"
2001:db8:1::/48:allow,R="48"
fd00::allow,R="prefix"
fe80:::allow,R="short prefix"
192.0.2.0/24:allow,R="24"
192.0.2.128/25:allow,R="25"
192.0.2.9:deny
127./8:allow,R="8"
172.16/12:allow,R="12"
ann@2001:db8::9:deny
::ffff:203.0.113.1:deny
=Mx.Example.ORG:allow,R="host"
`
	parsed := tcpRules(t, good)
	if w := parsed.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %v", w)
	}
	records := rules.CompiledTCPRules(openCDB(t, writeCDB(t, parsed.Records()...)))
	for _, test := range []struct{ ip, host, info, want, rule string }{
		{"::1", "", "", "loop", "::1"},
		{"2001:db8::1", "", "", "deny", "2001:db8::1"},
		{"2001:db8::2", "", "", "32", "2001:db8::/32"},
		{"2001:db8:1:5::2", "", "", "48", "2001:db8:1::/48"},
		{"2001:db9::2", "", "", "", ""},
		{"fd00:1::2", "", "", "prefix", "fd00:"},
		{"fe80::2%eth0", "", "", "short prefix", "fe80::"},
		{"192.0.2.1", "", "", "24", "192.0.2.0/24"},
		{"::ffff:192.0.2.1", "", "", "24", "192.0.2.0/24"},
		{"192.0.2.129", "", "", "25", "192.0.2.128/25"},
		{"192.0.2.9", "", "", "deny", "192.0.2.9"},
		{"127.255.0.1", "", "", "8", "127.0.0.0/8"},
		{"172.31.9.9", "", "", "12", "172.16.0.0/12"},
		{"172.32.9.9", "", "", "", ""},
		{"2001:db8::9", "", "ann", "deny", "ann@2001:db8::9"},
		{"203.0.113.1", "", "", "deny", "203.0.113.1"},
		{"9.9.9.9", "MX.example.org", "", "host", "=mx.example.org"},
	} {
		for name, r := range map[string]*rules.TCPRules{"source": parsed, "compiled": records} {
			v, err := r.Match(rules.TCPClient{IP: netip.MustParseAddr(test.ip), Host: test.host, Info: test.info})
			got := v.Env["R"]
			if v.Deny {
				got = "deny"
			}
			if err != nil || got != test.want || v.Rule != test.rule || v.Found != (test.rule != "") {
				t.Errorf("%s: %s: %q by %q, %v; want %q by %q", name, test.ip, got, v.Rule, err, test.want, test.rule)
			}
		}
	}
	if v, err := parsed.Match(rules.TCPClient{}); err != nil || v.Found {
		t.Errorf("no address: %+v, %v", v, err)
	}
}

// TestTCPRulesOfUCSPITCP6: keys as its programs write them.
func TestTCPRulesOfUCSPITCP6(t *testing.T) {
	r := rules.CompiledTCPRules(openCDB(t, writeCDB(t,
		rules.CDBRecord{Key: "2001:0DB8:0000:0000:0000:0000:0000:0001", Value: "D\x00"},
		rules.CDBRecord{Key: "_0000e0g0\x00", Value: "+R=ten\x00"},
		rules.CDBRecord{Key: "^" + "00`0000000000001", Value: "+R=sixteen\x00"},
	)))
	for ip, want := range map[string]string{
		"2001:db8::1": "2001:db8::1", "10.1.2.3": "10.0.0.0/8", "11.1.2.3": "",
	} {
		v, err := r.Match(rules.TCPClient{IP: netip.MustParseAddr(ip)})
		if err != nil || v.Rule != want && !(want == "2001:db8::1" && v.Deny) {
			t.Errorf("%s: %+v, %v", ip, v, err)
		}
	}
}

func TestTCPRulesErrors(t *testing.T) {
	for source, want := range map[string]string{
		"\n\nfoo":                      "line 3: ",
		"1.2.3.4:maybe":                "write address:allow",
		"1.2.3.4":                      "is no rule",
		":allow,X":                     `",X" is not understood`,
		":allow,X=":                    "is not understood",
		`:allow,X="a`:                  "does not end with it",
		`:allowX="a"`:                  "is not understood",
		":denyfoo":                     `"foo" is not understood`,
		":allow,":                      "is not understood",
		`:allow,A="x",`:                "is not understood",
		"a-b:allow":                    "is no range",
		"1.2.3.4/33:deny":              "is no network",
		"0.0.0.0/0:deny":               "is no network",
		"1.2.3/x:deny":                 "is no network",
		"2001:db8::/129:deny":          "is no network",
		"[::1]:deny":                   "is no address",
		"99999999999999999999-3.:de":   "is no rule",
		"99999999999999999999-3.:deny": "is no range",
		strings.Repeat("x", rules.MaxTCPLine) + ":deny": "at most",
	} {
		_, err := rules.ParseTCPRules(lines(source))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", source, err, want)
		}
		checkLine(t, err)
	}
	for source, want := range map[string]string{
		"1.2.3:deny": "matches no client", "1.2.3.4.:deny": "matches no client", "1.2.3.256:deny": "matches no client",
		"01.:deny": "matches no client", "1.2.3.9-4:deny": "matches no client", "1-2.3-4.:deny": "matches no client",
		"x=y:deny": "ends with an @", "joe@mx:deny": "after the @", " :deny": "matches no client", "300-400.:deny": "matches no client",
	} {
		r, err := rules.ParseTCPRules(lines(source))
		if err != nil || len(r.Warnings()) != 1 || !strings.Contains(r.Warnings()[0].Error(), want) || !strings.HasPrefix(r.Warnings()[0].Error(), "line 1: ") {
			t.Errorf("%q: %v, %v", source, r, err)
		}
	}
}

func TestTCPRulesTooMany(t *testing.T) {
	var all []rules.Line
	for a := range 80 {
		for b := range 60 {
			all = append(all, rules.Line{No: 1 + len(all), Text: fmt.Sprintf("%d.%d.0-255.:deny", a, b)})
		}
	}
	if _, err := rules.ParseTCPRules(all); err == nil || !strings.Contains(err.Error(), "more than 1048576 rules") {
		t.Errorf("%v", err)
	}
}

func TestTCPRulesFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tcp.smtp")
	now := &clock{now: time.Unix(1e9, 0)}
	replace(t, path, []byte("10.:allow,RELAYCLIENT=\"\"\n1.2:deny\n"))
	var told []error
	f, err := rules.OpenTCPRules(path, rules.FileOptions{Now: now.Now, Changed: func(err error) { told = append(told, err) }})
	if err != nil {
		t.Fatal(err)
	}
	if w := f.Warnings(); len(w) != 1 {
		t.Errorf("warnings: %v", w)
	}
	ask := func() rules.TCPVerdict {
		t.Helper()
		v, err := f.Match(rules.TCPClient{IP: netip.MustParseAddr("10.1.2.3")})
		if err != nil {
			t.Error(err)
		}
		return v
	}
	if v, ok := ask().Env["RELAYCLIENT"]; v != "" || !ok {
		t.Errorf("at first: %q, %t", v, ok)
	}
	replace(t, path, []byte("10.:maybe\n"))
	now.pass(time.Second)
	if v, ok := ask().Env["RELAYCLIENT"]; v != "" || !ok {
		t.Errorf("broken: %q, %t", v, ok)
	}
	if err := f.Err(); err == nil || !strings.Contains(err.Error(), path+": line 1: ") || len(told) != 1 || told[0].Error() != err.Error() {
		t.Errorf("broken: %v, told %v", err, told)
	}
	replace(t, path, []byte("10.:deny\n"))
	now.pass(time.Second)
	if !ask().Deny || f.Err() != nil {
		t.Errorf("mended: %v", f.Err())
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for name, content := range map[string]string{"x.cdb": "short", "x": "foo", "y": "\x00"} {
		path := filepath.Join(t.TempDir(), name)
		replace(t, path, []byte(content))
		if _, err := rules.OpenTCPRules(path, rules.FileOptions{}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := rules.OpenTCPRules(t.TempDir(), rules.FileOptions{}); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("directory: %v", err)
	}
}

// failing is a compiled file that cannot be read.
type failing struct{}

func (failing) Find(_, dst []byte) ([]byte, bool, error) {
	return dst, false, errors.New("input/output error")
}

func TestTCPRulesUnreadable(t *testing.T) {
	for _, ip := range []netip.Addr{{}, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::1")} {
		if v, err := rules.CompiledTCPRules(failing{}).Match(rules.TCPClient{IP: ip, Host: "h", Info: "i"}); err == nil || v.Found {
			t.Errorf("%v: %+v, %v", ip, v, err)
		}
	}
}

// FuzzTCPRules: no source makes it panic, errors are one clean line, and source and records agree.
func FuzzTCPRules(f *testing.F) {
	f.Add(tcpSource, "192.0.2.40", "a.example.org", "joe")
	f.Add("2001:db8::/32:deny\nfe80::allow,A=\"\"\n", "fe80::1", "", "")
	f.Fuzz(func(t *testing.T, source, ip, host, info string) {
		if len(source) > 4096 {
			return
		}
		all, err := rules.ControlLines(strings.NewReader(source), 4096)
		if err != nil {
			return
		}
		parsed, err := rules.ParseTCPRules(all)
		if err != nil {
			checkLine(t, err)
			return
		}
		for _, w := range parsed.Warnings() {
			checkLine(t, w)
		}
		addr, _ := netip.ParseAddr(ip)
		c := rules.TCPClient{IP: addr, Host: host, Info: info}
		a, err := parsed.Match(c)
		checkLine(t, err)
		b, err2 := rules.CompiledTCPRules(openCDB(t, writeCDB(t, parsed.Records()...))).Match(c)
		if (err == nil) != (err2 == nil) || a.String() != b.String() {
			t.Errorf("%v, %v: source\n%s\nrecords\n%s", err, err2, a, b)
		}
	})
}

// FuzzTCPVerdict: no compiled rule makes it panic.
func FuzzTCPVerdict(f *testing.F) {
	f.Add("10.", []byte("D\x00+A=b\x00+\x00\x00+=x\x00I\x00rest"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		if len(key)+len(value) > 4096 {
			return
		}
		r := rules.CompiledTCPRules(openCDB(t, writeCDB(t, rules.CDBRecord{Key: key, Value: string(value)})))
		v, err := r.Match(rules.TCPClient{IP: netip.MustParseAddr("10.0.0.1"), Host: "h.example.org"})
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range v.Env {
			if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(text, 0) {
				t.Errorf("%q=%q", name, text)
			}
		}
		if v.Found && v.Rule == "" && key != "" {
			t.Errorf("%q found as the last resort", key)
		}
	})
}
