//go:build !race

package program

// raceDetector is whether the program is built with the race detector.
const raceDetector = false
