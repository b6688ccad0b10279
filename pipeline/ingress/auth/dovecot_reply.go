package auth

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline/reply"
)

// handshake is what a server says first.
type handshake struct {
	version, plain, done bool
}

// read takes a line of it.
func (h *handshake) read(line string) error {
	fields := strings.Split(line, "\t")
	switch fields[0] {
	case "VERSION":
		if len(fields) < 2 || fields[1] != "1" {
			return fmt.Errorf("it speaks another version of the protocol: %s", reply.Clean(line, 80))
		}
		h.version = true
	case "MECH":
		h.plain = h.plain || len(fields) > 1 && strings.EqualFold(fields[1], "PLAIN")
	case "DONE":
		switch {
		case !h.version:
			return errors.New("it did not tell its version; is this the socket for clients?")
		case !h.plain:
			return errors.New("it does not offer PLAIN: add it to auth_mechanisms in its configuration")
		}
		h.done = true
	}
	return nil
}

// dovecotReply is an answer to a request.
type dovecotReply struct {
	command string // OK, FAIL, CONT
	id      uint32
	values  map[string]string // parameters "name=value"
	flags   map[string]bool   // parameters without a value
}

// known reports whether the line was an answer; others are none of our business.
func (r *dovecotReply) known() bool { return r.command != "" }

// parseDovecotReply reads a line that the server sends after the handshake. Lines
// that are no answers give the zero reply.
func parseDovecotReply(line string) (dovecotReply, error) {
	command, rest, _ := strings.Cut(line, "\t")
	switch command {
	case "OK", "FAIL", "CONT":
	default:
		return dovecotReply{}, nil
	}
	fields := strings.Split(rest, "\t")
	id, err := strconv.ParseUint(fields[0], 10, 32)
	if err != nil {
		return dovecotReply{}, fmt.Errorf("an answer without an id: %s", reply.Clean(line, 80))
	}
	r := dovecotReply{command: command, id: uint32(id), values: map[string]string{}, flags: map[string]bool{}}
	if command == "CONT" {
		return r, nil // what follows is data
	}
	for _, f := range fields[1:] {
		if name, value, ok := strings.Cut(f, "="); ok {
			r.values[name] = unescapeTab(value)
		} else {
			r.flags[f] = true
		}
	}
	return r, nil
}

// tabEscapes are the bytes that stand after \001 in the place of others.
var tabEscapes = strings.NewReplacer("\x010", "\x00", "\x011", "\x01", "\x01t", "\t", "\x01r", "\r", "\x01n", "\n", "\x01", "")

// unescapeTab undoes Dovecot's escaping of parameters.
func unescapeTab(s string) string { return tabEscapes.Replace(s) }
