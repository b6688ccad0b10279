// Package archivetest makes archives for tests: honest ones, and those that say
// different things to different programs. What it makes is small and is meant for
// readers that are hostile to it; it is not for production.
package archivetest
