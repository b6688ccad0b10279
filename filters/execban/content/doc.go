// Package content tells what a file is that somebody might open: by what it
// holds, whatever its name, and by its name, in every way in which a program
// might read that.
//
// It looks at parts of messages and at members of archives, one at a time: an
// Office document of the newer kind is a zip, and it is its members that are
// told to be macros or a template that comes from elsewhere. It promises to read
// a bounded part of a file, but for compound files, which are read once through,
// and to be linear in what it reads.
package content
