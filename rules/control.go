package rules

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// Line is one line of a control file that says something.
type Line struct {
	No   int // from 1, comments and blank lines counted
	Text string
}

// ControlLines reads a file of qmail's control directory that has one entry a line. As in control_readfile (control.c),
// spaces and tabs at the end of a line do not count, blank lines and those that start with # are comments, and a line may
// lack its newline at the end of the file; blanks at the start of a line belong to it. Two things differ: a carriage
// return at the end of a line counts as a blank, and a NUL byte, which would cut the line there, is an error.
//
// A file of more than limit bytes is an error. Errors name the line; the caller knows the file.
func ControlLines(r io.Reader, limit int) ([]Line, error) {
	data, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		return nil, fmt.Errorf("the file is longer than %d bytes", limit)
	}
	var lines []Line
	for no := 1; len(data) > 0; no++ {
		var line []byte
		line, data, _ = bytes.Cut(data, []byte{'\n'})
		text := strings.TrimRight(string(line), " \t\r")
		if strings.IndexByte(text, 0) >= 0 {
			return nil, fmt.Errorf("line %d: NUL byte in the line", no)
		}
		if text != "" && text[0] != '#' {
			lines = append(lines, Line{No: no, Text: text})
		}
	}
	return lines, nil
}
