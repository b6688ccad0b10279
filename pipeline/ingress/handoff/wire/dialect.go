package wire

// Dialect says how a caller wants to be told a text with the exit code: the forks of qmail differ.
//
//	dialect   descriptor                       exit  longest text
//	auto      $ERROR_FD, else 6, else 4        88 for $ERROR_FD, else 82   255
//	netqmail  4                                82    255
//	notqmail  6                                82    255
//	sagredo   $ERROR_FD if set, else 4         82    255
//	indimail  $ERROR_FD if set, else 2         88    1023
//	none      none (mailfront): the plain code
//
// A descriptor counts only if it is the writing end of a pipe that the caller left open; auto takes the first such one,
// and 88 with $ERROR_FD because both forks that set it know 88. $ERROR_FD is a decimal number; -1 turns the text off for
// sagredo and indimail; anything else is as if it were not set. The text is written only if it is longer than 2 bytes,
// and the special code is used only if it was written whole: in all other cases the plain code is.
type Dialect uint8

// The dialects.
const (
	DialectAuto Dialect = iota
	DialectNetqmail
	DialectNotqmail
	DialectSagredo
	DialectIndimail
	DialectNone
)

// Channel is one way to tell a text.
type Channel struct {
	FD      int   // the descriptor, -1 for none
	FromEnv bool  // $ERROR_FD, if set, is used in place of FD
	Exit    uint8 // the exit code that goes with the text
	Max     int   // bytes
}

// Channels returns the ways of the dialect, best first; nil for none and for one that is not valid.
func (d Dialect) Channels() []Channel {
	switch d {
	case DialectAuto:
		return []Channel{{-1, true, 88, 255}, {6, false, 82, 255}, {4, false, 82, 255}}
	case DialectNetqmail:
		return []Channel{{4, false, 82, 255}}
	case DialectNotqmail:
		return []Channel{{6, false, 82, 255}}
	case DialectSagredo:
		return []Channel{{4, true, 82, 255}}
	case DialectIndimail:
		return []Channel{{2, true, 88, MaxText}}
	}
	return nil
}

// Valid reports whether version 1 knows the dialect.
func (d Dialect) Valid() bool { return d <= DialectNone }

// String returns the dialect's name as the configuration has it; "" for one that is not valid.
func (d Dialect) String() string {
	names := [...]string{"auto", "netqmail", "notqmail", "sagredo", "indimail", "none"}
	if !d.Valid() {
		return ""
	}
	return names[d]
}

// ParseDialect is the inverse of String.
func ParseDialect(name string) (Dialect, bool) {
	for d := DialectAuto; d.Valid(); d++ {
		if d.String() == name {
			return d, true
		}
	}
	return 0, false
}

// Clean makes a text fit to be one line of a reply: at most limit bytes, each byte that is not printable ASCII (0x20 to
// 0x7e) replaced by '?'. Programs copy the text into an SMTP reply as it is (qmail.c), so a line feed in it would be a
// second reply.
func Clean(text string, limit int) []byte {
	b := []byte(text[:min(len(text), max(limit, 0))])
	for i, c := range b {
		if c < 0x20 || c > 0x7e {
			b[i] = '?'
		}
	}
	return b
}
