//go:build quick

package main

// readWait is how long the daemon may take to read the message, in milliseconds, for the tests that wait for its end.
const readWait = 3000
