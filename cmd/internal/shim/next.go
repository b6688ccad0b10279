package shim

import (
	"syscall"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
)

// Argv is the arguments as a next program takes them.
func (c *Conversation) Argv() []string {
	argv, start := make([]string, 0, c.Argc), 0
	for i, b := range c.Args {
		if b == 0 {
			argv = append(argv, string(c.Args[start:i]))
			start = i + 1
		}
	}
	return argv
}

// NextEnviron is an environment for a next program: one hop more.
func NextEnviron(all []string) []string {
	const name = wire.HopsVariable + "="
	env := make([]string, 0, len(all)+1)
	for _, e := range all {
		if len(e) < len(name) || e[:len(name)] != name {
			env = append(env, e)
		}
	}
	return append(env, name+string(rune('1'+hops())))
}

func hops() int { return max(0, Number(Getenv(wire.HopsVariable), wire.MaxHops)) }

// IsLoop reports whether a next program is this one, or has been run by too many like it.
func IsLoop(path string) bool {
	var us, it syscall.Stat_t
	return hops() >= wire.MaxHops ||
		syscall.Stat("/proc/self/exe", &us) == nil && syscall.Stat(path, &it) == nil && us.Dev == it.Dev && us.Ino == it.Ino
}
