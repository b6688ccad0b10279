package main

// headroomSize is how many bytes of garbage the daemon may always have. While
// little is kept in memory the collector would otherwise run after every few
// hundred messages.
const headroomSize = 24 << 20

// newHeadroom makes memory that is never touched: it takes an address range and
// nothing else, but the collector, which waits until the heap has doubled, counts
// it. So there is never more garbage than the heap itself and headroomSize,
// however large the heap is: a larger GOGC would have no such bound.
func newHeadroom() []byte { return make([]byte, headroomSize) }
