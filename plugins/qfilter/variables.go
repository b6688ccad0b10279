package qfilter

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/program"
)

// defaultPath is where programs are looked for, and where they look.
const defaultPath = "/usr/local/bin:/usr/bin:/bin"

// maxString is the longest variable with its NUL that Linux takes, in bytes
// (MAX_ARG_STRLEN in binfmts.h, with the smallest pages).
const maxString = 128 << 10

// path is the programs' PATH.
func (f *Filter) path() string {
	if p, ok := f.o.Env["PATH"]; ok {
		return p
	}
	return defaultPath
}

// variables are those of a program's environment that are the same for all
// programs.
type variables struct{ all map[string]string }

// variables are those of a session: what its caller told, if he is believed, and
// what the entrance knows; then the configuration's.
func (f *Filter) variables(s *pipeline.Session) variables {
	all := map[string]string{}
	for name, value := range s.Env {
		if program.Passable(name, value) {
			all[name] = value
		}
	}
	known := func(name, value string) {
		if _, told := all[name]; !told {
			all[name] = value
		}
	}
	if s.Peer.IsValid() {
		known("PROTO", "TCP")
		known("TCPREMOTEIP", s.Peer.Addr().Unmap().String())
		known("TCPREMOTEPORT", strconv.Itoa(int(s.Peer.Port())))
		if s.PeerName != "" {
			known("TCPREMOTEHOST", s.PeerName)
		}
	}
	if s.Helo != "" {
		known("SMTPHELOHOST", s.Helo)
	}
	if s.User != "" {
		known("SMTPAUTHUSER", s.User)
	}
	if s.Standing == pipeline.Relayed || s.Standing == pipeline.Authenticated {
		known("RELAYCLIENT", "")
	}
	all["PATH"] = defaultPath
	maps.Copy(all, f.o.Env)
	all["QMAILPPID"], all["ERROR_FD"] = strconv.Itoa(caller(s)), strconv.Itoa(fdText)
	for _, name := range []string{"QMAILNAME", "QMAILUSER", "QMAILHOST", "QMAILRCPTS", "NUMRCPTS", "ENVSIZE", "MSGSIZE"} {
		delete(all, name)
	}
	return variables{all}
}

// caller is who called the shim, or if nobody did, this process.
func caller(s *pipeline.Session) int {
	if s.PID <= 0 {
		return os.Getpid()
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.PID))
	if err != nil {
		return s.PID
	}
	return parent(string(b), s.PID)
}

// parent is the parent's number in a line of proc(5) stat; the name before it may
// hold anything. A process whose parent is gone has nobody who waits for it.
func parent(stat string, or int) int {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return or
	}
	if n, err := strconv.Atoi(fields[1]); err == nil && n > 1 {
		return n
	}
	return or
}

// list is the environment for the next program. note says what it lacks, "" if
// it is whole.
func (v variables) list(e envelope.Envelope, envSize int, size int64) (list []string, note string) {
	list = make([]string, 0, len(v.all)+6)
	for _, name := range slices.Sorted(maps.Keys(v.all)) {
		if value := v.all[name]; fits(name, value) {
			list = append(list, name+"="+value)
		}
	}
	user, host := e.Sender, ""
	if at := strings.LastIndexByte(e.Sender, '@'); at >= 0 {
		user, host = e.Sender[:at], e.Sender[at+1:]
	}
	list = append(
		list, "QMAILUSER="+user, "QMAILHOST="+host, "NUMRCPTS="+strconv.Itoa(len(e.Recipients)),
		"ENVSIZE="+strconv.Itoa(envSize), "MSGSIZE="+strconv.FormatInt(size, 10),
	)
	const name = "QMAILRCPTS"
	length := len(name) + 2
	for _, r := range e.Recipients {
		length += len(r.Address) + 1
	}
	if length > maxString {
		return list, fmt.Sprintf("QMAILRCPTS is left out: with %d recipients it has %d bytes, at most %d", len(e.Recipients), length, maxString)
	}
	var b strings.Builder
	b.Grow(length)
	b.WriteString(name + "=")
	for _, r := range e.Recipients {
		b.WriteString(r.Address + "\n")
	}
	return append(list, b.String()), ""
}

// fits reports whether a variable can be passed on.
func fits(name, value string) bool {
	return name != "" && !strings.ContainsAny(name, "=\x00") && !strings.Contains(value, "\x00") && len(name)+len(value)+2 <= maxString
}
