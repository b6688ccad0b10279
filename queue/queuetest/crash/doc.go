// Package crash proves on real disks what the queue promises of crashes: that
// nothing is lost which was acknowledged, that nothing is delivered in part,
// and that the daemon starts from whatever is left.
//
// Its tests run the real daemon and the C shim, with the daemon's state on an
// ext4 or xfs image behind a loop device. They cut the power (the file system's
// shutdown call, which throws away what was not flushed), kill the daemon, fill
// the disk, use up its inodes, turn it read-only, make it fail with real
// input/output errors, and take file descriptors, room in files, and memory
// away from the daemon. What the shim acknowledged is written down outside the
// image; afterwards all of it must be found in Maildirs and at an SMTP server,
// whole.
//
// # What it needs
//
// Root, loop devices, mkfs.ext4 and mkfs.xfs, and at length a memory cgroup. Everything happens in mount and
// process name spaces of its own, so that mounts, loop devices and processes
// are gone when the test is, however it ends, and two runs do not see each
// other. Where it cannot run it fails if CI is true or POSTERN_CRASH is set;
// else it says so and does nothing.
//
// # How long it runs
//
// POSTERN_CRASH=1 (make crash) makes it run at length. POSTERN_CUTS and
// POSTERN_KILLS are how many power cuts and kills are made in all, 20 and 5, or
// 200 and 30, by default. POSTERN_SEED repeats the choices of a run, though not
// its timing.
package crash
