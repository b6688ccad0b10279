package host

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// binary is the file of a plugin's program, opened. It is this file that is
// executed, by its descriptor, and not what has come to stand at its path since
// it was looked at: a file that is put in place of another (as by rename) is
// another file.
//
// Two moments remain. Whoever may write to the file itself may do so between the
// reading of its sum and its execution; such a change shows in the file's ctime
// (which nobody but root can set back), and so it is looked at once more when
// the process has started and before it is asked anything: then it is killed.
// From its execution on the kernel lets nobody write to a program (ETXTBSY); to a
// script it does. What a program loads beside itself, libraries or an
// interpreter, no sum of this file can vouch for.
type binary struct {
	*os.File
	pin    []byte // nil: none
	change unix.Timespec
	size   int64
}

// openBinary opens a program and compares its sum, if one is wanted.
func openBinary(path, pin string) (*binary, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, cause(err)
	}
	b := &binary{File: f}
	if err := b.check(pin); err != nil {
		f.Close()
		return nil, err
	}
	return b, nil
}

func (b *binary) check(pin string) error {
	st, err := b.stat()
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("it is no file")
	}
	if st.Mode&0o111 == 0 {
		return errors.New("it cannot be executed: chmod +x it, or put its interpreter in front")
	}
	b.change, b.size = st.Ctim, st.Size
	if pin == "" {
		return nil
	}
	if b.pin, err = hex.DecodeString(strings.ToLower(pin)); err != nil {
		return err
	}
	sum, err := sumFile(b.File)
	if err != nil {
		return cause(err)
	}
	if !bytes.Equal(sum, b.pin) {
		return fmt.Errorf("its SHA-256 is %x, not the configured %x: somebody has changed it; if that was you, change sha256 too", sum, b.pin)
	}
	return nil
}

func (b *binary) stat() (st unix.Stat_t, err error) {
	err = unix.Fstat(int(b.Fd()), &st)
	return st, err
}

// unchanged looks at a program whose sum is wanted after it was executed.
func (b *binary) unchanged() error {
	if b.pin == nil {
		return nil
	}
	st, err := b.stat()
	if err != nil {
		return err
	}
	if st.Ctim != b.change || st.Size != b.size {
		return errors.New("its file was changed while it was started")
	}
	return nil
}

// cause is an error without the path, which is told beside it.
func cause(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}
