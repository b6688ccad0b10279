package main

import (
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/cmd/postern/config"
)

// ownDescriptors are for the store, logs, lists, programs and the resolver, and
// for the fewest connections that are free and kept for the next message.
const ownDescriptors = 1000

// descriptorsFor is how many descriptors a configuration may have open at a time:
// one for each client, and one for each delivery.
func descriptorsFor(c *config.Config) uint64 {
	n := uint64(ownDescriptors)
	if queues(c) {
		n += uint64(c.Queue.Remote) + uint64(c.Queue.Local)
	}
	for _, l := range c.Listen {
		if l.IsSMTP() {
			n += uint64(l.Connections)
		}
	}
	return n
}

// Bounds of the connections that are free and kept for the next message.
const (
	fewestKept = 100
	mostKept   = 5000
)

// keptFor is how many connections a configuration may keep that are free: half of
// the descriptors that it cannot ask for.
func keptFor(c *config.Config) int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fewestKept
	}
	spare := uint64(0)
	if need := descriptorsFor(c); limit.Cur > need {
		spare = limit.Cur - need
	}
	return int(min(max(spare/2, fewestKept), mostKept))
}

// warnDescriptors tells if the process may not open as many descriptors as a
// configuration can ask for. The runtime has raised the soft limit to the hard one
// already, and gives programs that we start the one that we were started with.
func warnDescriptors(c *config.Config, log *slog.Logger) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return
	}
	need := descriptorsFor(c)
	if limit.Cur >= need {
		return
	}
	log.Warn("this process may open fewer descriptors than its configuration can ask for; at the limit clients and deliveries are put off: raise its limit (LimitNOFILE= under systemd, else ulimit -Hn), or lower queue.remote or the connections of the entrances",
		"may", limit.Cur, "asks", need)
}
