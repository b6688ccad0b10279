package wire

// The Append methods add the frame to b and return it; they do not check: a value that Parse would refuse makes a frame
// that Parse refuses. The Parse functions are strict, allocate only the strings they return and never panic.

func put16(b []byte, v uint16) []byte { return append(b, byte(v), byte(v>>8)) }

func put32(b []byte, v uint32) []byte {
	return append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
}

func get16(b []byte) uint16 { return uint16(b[0]) | uint16(b[1])<<8 }
func get32(b []byte) uint32 { return uint32(get16(b)) | uint32(get16(b[2:]))<<16 }

// body returns what follows the kind, when the packet is of that kind and has from least to most bytes after it.
func body(packet []byte, kind Kind, least, most int) ([]byte, error) {
	if KindOf(packet) != kind {
		return nil, ErrKind
	}
	if n := len(packet) - 1; n < least || n > most {
		return nil, ErrLength
	}
	return packet[1:], nil
}

// Append encodes the hello.
func (h Hello) Append(b []byte) []byte {
	b = append(b, byte(KindHello), Version, byte(h.Program), byte(h.Flags))
	b = put32(b, h.PPID)
	b = put16(b, h.Argc)
	b = put32(b, h.ArgsLen)
	b = put32(b, h.EnvLen)
	return append(b, h.Chunk...)
}

// ParseHello decodes a hello. ErrVersion comes before all other complaints but ErrKind, as another version may look
// different.
func ParseHello(packet []byte) (Hello, error) {
	if KindOf(packet) == KindHello && len(packet) > 1 && packet[1] != Version {
		return Hello{}, ErrVersion
	}
	b, err := body(packet, KindHello, helloHead-1, MaxPacket-1)
	if err != nil {
		return Hello{}, err
	}
	h := Hello{
		Program: Program(b[1]), Flags: Flags(b[2]), PPID: get32(b[3:]), Argc: get16(b[7:]),
		ArgsLen: get32(b[9:]), EnvLen: get32(b[13:]), Chunk: b[17:],
	}
	switch {
	case h.Program != ProgramQueue && h.Program != ProgramRemote,
		h.Flags&^flagsKnown != 0,
		h.ArgsLen > h.Program.maxArgs() || h.EnvLen > MaxEnv || uint32(h.Argc) > h.ArgsLen:
		return Hello{}, ErrField
	case uint32(len(h.Chunk)) > h.ArgsLen+h.EnvLen:
		return Hello{}, ErrList
	}
	return h, nil
}

// Append encodes the chunk.
func (d Data) Append(b []byte) []byte { return append(append(b, byte(KindData)), d.Chunk...) }

// ParseData decodes a chunk.
func ParseData(packet []byte) (Data, error) {
	b, err := body(packet, KindData, 1, MaxChunk)
	return Data{Chunk: b}, err
}

// Append encodes the result.
func (r Result) Append(b []byte) []byte {
	b = put16(append(b, byte(KindResult)), r.Index)
	return put32(append(b, r.Exit, r.Signal), r.PID)
}

// ParseResult decodes a result.
func ParseResult(packet []byte) (Result, error) {
	b, err := body(packet, KindResult, 8, 8)
	if err != nil {
		return Result{}, err
	}
	r := Result{Index: get16(b), Exit: b[2], Signal: b[3], PID: get32(b[4:])}
	if r.Index >= MaxPairs {
		return Result{}, ErrField
	}
	return r, nil
}

// Append encodes the notice.
func (f FellBack) Append(b []byte) []byte { return put32(append(b, byte(KindFellBack)), f.PID) }

// ParseFellBack decodes the notice.
func ParseFellBack(packet []byte) (FellBack, error) {
	b, err := body(packet, KindFellBack, 4, 4)
	if err != nil {
		return FellBack{}, err
	}
	return FellBack{PID: get32(b)}, nil
}

// Append encodes the acceptance.
func (a Accepted) Append(b []byte) []byte {
	return put32(put32(append(b, byte(KindAccepted), Version), a.Beat), a.Slow)
}

// ParseAccepted decodes the acceptance. ErrVersion comes before all other complaints but ErrKind.
func ParseAccepted(packet []byte) (Accepted, error) {
	if KindOf(packet) == KindAccepted && len(packet) > 1 && packet[1] != Version {
		return Accepted{}, ErrVersion
	}
	b, err := body(packet, KindAccepted, 9, 9)
	if err != nil {
		return Accepted{}, err
	}
	a := Accepted{Beat: get32(b[1:]), Slow: get32(b[5:])}
	if a.Beat == 0 || a.Slow == 0 {
		return Accepted{}, ErrField
	}
	return a, nil
}

// Append encodes the sign of life.
func (Beat) Append(b []byte) []byte { return append(b, byte(KindBeat)) }

// ParseBeat checks a sign of life.
func ParseBeat(packet []byte) (Beat, error) {
	_, err := body(packet, KindBeat, 0, 0)
	return Beat{}, err
}

// Append encodes the notice.
func (Envelope) Append(b []byte) []byte { return append(b, byte(KindEnvelope)) }

// ParseEnvelope checks the notice.
func ParseEnvelope(packet []byte) (Envelope, error) {
	_, err := body(packet, KindEnvelope, 0, 0)
	return Envelope{}, err
}

// Append encodes the answer. A text longer than MaxText is cut.
func (x Exit) Append(b []byte) []byte {
	text := x.Text[:min(len(x.Text), MaxText)]
	b = append(b, byte(KindExit), x.Code, byte(x.Dialect))
	return append(put16(b, uint16(len(text))), text...)
}

// ParseExit decodes the answer.
func ParseExit(packet []byte) (Exit, error) {
	b, err := body(packet, KindExit, 4, 4+MaxText)
	if err != nil {
		return Exit{}, err
	}
	text := b[4:]
	switch {
	case int(get16(b[2:])) != len(text):
		return Exit{}, ErrLength
	case !Dialect(b[1]).Valid(), len(text) > 0 && text[0] != 'D' && text[0] != 'Z':
		return Exit{}, ErrField
	}
	return Exit{Code: b[0], Dialect: Dialect(b[1]), Text: string(text)}, nil
}

// Append encodes the order.
func (n Next) Append(b []byte) []byte {
	b = put16(append(b, byte(KindNext), byte(n.Mode)), n.Count)
	return append(append(b, n.Path...), 0)
}

// ParseNext decodes the order.
func ParseNext(packet []byte) (Next, error) {
	b, err := body(packet, KindNext, 3+2, 3+MaxPath)
	if err != nil {
		return Next{}, err
	}
	n, path := Next{Mode: Mode(b[0]), Count: get16(b[1:])}, b[3:]
	for i, c := range path {
		if (c == 0) != (i == len(path)-1) {
			return Next{}, ErrField
		}
	}
	switch {
	case path[0] != '/', n.Count == 0 || n.Count > MaxPairs,
		n.Mode > ModeWait || n.Mode == ModeExec && n.Count != 1:
		return Next{}, ErrField
	}
	n.Path = string(path[:len(path)-1])
	return n, nil
}

// Append encodes the index.
func (p Pair) Append(b []byte) []byte { return put16(append(b, byte(KindPair)), p.Index) }

// ParsePair decodes the index.
func ParsePair(packet []byte) (Pair, error) {
	b, err := body(packet, KindPair, 2, 2)
	if err != nil {
		return Pair{}, err
	}
	if p := (Pair{Index: get16(b)}); p.Index < MaxPairs {
		return p, nil
	}
	return Pair{}, ErrField
}

// Append encodes the piece.
func (t Text) Append(b []byte) []byte { return append(append(b, byte(KindText)), t.Chunk...) }

// ParseText decodes a piece, which is a part of the packet.
func ParseText(packet []byte) (Text, error) {
	b, err := body(packet, KindText, 1, MaxChunk)
	return Text{Chunk: b}, err
}
