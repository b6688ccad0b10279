//go:build !quick

package main

import "github.com/postern-mta/postern/pipeline/ingress/handoff/wire"

// readWait is how long the daemon may take to read the message, in milliseconds.
const readWait = wire.RemoteWait
