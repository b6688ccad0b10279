// Command mailqueue plays a site's qmail-queue. It reads message and envelope
// as that does, keeps them in $RECORD_DIR as PID.msg and PID.env, and ends as
// the local part of the first recipient asks: exit-N exits with N, signal-N
// dies of signal N, anything else is success. What is not taken is not kept.
package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

func main() { os.Exit(run()) }

func run() int {
	message, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 54
	}
	// fd 1 is for reading here.
	envelope, err := io.ReadAll(os.Stdout)
	if err != nil || !bytes.HasSuffix(envelope, []byte("\x00\x00")) {
		return 54
	}
	fields := bytes.SplitN(envelope, []byte{0}, 3)
	local, _, _ := strings.Cut(strings.TrimPrefix(string(fields[1]), "T"), "@")
	how, number, _ := strings.Cut(local, "-")
	n, err := strconv.Atoi(number)
	switch {
	case err == nil && how == "exit" && n != 0:
		return n
	case err == nil && how == "signal":
		syscall.Kill(os.Getpid(), syscall.Signal(n)) //nolint:errcheck // the test sees that we live
		select {}
	}
	base := filepath.Join(os.Getenv("RECORD_DIR"), strconv.Itoa(os.Getpid()))
	if os.WriteFile(base+".env", envelope, 0o666) != nil || os.WriteFile(base+".msg", message, 0o666) != nil {
		return 53
	}
	return 0
}
