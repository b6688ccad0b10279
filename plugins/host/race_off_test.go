//go:build !race

package host

// testMemory is what a plugin of the tests may use.
const testMemory = 512 << 20
