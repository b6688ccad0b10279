//go:build !race

package execban

// underRace is whether the tests run with the race detector, in which each
// message takes twenty times as long.
const underRace = false
