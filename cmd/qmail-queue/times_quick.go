//go:build quick

package main

// Waiting times, in milliseconds, for the tests that wait for their end.
const (
	totalWait  = 3000
	drainQuiet = 500
	errorWait  = 500
)
