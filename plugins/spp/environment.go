package spp

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/program"
)

// Bounds of the variables that programs set in a session.
const (
	maxVariables   = 256
	maxEnvironment = 64 << 10 // bytes
)

// The switches in the environment of a session.
const (
	envOff    = "NOSPP"
	envOn     = "ENABLE_SPP"
	envFile   = "SPPCONFFILE"
	envMethod = "SMTPAUTHMETHOD"
)

// variables are those that programs have set or unset, for the session.
type variables struct {
	set  map[string]*string // nil: it is unset
	size int
}

// with is a copy with one more change.
func (v variables) with(name string, value *string) (variables, error) {
	next := variables{set: maps.Clone(v.set), size: v.size}
	if next.set == nil {
		next.set = map[string]*string{}
	}
	if old, ok := next.set[name]; ok {
		next.size -= len(name) + 1
		if old != nil {
			next.size -= len(*old)
		}
	}
	next.set[name] = value
	next.size += len(name) + 1
	if value != nil {
		next.size += len(*value)
	}
	if len(next.set) > maxVariables || next.size > maxEnvironment {
		return v, fmt.Errorf("it sets more than a session may hold: %d variables, %d bytes", maxVariables, maxEnvironment)
	}
	return next, nil
}

// given is what a session says of itself, as the caller of qmail-smtpd would.
func given(s *pipeline.Session) map[string]string {
	vars := map[string]string{"PATH": "/usr/local/bin:/usr/bin:/bin", "PROTO": "TCP"}
	for name, value := range s.Env {
		if program.Passable(name, value) {
			vars[name] = value
		}
	}
	if s.Peer.IsValid() {
		vars["TCPREMOTEIP"], vars["TCPREMOTEPORT"] = s.Peer.Addr().Unmap().String(), strconv.Itoa(int(s.Peer.Port()))
	}
	if s.PeerName != "" {
		vars["TCPREMOTEHOST"] = s.PeerName
	}
	if s.User != "" {
		vars["TCPREMOTEINFO"], vars["SMTPAUTHUSER"] = s.User, s.User
	}
	if _, ok := vars["RELAYCLIENT"]; !ok && (s.Standing == pipeline.Relayed || s.Standing == pipeline.Authenticated) {
		vars["RELAYCLIENT"] = ""
	}
	return vars
}

// environment is what a program gets: what the session has, then what programs
// have changed, then what the event is about.
func environment(s *pipeline.Session, changed variables, about map[string]string) []string {
	vars := given(s)
	for name, value := range changed.set {
		if value == nil {
			delete(vars, name)
		} else {
			vars[name] = *value
		}
	}
	if s.Helo != "" {
		vars["SMTPHELOHOST"] = s.Helo
	}
	maps.Copy(vars, about)
	env := make([]string, 0, len(vars))
	for name, value := range vars {
		if name != "" && !strings.ContainsAny(name, "=\x00") {
			env = append(env, name+"="+strings.ReplaceAll(value, "\x00", "?"))
		}
	}
	slices.Sort(env)
	return env
}
