package filtertest

import "testing"

// Soak is how many calls must leave nothing behind: ten thousand, or with -short,
// as for the race detector, one thousand.
func Soak() int {
	if testing.Short() {
		return 1000
	}
	return 10_000
}
