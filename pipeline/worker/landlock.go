package worker

import (
	"bufio"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What Landlock can forbid, by the version in which it came (landlock(7)).
var landlockRights = [...]struct {
	version     int
	files       uint64
	net, scoped uint64
}{
	{version: 1, files: 1<<13 - 1},
	{version: 2, files: unix.LANDLOCK_ACCESS_FS_REFER},
	{version: 3, files: unix.LANDLOCK_ACCESS_FS_TRUNCATE},
	{version: 4, net: unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP},
	{version: 5, files: unix.LANDLOCK_ACCESS_FS_IOCTL_DEV},
	{version: 6, scoped: unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL},
}

// restrictFiles takes the file system, and what else Landlock can, away from
// this thread and what comes of it; only the program itself and its libraries
// can still be read, so that it can be executed once more. It returns the
// version of the kernel's Landlock, 0 if there is none or it does not work.
func restrictFiles() int {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 || version < 1 {
		return 0
	}
	var attr unix.LandlockRulesetAttr
	for _, r := range landlockRights {
		if r.version <= int(version) {
			attr.Handled_access_fs |= r.files
			attr.Handled_access_net |= r.net
			attr.Scoped |= r.scoped
		}
	}
	// Older kernels take a longer structure if what they do not know is zero.
	set, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return 0
	}
	defer unix.Close(int(set))
	for _, path := range ownFiles() {
		allowReading(int(set), path)
	}
	if _, _, errno = unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, set, 0, 0); errno != 0 {
		return 0
	}
	return int(version)
}

// allowReading lets one file be read and executed. If that fails, so does
// executing it, and the pool is told.
func allowReading(set int, path string) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	rule := unix.LandlockPathBeneathAttr{
		Allowed_access: unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_EXECUTE,
		Parent_fd:      int32(fd),
	}
	_, _, _ = unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
}

// ownFiles is the program and the libraries that are mapped into it.
func ownFiles() []string {
	files := []string{ownProgram}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return files
	}
	defer f.Close()
	seen := map[string]bool{}
	for s := bufio.NewScanner(f); s.Scan(); {
		// address permissions offset device inode path
		fields := strings.Fields(s.Text())
		if len(fields) < 6 || fields[5][0] != '/' || seen[fields[5]] {
			continue
		}
		seen[fields[5]] = true
		files = append(files, fields[5])
	}
	return files
}
