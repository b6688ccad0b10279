//go:build !quick

package main

import "github.com/postern-mta/postern/pipeline/ingress/handoff/wire"

// Waiting times, in milliseconds.
const (
	totalWait  = wire.TotalWait
	drainQuiet = 1_200_000 // as long as qmail-smtpd waits for its client
	errorWait  = 10_000    // for room in the pipe that takes the text
)
