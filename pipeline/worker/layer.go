package worker

import "strings"

// Layers is a set of the sandbox's layers.
type Layers uint32

// The layers of the sandbox.
const (
	NoNewPrivileges Layers = 1 << iota // PR_SET_NO_NEW_PRIVS, and no capabilities
	User                               // a user of its own, not the daemon's
	Network                            // a network name space without interfaces
	Descriptors                        // every inherited descriptor is closed
	Limits                             // of descriptors, file size, CPU time, core files
	Memory                             // RLIMIT_DATA; the pool watches the memory as well
	Undumpable                         // PR_SET_DUMPABLE 0: no tracing by the same user
	Landlock                           // no file system
	Seccomp                            // system calls by allow-list
	allLayers       = Seccomp<<1 - 1
)

// layerNames are the words of the layers, in their order.
var layerNames = [...]string{"no-new-privileges", "user", "network", "descriptors", "limits", "memory", "undumpable", "landlock", "seccomp"}

// String is the layers' words with blanks between them.
func (l Layers) String() string {
	var words []string
	for i, name := range layerNames {
		if l&(1<<i) != 0 {
			words = append(words, name)
		}
	}
	return strings.Join(words, " ")
}

// Missing is the layers that are not on.
func (l Layers) Missing() Layers { return allLayers &^ l }
