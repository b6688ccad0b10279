//go:build !race

package rcptcheck

// raceDetector is whether the program is built with the race detector.
const raceDetector = false
