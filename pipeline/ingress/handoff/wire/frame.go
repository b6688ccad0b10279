package wire

// Version is the version of the format that this package speaks.
const Version = 1

// Limits, in bytes if not said otherwise. Both sides check them before they look at anything else.
const (
	MaxChunk  = 16 << 10              // one chunk of arguments and environment
	MaxPacket = helloHead + MaxChunk  // the longest frame of either side
	MaxArgs   = 1 << 20               // all arguments with their NULs
	MaxEnv    = 64 << 10              // all environment entries with their NULs
	MaxText   = 1023                  // text of an Exit
	MaxPath   = 4096                  // path of a Next with its NUL
	MaxPairs  = 128                   // pairs of a Next, a count
	MaxReport = 1 << 20               // all Texts together
	helloHead = 1 + 3 + 4 + 2 + 4 + 4 // a hello without its chunk

	// MaxRemoteArgs is MaxArgs of a qmail-remote, which has a recipient in each
	// argument: as much as Linux passes by default (execve(2)).
	MaxRemoteArgs = 2 << 20
)

// Waiting times of the shims, in milliseconds.
const (
	ConnectWait    = 10_000     // for a daemon that is missing, and again for its A; $POSTERN_WAIT changes it
	ConnectWaitMax = 60_000     // the most that $POSTERN_WAIT can say
	TotalWait      = 86_400_000 // for E: qmail-queue.c DEATH
	RemoteWait     = 3_600_000  // for E, of a qmail-remote: its message is a file
)

// HopsVariable counts how often a shim has handed on to a next program that may be a shim; MaxHops of them are a loop.
const (
	HopsVariable = "POSTERN_HOPS"
	MaxHops      = 5
)

// Kind is a frame's first byte.
type Kind byte

// The kinds of frame.
const (
	KindHello    Kind = 'H'
	KindData     Kind = 'D'
	KindResult   Kind = 'R'
	KindFellBack Kind = 'F'
	KindAccepted Kind = 'A'
	KindBeat     Kind = 'B'
	KindEnvelope Kind = 'E'
	KindExit     Kind = 'X'
	KindNext     Kind = 'N'
	KindPair     Kind = 'P'
	KindText     Kind = 'T'
)

// KindOf returns the kind of a packet; 0 for an empty one, which is end of file.
func KindOf(packet []byte) Kind {
	if len(packet) == 0 {
		return 0
	}
	return Kind(packet[0])
}

// Ignorable reports whether a frame of this kind, if it is not known, is ignored rather than malformed.
func (k Kind) Ignorable() bool { return 'a' <= k && k <= 'z' }

// Error says what is wrong with a frame. It is a constant, fit for a log.
type Error string

func (e Error) Error() string { return string(e) }

// What may be wrong with a frame.
const (
	ErrKind    Error = "handoff: frame of another kind"
	ErrLength  Error = "handoff: frame has the wrong length"
	ErrVersion Error = "handoff: the other side speaks another version"
	ErrField   Error = "handoff: field out of range"
	ErrList    Error = "handoff: arguments or environment do not agree with the hello"
)

// Program says which shim is calling.
type Program byte

// The shims.
const (
	ProgramQueue  Program = 'q' // qmail-queue: passes fds 0 and 1
	ProgramRemote Program = 'r' // qmail-remote: passes fd 0
)

// Descriptors returns how many descriptors come with the hello of p.
func (p Program) Descriptors() int {
	if p == ProgramQueue {
		return 2
	}
	return 1
}

// maxArgs is the limit of the program's arguments.
func (p Program) maxArgs() uint32 {
	if p == ProgramRemote {
		return MaxRemoteArgs
	}
	return MaxArgs
}

// Flags of a Hello.
type Flags uint8

// The flags that version 1 knows.
const (
	FlagEnvironmentCut Flags = 1 << 0
	FlagPrivileged     Flags = 1 << 1
	flagsKnown               = FlagEnvironmentCut | FlagPrivileged
)

// Mode says how a next program is run.
type Mode uint8

// The modes of a Next.
const (
	ModeExec Mode = 0 // the shim becomes the program
	ModeWait Mode = 1 // the shim runs it, waits and reports
)

// Hello is the shim's first frame.
type Hello struct {
	Program         Program
	Flags           Flags
	PPID            uint32
	Argc            uint16
	ArgsLen, EnvLen uint32
	Chunk           []byte // the beginning of the arguments and environment; a parsed one aliases the packet
}

// Data carries on with the arguments and environment.
type Data struct {
	Chunk []byte // a parsed one aliases the packet
}

// Result says how a next program ended.
type Result struct {
	Index        uint16
	Exit, Signal uint8
	PID          uint32
}

// FellBack says that the shim becomes the program that it was to run and wait for.
type FellBack struct {
	PID uint32
}

// Accepted is the daemon's first frame.
type Accepted struct {
	Beat, Slow uint32 // milliseconds
}

// Beat is the daemon's sign of life.
type Beat struct{}

// Envelope says that the daemon has read the envelope to its end.
type Envelope struct{}

// Exit is the daemon's answer.
type Exit struct {
	Code    uint8
	Dialect Dialect
	Text    string // empty, or D or Z and one line
}

// Next names the program that takes the message on.
type Next struct {
	Mode  Mode
	Count uint16
	Path  string
}

// Pair comes with two descriptors: message, envelope; for a qmail-remote with the message alone.
type Pair struct {
	Index uint16
}

// Text is a piece of a qmail-remote's report.
type Text struct {
	Chunk []byte
}
