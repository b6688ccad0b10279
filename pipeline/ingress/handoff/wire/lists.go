package wire

// Lists gathers the arguments and the environment that a hello announces. The zero value is ready. Not safe for
// concurrent use. Its memory grows with what has come, never with what was announced.
type Lists struct {
	hello Hello
	buf   []byte
}

// Start takes the hello and its chunk. Done means that nothing more is to come.
func (l *Lists) Start(h Hello) (done bool, err error) {
	l.buf = l.buf[:0]
	l.hello = h
	l.hello.Chunk = nil
	return l.Add(h.Chunk)
}

// Add takes the next chunk, which it copies. Done means that nothing more is to come; one byte more is ErrList.
func (l *Lists) Add(chunk []byte) (done bool, err error) {
	total := int(l.hello.ArgsLen) + int(l.hello.EnvLen)
	if len(l.buf)+len(chunk) > total {
		return false, ErrList
	}
	l.buf = append(l.buf, chunk...)
	return len(l.buf) == total, nil
}

// Split returns the two lists. ErrList: something is missing, the last entry of a list has no NUL, or there are not argc
// arguments. The environment is as it was sent, with entries that have no '=' and with repeated names.
func (l *Lists) Split() (args, env []string, err error) {
	cut := int(l.hello.ArgsLen)
	if len(l.buf) != cut+int(l.hello.EnvLen) {
		return nil, nil, ErrList
	}
	args, ok := split(l.buf[:cut])
	if !ok || len(args) != int(l.hello.Argc) {
		return nil, nil, ErrList
	}
	if env, ok = split(l.buf[cut:]); !ok {
		return nil, nil, ErrList
	}
	return args, env, nil
}

// split cuts a list at its NULs.
func split(b []byte) ([]string, bool) {
	var list []string
	start := 0
	for i, c := range b {
		if c == 0 {
			list = append(list, string(b[start:i]))
			start = i + 1
		}
	}
	return list, start == len(b)
}

// AppendEntries adds each entry and its NUL to b.
func AppendEntries(b []byte, entries ...string) []byte {
	for _, e := range entries {
		b = append(append(b, e...), 0)
	}
	return b
}

// AppendEnvironment adds entries as far as they fit into MaxEnv bytes; those that do not are left out whole, and cut
// says so.
func AppendEnvironment(b []byte, env []string) (list []byte, cut bool) {
	start := len(b)
	for _, e := range env {
		if len(b)-start+len(e)+1 > MaxEnv {
			cut = true
			continue
		}
		b = append(append(b, e...), 0)
	}
	return b, cut
}
