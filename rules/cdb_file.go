package rules

import (
	"fmt"
	"io/fs"
	"os"
)

// CDBFile is a database in a file that is read again when it changes: at most once a second it is looked at, when
// something is looked up. A new file that is missing or broken leaves the one before in force. It is safe for concurrent
// use; Close ends it.
type CDBFile struct{ w *watched[openCDB] }

type openCDB struct {
	*CDB
	file *os.File
}

// OpenCDBFile opens the database, which must be there and sound. Errors name the file, and are fs.ErrNotExist for one that
// is missing.
func OpenCDBFile(path string, o FileOptions) (*CDBFile, error) {
	w, err := watch(path, o, openCDBAt, func(c openCDB) error { return c.file.Close() })
	if err != nil {
		return nil, err
	}
	return &CDBFile{w: w}, nil
}

func openCDBAt(path string) (openCDB, fs.FileInfo, error) {
	f, err := openRegular(path)
	if err != nil {
		return openCDB{}, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return openCDB{}, nil, err
	}
	c, err := OpenCDB(f, info.Size())
	if err != nil {
		f.Close()
		return openCDB{}, nil, fmt.Errorf("%s: %w", path, err)
	}
	return openCDB{CDB: c, file: f}, info, nil
}

// openRegular opens a file that is one: a named pipe would never answer.
func openRegular(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: it is no regular file", path)
	}
	return os.Open(path)
}

// Find is [CDB.Find].
func (f *CDBFile) Find(key, dst []byte) (value []byte, ok bool, err error) {
	f.w.look()
	f.w.mu.RLock()
	defer f.w.mu.RUnlock()
	value, ok, err = f.w.current.Find(key, dst)
	return value, ok, f.name(err)
}

// Has is [CDB.Has].
func (f *CDBFile) Has(key string) (bool, error) {
	f.w.look()
	f.w.mu.RLock()
	defer f.w.mu.RUnlock()
	ok, err := f.w.current.Has(key)
	return ok, f.name(err)
}

// All calls f with each record until it returns false. What is looked up meanwhile waits if the file changes.
func (f *CDBFile) All(each func(CDBRecord) bool) error {
	return f.w.use(func(c openCDB) error {
		for r, err := range c.All() {
			if err != nil {
				return f.name(err)
			}
			if !each(r) {
				return nil
			}
		}
		return nil
	})
}

// Err is why the file as it is now is not in force; nil if it is.
func (f *CDBFile) Err() error { return f.w.problem() }

// Close closes the file. Nothing may be looked up after it.
func (f *CDBFile) Close() error { return f.w.shut() }

func (f *CDBFile) name(err error) error {
	if err != nil {
		err = fmt.Errorf("%s: %w", f.w.path, err)
	}
	return err
}
