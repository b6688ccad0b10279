package crash

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kind is a kind of file system.
type kind struct {
	name string
	mkfs []string
	data string // options of mount
	// check mends the file system before it is mounted again, as a system that
	// starts does; nil if the kernel does all.
	check []string
}

// kinds are the file systems that are promised to work, with the options that
// their tools choose by default.
var kinds = []kind{
	{name: "ext4", mkfs: []string{"mkfs.ext4", "-q", "-F"}, data: "errors=remount-ro", check: []string{"e2fsck", "-y", "-f"}},
	{name: "xfs", mkfs: []string{"mkfs.xfs", "-q", "-f"}},
}

const (
	loopControl = "/dev/loop-control"
	// shutdown is EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN: nothing is written
	// any more. With noFlush not even the journal that is in memory.
	shutdown = 0x8004587d
	noFlush  = 2
)

// volume is a file system on an image behind a loop device, mounted on dir.
type volume struct {
	kind
	t          *testing.T
	image, dir string
	device     string
	mounted    bool
	// small has the device make one request of each block. The loop driver takes
	// a request that was written in part for a success, so with larger ones a
	// device whose file cannot grow loses data that it acknowledged.
	small bool
}

// newVolume makes a file system of so many bytes and mounts it. It is unmounted
// when the test ends.
func newVolume(t *testing.T, k kind, folder string, size int64, small bool, options ...string) *volume {
	t.Helper()
	v := &volume{kind: k, t: t, small: small, image: filepath.Join(folder, "image"), dir: filepath.Join(folder, "disk")}
	f, err := os.Create(v.image)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err == nil {
		err = os.MkdirAll(v.dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	words := append(append(append([]string{}, k.mkfs...), options...), v.image)
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
	t.Cleanup(func() {
		if v.mounted {
			unix.Unmount(v.dir, unix.MNT_DETACH) //nolint:errcheck // it goes with the name space at the latest
		}
	})
	v.mount()
	return v
}

func (v *volume) mount() {
	v.t.Helper()
	loop, device, err := attach(v.image)
	if err != nil {
		v.t.Fatal(err)
	}
	// From the mount on the device is busy, and it is given back when it is not.
	defer unix.Close(loop)
	if v.small {
		v.limitRequests(device)
	}
	if err := unix.Mount(device, v.dir, v.name, 0, v.data); err != nil {
		v.t.Fatalf("mounting %s: %v", v.image, err)
	}
	v.device, v.mounted = device, true
}

// limitRequests makes the device's requests one block long. That stays with the
// device when it is given back, so it is undone when the test ends.
func (v *volume) limitRequests(device string) {
	v.t.Helper()
	name := filepath.Join("/sys/block", filepath.Base(device), "queue/max_sectors_kb")
	before, err := os.ReadFile(name)
	if err == nil {
		v.t.Cleanup(func() {
			if err := os.WriteFile(name, before, 0o644); err != nil {
				v.t.Errorf("%s stays as it is: %v", name, err)
			}
		})
		err = os.WriteFile(name, []byte("4"), 0o644)
	}
	if err != nil {
		v.t.Fatal(err)
	}
}

// attach puts a loop device before a file, that goes when nobody uses it.
func attach(image string) (fd int, device string, err error) {
	back, err := unix.Open(image, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", err
	}
	defer unix.Close(back)
	control, err := unix.Open(loopControl, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", err
	}
	defer unix.Close(control)
	for range 100 {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return -1, "", fmt.Errorf("no loop device is free: %w", err)
		}
		device = "/dev/loop" + strconv.Itoa(n)
		if fd, err = unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return -1, "", err
		}
		err = unix.IoctlLoopConfigure(fd, &unix.LoopConfig{Fd: uint32(back), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}})
		if err == nil {
			return fd, device, nil
		}
		unix.Close(fd)
		if !errors.Is(err, unix.EBUSY) { // another run was faster
			return -1, "", fmt.Errorf("%s: %w", device, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return -1, "", errors.New("every free loop device was taken before it could be used")
}

// cut is the power cut: from now on nothing reaches the image.
func (v *volume) cut() {
	v.t.Helper()
	fd, err := unix.Open(v.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		v.t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetPointerInt(fd, shutdown, noFlush); err != nil {
		v.t.Fatalf("shutting down %s: %v", v.dir, err)
	}
}

// unmount waits until who had files open is gone.
func (v *volume) unmount() {
	v.t.Helper()
	var err error
	for range 500 {
		if err = unix.Unmount(v.dir, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		v.t.Fatalf("unmounting %s: %v", v.dir, err)
	}
	v.mounted = false
}

// remount unmounts and mounts, as a restart of the machine would; a file system
// that found itself broken is checked in between.
func (v *volume) remount(broken bool) {
	v.t.Helper()
	v.unmount()
	if broken && v.check != nil {
		words := append(append([]string{}, v.check...), v.image)
		out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
		var code *exec.ExitError
		if err != nil && (!errors.As(err, &code) || code.ExitCode() > 1) { // 1: errors were corrected
			v.t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
		}
	}
	v.mount()
}

// free is what an unprivileged user may still take.
func (v *volume) free() (bytes, inodes int64) {
	v.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(v.dir, &st); err != nil {
		v.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Ffree)
}

// fill makes a file that leaves so many bytes free, as nearly as it can, and
// reports whether it did.
func (v *volume) fill(name string, leave int64) bool {
	v.t.Helper()
	f, err := os.OpenFile(filepath.Join(v.dir, name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return false
	}
	defer f.Close()
	done := false
	for step := int64(64 << 20); step >= 4<<10; {
		st, err := f.Stat()
		if err != nil {
			return done
		}
		bytes, _ := v.free()
		if bytes-leave < step || unix.Fallocate(int(f.Fd()), 0, st.Size(), step) != nil {
			step /= 2
			continue
		}
		done = true
	}
	return done
}

// clear removes a file.
func (v *volume) clear(name string) {
	v.t.Helper()
	if err := os.RemoveAll(filepath.Join(v.dir, name)); err != nil {
		v.t.Fatal(err)
	}
}
