package api

// StateEntry is one thing that a filter remembers, as it keeps it.
type StateEntry struct {
	Key   []byte `json:"key"`
	Value []byte `json:"value"`
	// Left is how many seconds it has to live.
	Left int64 `json:"left"`
}

// StatePage is a part of what a filter remembers, in the order of the keys.
type StatePage struct {
	Entries []StateEntry `json:"entries"`
	// More is set if there may be others after the last one.
	More bool `json:"more,omitempty"`
}

// StateKey asks for one entry.
type StateKey struct {
	Key []byte `json:"key"`
}

// StateChange changes what a filter remembers: entries to be put, their Left
// being how long they live, and keys to be deleted.
type StateChange struct {
	Put    []StateEntry `json:"put,omitempty"`
	Delete [][]byte     `json:"delete,omitempty"`
	// By is who asks, for the log.
	By string `json:"by,omitempty"`
}

// StateChanged says how much was changed.
type StateChanged struct {
	Changed int `json:"changed"`
}
