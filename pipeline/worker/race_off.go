//go:build !race

package worker

// raceDetector is whether the program is built with the race detector.
const raceDetector = false
