package rules

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
)

const (
	// maxTCPSource is the longest source that is read, in bytes.
	maxTCPSource = 16 << 20
	// maxTCPScan is up to which size in bytes a compiled file is read through when it is opened.
	maxTCPScan = 1 << 20
)

// TCPRulesFile are tcprules in a file that is read again when it changes, as a [CDBFile] is. It is safe for concurrent use.
type TCPRulesFile struct{ w *watched[openTCPRules] }

type openTCPRules struct {
	*TCPRules
	file *os.File // of compiled rules
}

// OpenTCPRules opens the rules, which must be there and right: a file whose name ends in .cdb is compiled, every other a
// source. Errors name the file and line.
func OpenTCPRules(path string, o FileOptions) (*TCPRulesFile, error) {
	open := readTCPRules
	if strings.HasSuffix(path, ".cdb") {
		open = openTCPCDB
	}
	w, err := watch(path, o, open, openTCPRules.shut)
	if err != nil {
		return nil, err
	}
	return &TCPRulesFile{w: w}, nil
}

func (r openTCPRules) shut() error {
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

func openTCPCDB(path string) (openTCPRules, fs.FileInfo, error) {
	c, info, err := openCDBAt(path)
	if err != nil {
		return openTCPRules{}, nil, err
	}
	t := CompiledTCPRules(c)
	if info.Size() <= maxTCPScan {
		// A client is looked up only under networks that there are.
		if t.networks, err = networksOf(c.CDB); err != nil {
			c.file.Close()
			return openTCPRules{}, nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return openTCPRules{TCPRules: t, file: c.file}, info, nil
}

func networksOf(c *CDB) (l networkLengths, err error) {
	for r, err := range c.All() {
		if err != nil {
			return l, err
		}
		l.add(r.Key)
	}
	return l, nil
}

func readTCPRules(path string) (openTCPRules, fs.FileInfo, error) {
	f, err := openRegular(path)
	if err != nil {
		return openTCPRules{}, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return openTCPRules{}, nil, err
	}
	lines, err := ControlLines(f, maxTCPSource)
	if err != nil {
		return openTCPRules{}, nil, fmt.Errorf("%s: %w", path, err)
	}
	t, err := ParseTCPRules(lines)
	if err != nil {
		return openTCPRules{}, nil, fmt.Errorf("%s: %w", path, err)
	}
	return openTCPRules{TCPRules: t}, info, nil
}

// Match is [TCPRules.Match].
func (f *TCPRulesFile) Match(c TCPClient) (TCPVerdict, error) {
	f.w.look()
	f.w.mu.RLock()
	defer f.w.mu.RUnlock()
	v, err := f.w.current.Match(c)
	if err != nil {
		err = fmt.Errorf("%s: %w", f.w.path, err)
	}
	return v, err
}

// Warnings are those of a source as it is in force.
func (f *TCPRulesFile) Warnings() (all []error) {
	f.w.use(func(t openTCPRules) error { all = t.Warnings(); return nil }) //nolint:errcheck // it has none
	return all
}

// Err is why the file as it is now is not in force; nil if it is.
func (f *TCPRulesFile) Err() error { return f.w.problem() }

// Close ends it. Nothing may be asked after it.
func (f *TCPRulesFile) Close() error { return f.w.shut() }
