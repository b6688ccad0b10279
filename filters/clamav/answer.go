package clamav

import (
	"bytes"
	"fmt"
	"strings"

	clamd "github.com/dutchcoders/go-clamd"

	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/pipeline/servers"
)

const (
	// maxAnswer bounds clamd's answer in bytes.
	maxAnswer = 4096
	// maxName bounds a virus's name in bytes.
	maxName = 120
)

// sizeExceeded is how clamd begins its answer to a stream above StreamMaxLength.
const sizeExceeded = "INSTREAM size limit exceeded"

// parseAnswer reads everything that clamd sent from the end of a stream until it
// closed: exactly "stream: OK" or "stream: NAME FOUND" and a NUL. The name is ""
// if nothing was found, else printable ASCII. One that ends in ERROR is
// servers.Refused: it is there, but has not scanned this.
func parseAnswer(b []byte) (name string, err error) {
	if len(b) == 0 {
		return "", fmt.Errorf("clamd closed the connection without an answer")
	}
	if len(b) > maxAnswer {
		return "", fmt.Errorf("clamd answers more than %d bytes", maxAnswer)
	}
	i := bytes.IndexByte(b, 0)
	if i < 0 || i != len(b)-1 {
		return "", fmt.Errorf("clamd answers %q, which is not one answer", reply.Clean(string(b), maxName))
	}
	text := string(b[:i])
	if strings.HasSuffix(text, clamd.RES_ERROR) {
		err := fmt.Errorf("clamd answers %q", reply.Clean(text, maxName))
		if strings.Contains(text, sizeExceeded) {
			err = fmt.Errorf("%w: \"max\" is above its StreamMaxLength, lower the one or raise the other", err)
		}
		return "", servers.Refused(err)
	}
	result, ok := strings.CutPrefix(text, "stream: ")
	if ok && result == clamd.RES_OK {
		return "", nil
	}
	if name, found := strings.CutSuffix(result, " "+clamd.RES_FOUND); ok && found {
		if name = reply.Clean(name, maxName); name == "" {
			name = "unnamed"
		}
		return name, nil
	}
	return "", fmt.Errorf("clamd answers %q, which says nothing", reply.Clean(text, maxName))
}
