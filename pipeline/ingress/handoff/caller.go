package handoff

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
)

// Bounds of what is taken over from the environment, in bytes.
const (
	maxName = 255
	maxUser = 320
)

// call is what one shim told about its caller, before it is judged.
type call struct {
	uid, pid int
	trusted  bool
	args     []string
	env      []string
	cut      bool // entries of the environment are missing
}

// sessionOf makes a session of a call, by the table in the package's comment.
// Network is whether the message came over the network, which decides the
// chain.
func (o *Options) sessionOf(id string, start time.Time, c call) (s *pipeline.Session, network bool) {
	s = &pipeline.Session{
		ID: id, Entrance: o.Entrance, Protocol: "qmail-queue", Start: start, Standing: pipeline.Local,
		UID: c.uid, PID: c.pid, Ours: o.Ours,
	}
	if !c.trusted {
		return s, false
	}
	s.Env = environment(c.env)
	ip, network := s.Env["TCPREMOTEIP"]
	if !network && !c.cut {
		return s, false
	}
	s.UID = -1
	s.Standing = pipeline.Stranger
	if _, relay := s.Env["RELAYCLIENT"]; relay {
		s.Standing = pipeline.Relayed
	}
	if s.User = o.user(s.Env); s.User != "" {
		s.Standing = pipeline.Authenticated
	}
	s.Peer = address(ip, s.Env["TCPREMOTEPORT"])
	if name := pipeline.LogText(s.Env["TCPREMOTEHOST"], maxName); name != "unknown" {
		s.PeerName = name
	}
	s.Helo = pipeline.LogText(s.Env["SMTPHELOHOST"], maxName)
	return s, true
}

// user is who logged in, by those of qmail's descendants that tell.
func (o *Options) user(env map[string]string) string {
	for _, name := range [...]string{"SMTPAUTHUSER", "AUTHUSER"} {
		if u := pipeline.LogText(env[name], maxUser); u != "" {
			return u
		}
	}
	if _, relay := env["RELAYCLIENT"]; relay && o.RemoteInfo {
		return pipeline.LogText(env["TCPREMOTEINFO"], maxUser)
	}
	return ""
}

// environment makes a map of a list. Of several entries with one name the
// first counts, as for getenv.
func environment(list []string) map[string]string {
	env := make(map[string]string, len(list))
	for _, e := range list {
		name, value, ok := strings.Cut(e, "=")
		if !ok || name == "" {
			continue
		}
		if _, twice := env[name]; !twice {
			env[name] = value
		}
	}
	return env
}

// address reads TCPREMOTEIP and TCPREMOTEPORT; the zero AddrPort if they do
// not hold an address. A v4-mapped address is the v4 address.
func address(ip, port string) netip.AddrPort {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.AddrPort{}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		n = 0
	}
	return netip.AddrPortFrom(a.Unmap().WithZone(""), uint16(n))
}
