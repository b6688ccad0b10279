package main

import (
	"slices"

	"github.com/postern-mta/postern/cmd/postern/config"
)

// startOnly are the settings that a daemon reads when it starts, and never again: its
// queue is made of them. What else a configuration says is in force from a reload on,
// or a reload refuses it.
var startOnly = []string{
	"hostname", "user", "log.format", "limits.state_entries",
	"queue.lifetime", "queue.retry", "queue.remote", "queue.local", "queue.low_space", "queue.resolver",
	"bounce.format", "bounce.max_original", "bounce.warn", "bounce.from", "bounce.postmaster",
}

// laterSettings are those of startOnly that are not the same in two configurations.
func laterSettings(running, next *config.Config) (changed []string) {
	values := map[string]string{}
	for _, s := range running.Effective() {
		values[s.Key] = s.Value
	}
	for _, s := range next.Effective() {
		if slices.Contains(startOnly, s.Key) && values[s.Key] != s.Value {
			changed = append(changed, s.Key)
		}
	}
	return changed
}
