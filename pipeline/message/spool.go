package message

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
)

// Directory is a Spooler on a directory of the operating system. Only one
// process may use a directory at a time; who makes it holds its lock.
type Directory struct {
	path string
	seq  atomic.Uint64
}

const spoolSuffix = ".spool"

// OpenDirectory makes the directory if need be and removes the spool files
// that a process left there which was killed.
func OpenDirectory(path string) (*Directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("spool directory: %w", err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("spool directory: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), spoolSuffix) {
			if err := os.Remove(filepath.Join(path, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("spool directory: %w", err)
			}
		}
	}
	return &Directory{path: path}, nil
}

// Path is the directory itself.
func (d *Directory) Path() string { return d.path }

// Create makes a file that only this user may read.
func (d *Directory) Create() (string, File, error) {
	name := strconv.FormatUint(d.seq.Add(1), 36) + spoolSuffix
	f, err := os.OpenFile(filepath.Join(d.path, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", nil, err
	}
	return name, f, nil
}

// Open opens a file for reading.
func (d *Directory) Open(name string) (File, error) {
	f, err := os.Open(filepath.Join(d.path, filepath.Base(name)))
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Remove removes a file.
func (d *Directory) Remove(name string) error {
	err := os.Remove(filepath.Join(d.path, filepath.Base(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
