package worker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// FuzzAnswer gives a pool's side packets that a worker could have sent, cut out
// of what comes by their lengths. Whatever comes, the answer is within its bound
// or there is an error.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(answer(kindAnswer, 1, 4, "four")), 28, 0)
	f.Add([]byte(answer(kindAnswer, 1, 8, "fourfour")), 28, 4)
	f.Add([]byte(answer(kindError, 1, 4, "oops")), 28, 0)
	f.Add([]byte(answer(kindAnswer, 1, 200, "four")), 28, 4)
	f.Add([]byte(answer(kindAnswer, 2, 4, "four")), 28, 4)
	f.Add([]byte("garbage"), 3, 1)
	f.Add([]byte{}, 0, 0)
	f.Fuzz(func(t *testing.T, all []byte, first, others int) {
		if len(all) > 16<<10 {
			return
		}
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		p := &process{conn: os.NewFile(uintptr(pair[0]), "ours"), buffer: make([]byte, answerHead+piece)}
		defer p.conn.Close()
		if p.raw, err = p.conn.SyscallConn(); err != nil {
			t.Fatal(err)
		}
		for n := first; len(all) > 0; n = others {
			n = max(1, min(n, len(all)))
			if _, err := unix.Write(pair[1], all[:n]); err != nil {
				break // more than fits the socket
			}
			all = all[n:]
		}
		unix.Close(pair[1])
		const limit = 100
		_ = p.conn.SetDeadline(time.Now().Add(time.Minute))
		kind, b, err := p.answer(1, limit)
		if err == nil && (kind != kindError && len(b) > limit || len(b) > maxLine) {
			t.Errorf("%d bytes of answer", len(b))
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("waited for more after the end")
		}
	})
}

// FuzzRequest gives a worker's side requests; it reads them as they were or
// refuses them.
func FuzzRequest(f *testing.F) {
	var b [requestHead]byte
	requestHeader{name: 4, sequence: 1, args: 10, limit: 100, body: 1000, deadline: time.Second, flags: bodyApart}.encode(&b)
	f.Add(b[:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		h, rest, err := decodeRequest(in)
		if err != nil {
			return
		}
		var out [requestHead]byte
		h.encode(&out)
		out[6], out[7] = in[6], in[7] // not used
		if !bytes.Equal(append(out[:], rest...), in) {
			t.Errorf("%x became %x", in, out)
		}
	})
}

// TestFilter runs the filter itself, as the kernel would, on numbers and
// arguments. The package bpf reads big-endian words.
func TestFilter(t *testing.T) {
	const pid = 4242
	var program []bpf.Instruction
	for _, i := range systemCalls(pid) {
		program = append(program, bpf.RawInstruction{Op: i.Code, Jt: i.Jt, Jf: i.Jf, K: i.K}.Disassemble())
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	call := func(arch, number uint32, args ...uint32) uint32 {
		t.Helper()
		b := make([]byte, 64)
		binary.BigEndian.PutUint32(b[dataNumber:], number)
		binary.BigEndian.PutUint32(b[dataArch:], arch)
		for i, a := range args {
			binary.BigEndian.PutUint32(b[dataArgs+8*i:], a)
		}
		n, err := vm.Run(b)
		if err != nil {
			t.Fatal(err)
		}
		return uint32(n)
	}
	const denied = retErrno | uint32(unix.EPERM)
	check := func(what string, got, want uint32) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %#x, want %#x", what, got, want)
		}
	}
	for _, n := range allowed() {
		check("an allowed call", call(auditArch, n), retAllow)
		check("an allowed call of another architecture", call(auditArch+1, n), retKill)
		check("an allowed call's foreign number", call(auditArch, n|0x40000000), map[bool]uint32{true: retKill, false: denied}[foreignNumbers != 0])
	}
	for _, n := range forbidden() {
		check("a forbidden call", call(auditArch, n), retKill)
	}
	check("openat", call(auditArch, unix.SYS_OPENAT), denied)
	check("an unknown number", call(auditArch, 5000), denied)
	check("mmap", call(auditArch, unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE), retAllow)
	check("mmap to execute", call(auditArch, unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_EXEC), denied)
	check("mprotect to execute", call(auditArch, unix.SYS_MPROTECT, 0, 4096, unix.PROT_EXEC), denied)
	check("a thread", call(auditArch, unix.SYS_CLONE, unix.CLONE_VM|unix.CLONE_THREAD|unix.CLONE_SIGHAND), retAllow)
	check("a process", call(auditArch, unix.SYS_CLONE, uint32(unix.SIGCHLD)), retKill)
	check("clone3", call(auditArch, unix.SYS_CLONE3), retErrno|uint32(unix.ENOSYS))
	check("a signal to itself", call(auditArch, unix.SYS_TGKILL, pid), retAllow)
	check("a signal to another", call(auditArch, unix.SYS_TGKILL, 1), retKill)
	check("F_GETFL", call(auditArch, unix.SYS_FCNTL, 3, unix.F_GETFL), retAllow)
	check("F_SETFL", call(auditArch, unix.SYS_FCNTL, 3, unix.F_SETFL), denied)
	check("F_DUPFD", call(auditArch, unix.SYS_FCNTL, 3, unix.F_DUPFD), retAllow)
	check("naming memory", call(auditArch, unix.SYS_PRCTL, unix.PR_SET_VMA), retAllow)
	check("PR_SET_DUMPABLE", call(auditArch, unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1), denied)
}

func TestSettings(t *testing.T) {
	s := settings{memory: 1, scratch: 2, cpu: 3, processors: 4, layers: Seccomp | User, landlock: 5, statm: -1, ownUser: 1}
	if got, err := parseSettings(s.String()); err != nil || got != s {
		t.Errorf("%+v, %v; want %+v", got, err, s)
	}
	for _, bad := range []string{"", "1,2", s.String() + ",1", "x" + s.String()} {
		if _, err := parseSettings(bad); err == nil {
			t.Errorf("%q was taken for settings", bad)
		}
	}
	if got := (NoNewPrivileges | Seccomp).String(); got != "no-new-privileges seccomp" {
		t.Error(got)
	}
	if got := allLayers.String(); (allLayers&^Seccomp).Missing() != Seccomp || len(bytes.Fields([]byte(got))) != len(layerNames) {
		t.Error(got)
	}
}
