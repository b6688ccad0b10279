//go:build race

package program

// raceDetector is whether the program is built with the race detector, which has
// more data than any limit.
const raceDetector = true
