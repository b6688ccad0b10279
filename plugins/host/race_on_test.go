//go:build race

package host

// testMemory is what a plugin of the tests may use: the race detector maps more
// than any sensible bound.
const testMemory = -1
