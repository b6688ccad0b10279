package rules

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// tcpTable is a source in memory: what tcprules would have written, by key.
type tcpTable map[string]string

// Find implements Finder.
func (t tcpTable) Find(key, dst []byte) ([]byte, bool, error) {
	value, ok := t[string(key)]
	return append(dst, value...), ok, nil
}

// ParseTCPRules reads a source of tcprules, such as /etc/tcp.smtp, as [ControlLines] gives it. A line is an address, a
// colon, allow or deny, and variables: ,NAME="value", with any other character for the quotes. Addresses are
//
//	192.0.2.7        192.0.        192.0.2.37-53      192.0-15.     one address, a prefix, ranges of a number
//	192.0.2.0/24     192.0./16     2001:db8::/32      ::1           networks and IPv6 (ucspi-tcp6)
//	2001:db8:        fe80::                                         the beginning of an address (ucspi-tcp-ipv6)
//	=mx.example.org  =.example.org =                                a host, all below, every host with a name
//	joe@192.0.2.7    joe@=mx.example.org                            with what an ident server said
//
// and the empty one for everybody else. Of equal addresses the first counts. A line that tcprules refuses is an error,
// which names it; one that it takes although it matches nobody is a warning.
func ParseTCPRules(lines []Line) (*TCPRules, error) {
	table := tcpTable{}
	t := &TCPRules{find: table}
	for _, l := range lines {
		keys, value, warning, err := parseTCPLine(l.Text)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", l.No, err)
		}
		if warning != "" {
			t.warnings = append(t.warnings, fmt.Errorf("line %d: %s", l.No, clean(warning, maxMessage)))
		}
		for _, key := range keys {
			if len(t.records) == MaxTCPKeys {
				return nil, fmt.Errorf("line %d: more than %d rules, with the ranges written out", l.No, MaxTCPKeys)
			}
			t.records = append(t.records, CDBRecord{Key: key, Value: value})
			if _, there := table[key]; !there {
				table[key] = value
			}
			t.networks.add(key)
		}
	}
	return t, nil
}

func parseTCPLine(line string) (keys []string, value, warning string, err error) {
	if len(line) > MaxTCPLine {
		return nil, "", "", fmt.Errorf("the line is %d bytes long, at most %d are allowed", len(line), MaxTCPLine)
	}
	address, instructions, ok := cutInstructions(line)
	if !ok {
		return nil, "", "", fmt.Errorf(`%s is no rule; write address:allow, address:allow,NAME="value" or address:deny`, quote(line))
	}
	if value, err = tcpValue(instructions); err != nil {
		return nil, "", "", err
	}
	keys, warning, err = tcpKeys(address)
	return keys, value, warning, err
}

// cutInstructions cuts a line at the first colon that allow or deny follows: an IPv6 address has more of them.
func cutInstructions(line string) (address, instructions string, ok bool) {
	for at := 0; ; at++ {
		next := strings.IndexByte(line[at:], ':')
		if next < 0 {
			return "", "", false
		}
		at += next
		if rest := line[at+1:]; strings.HasPrefix(rest, "allow") || strings.HasPrefix(rest, "deny") {
			return line[:at], rest, true
		}
	}
}

// tcpValue makes the value of a record.
func tcpValue(instructions string) (string, error) {
	var b strings.Builder
	rest, deny := strings.CutPrefix(instructions, "deny")
	if deny {
		b.WriteString("D\x00")
	} else {
		rest = strings.TrimPrefix(rest, "allow")
	}
	for rest != "" {
		name, quoted, ok := strings.Cut(rest[1:], "=")
		if rest[0] != ',' || !ok || quoted == "" {
			return "", fmt.Errorf(`%s is not understood; write ,NAME="value" for each variable, without blanks`, quote(rest))
		}
		text, after, ok := strings.Cut(quoted[1:], quoted[:1])
		if !ok {
			return "", fmt.Errorf("the value of %s begins with %s and does not end with it", quote(name), quote(quoted[:1]))
		}
		b.WriteString("+" + name + "=" + text + "\x00")
		rest = after
	}
	return b.String(), nil
}

// tcpKeys are the keys of an address; the warning says that none of them can be a client's.
func tcpKeys(address string) (keys []string, warning string, err error) {
	info, host, named := strings.Cut(address, "=")
	if named {
		if info != "" && !strings.HasSuffix(info, "@") {
			warning = quote(address) + " matches no client: what precedes the = ends with an @"
		}
		return []string{info + "=" + lowerASCII(host)}, warning, nil
	}
	if at := strings.LastIndexByte(address, '@'); at >= 0 {
		ip, err := netip.ParseAddr(address[at+1:])
		if err != nil {
			return []string{address}, quote(address) + " matches no client: after the @ stands an address, or = and a host", nil
		}
		return []string{address[:at+1] + ip.Unmap().String()}, "", nil
	}
	switch {
	case strings.ContainsRune(address, '/'):
		return tcpNetwork(address)
	case strings.ContainsRune(address, ':'):
		return tcpIPv6(address)
	case strings.ContainsRune(address, '-'):
		return tcpRange(address)
	case address != "" && !isIPv4Rule(address):
		warning = quote(address) + " matches no client: write four numbers, or fewer and a dot at the end"
	}
	return []string{address}, warning, nil
}

// tcpNetwork is an address with a prefix length; what is beyond the length does not count.
func tcpNetwork(address string) (keys []string, warning string, err error) {
	text, length, _ := strings.Cut(address, "/")
	bits, err := strconv.Atoi(length)
	ip, ok := networkAddress(text)
	if err != nil || !ok || bits < 1 || bits > ip.BitLen() {
		return nil, "", fmt.Errorf(`%s is no network such as "192.0.2.0/24" or "2001:db8::/32"`, quote(address))
	}
	return []string{string(appendNetwork(nil, ip, bits))}, "", nil
}

// networkAddress also reads "127." and "127", of which the rest is zero.
func networkAddress(text string) (netip.Addr, bool) {
	if !strings.Contains(text, ":") {
		text = strings.TrimSuffix(text, ".")
		for strings.Count(text, ".") < 3 && len(text) < 16 {
			text += ".0"
		}
	}
	ip, err := netip.ParseAddr(text)
	return ip, err == nil && ip.Zone() == "" && !ip.Is4In6()
}

func tcpIPv6(address string) (keys []string, warning string, err error) {
	ip, err := netip.ParseAddr(address)
	switch {
	case err == nil && ip.Is4In6():
		// tcpserver makes an IPv4 client of it before it looks.
		return []string{ip.Unmap().String()}, "", nil
	case err == nil && ip.Zone() == "":
		return []string{ip.String()}, "", nil
	case strings.HasSuffix(address, ":") && strings.Trim(address, "0123456789abcdefABCDEF:") == "":
		return []string{lowerASCII(address)}, "", nil
	}
	return nil, "", fmt.Errorf(`%s is no address such as "2001:db8::1", "2001:db8::/32" or "2001:db8:"`, quote(address))
}

// tcpRange writes "10.2-3." out, as tcprules does: the first dash counts, a missing number is 0, and what is above 255 is
// left out.
func tcpRange(address string) (keys []string, warning string, err error) {
	dash := strings.IndexByte(address, '-')
	left := strings.LastIndexByte(address[:dash], '.') + 1
	right := len(address)
	if n := strings.IndexByte(address[dash:], '.'); n >= 0 {
		right = dash + n
	}
	from, ok1 := rangeNumber(address[left:dash])
	to, ok2 := rangeNumber(address[dash+1 : right])
	if !ok1 || !ok2 {
		return nil, "", fmt.Errorf(`%s is no range such as "192.0.2.37-53"`, quote(address))
	}
	for n := from; n <= min(to, 255); n++ {
		keys = append(keys, address[:left]+strconv.Itoa(n)+address[right:])
	}
	if len(keys) == 0 || !isIPv4Rule(keys[0]) {
		warning = quote(address) + ` matches no client: write a range such as "192.0.2.37-53" or "192.0.2-7."`
	}
	return keys, warning, nil
}

func rangeNumber(s string) (int, bool) {
	if s == "" {
		return 0, true
	}
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err == nil
}

// isIPv4Rule reports whether an address is one that a client can have, or the beginning of one.
func isIPv4Rule(s string) bool {
	text, prefix := strings.CutSuffix(s, ".")
	numbers := strings.Split(text, ".")
	if prefix == (len(numbers) == 4) || len(numbers) > 4 {
		return false
	}
	for _, n := range numbers {
		if v, err := strconv.ParseUint(n, 10, 8); err != nil || strconv.FormatUint(v, 10) != n {
			return false
		}
	}
	return true
}
