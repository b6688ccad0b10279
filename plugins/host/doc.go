// Package host runs filters that are programs of their own, on
// hashicorp/go-plugin: it starts them, keeps them running, asks them, and
// believes nothing that they say before it is checked.
//
// A Host belongs to the daemon and outlives its configurations. Kind makes a
// pipeline.Kind of a plugin by starting it and asking what it is; a filter of
// that kind is told to the plugin by a handle. A plugin that is asked for again
// with the same settings and the same program is the one that runs; a changed
// one runs beside it until the last filter of the old one is closed. One that is
// down when it is asked for again is tried at once; if it cannot be asked, a filter
// keeps the options that the plugin has taken before, and other options are an
// error.
//
// Promises: a plugin that dies, hangs, is stopped, floods its output, answers
// too much or what is not true makes its call an error, and never more than
// that: an answer counts whole or not at all. A process that is not well is
// ended and started again, at growing intervals. A plugin has the limits, user,
// environment and descriptors that it was given before its first instruction,
// and nothing of the daemon's. It can read the bodies that it is asked about,
// while it is asked, and no others. Nothing of a plugin that has ended is left:
// no process, file or socket; what a daemon that was killed has left goes at the
// next start.
//
// What a plugin needs is told to it, and no more. A body of more than 16 KiB is a
// file: a link to the spool's own where the plugin has a user of its own, who
// cannot write to it, else a copy.
package host
