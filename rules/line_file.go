package rules

import (
	"fmt"
	"io/fs"
)

// LineFile is what is made of a text file's lines, made anew when the file changes, as a [CDBFile] is read anew. It is safe
// for concurrent use, and nothing stays open.
type LineFile[T any] struct{ w *watched[T] }

// OpenLineFile reads a file of at most limit bytes, which must be there, as [ControlLines] does, and makes something of its
// lines that does not change. An error of make is in the form "line 3: what is wrong"; errors name the file, and are
// fs.ErrNotExist for one that is missing.
func OpenLineFile[T any](path string, limit int, o FileOptions, make func([]Line) (T, error)) (*LineFile[T], error) {
	open := func(path string) (made T, info fs.FileInfo, err error) {
		f, err := openRegular(path)
		if err != nil {
			return made, nil, err
		}
		defer f.Close()
		if info, err = f.Stat(); err != nil {
			return made, nil, err
		}
		lines, err := ControlLines(f, limit)
		if err == nil {
			made, err = make(lines)
		}
		if err != nil {
			return made, nil, fmt.Errorf("%s: %w", path, err)
		}
		return made, info, nil
	}
	w, err := watch(path, o, open, func(T) error { return nil })
	if err != nil {
		return nil, err
	}
	return &LineFile[T]{w: w}, nil
}

// Get is what was made of the file as it is in force.
func (f *LineFile[T]) Get() (made T) {
	f.w.use(func(t T) error { made = t; return nil }) //nolint:errcheck // it has none
	return made
}

// Err is why the file as it is now is not in force; nil if it is.
func (f *LineFile[T]) Err() error { return f.w.problem() }
