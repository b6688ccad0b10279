//go:build race

package limit

// raceDetector is set where the race detector makes hours of simulated time long:
// one case of each table is enough to find races.
const raceDetector = true
