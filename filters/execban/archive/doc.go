// Package archive walks what archives, disk images, compound files and the like
// have inside, as far as it goes and in every reading that a program might
// choose, for a filter that judges the members by name and content.
//
// It reads what attackers write and belongs into a worker process. It promises
// that memory, temporary space, members and depth stay within Limits whatever
// the input says of itself; that nothing is ever written under a name that an
// archive gives; and that what cannot be read is told to the caller as a member
// with an *Error, never passed over: encrypted, damaged, of a kind that is not
// supported, beyond a limit, or contradicting itself.
package archive
