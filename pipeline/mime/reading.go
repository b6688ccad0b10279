package mime

import (
	"math/bits"
	"strings"
)

// Reason is one way in which programs that read mail differ: a departure from
// the standard that some of them make, or a fault of the message over which
// they part.
type Reason uint8

// The reasons. Their order is that of the message: head, structure, encoding.
const (
	HeaderEndsAtBlanks  Reason = iota // a line of blanks ends the header, or continues it
	HeaderEndsAtGarbage               // a line that is no field ends the header, or is skipped, or continues a field
	HeaderMissing                     // text where a header should be, or a header without an end
	HeaderAfterBlank                  // blank lines before the header are skipped
	FieldName                         // a field name with blanks, controls or 8-bit bytes in it
	FieldRepeated                     // a field stands there twice and says the same
	TypeContradicts                   // Content-Type fields that differ
	EncodingContradicts               // Content-Transfer-Encoding fields that differ
	NameContradicts                   // fields or parameters that give different names
	ParameterLoose                    // a parameter that only a loose reader finds, or reads otherwise
	ParameterSplit                    // RFC 2231 pieces out of order, repeated, with gaps or contradicted by a plain parameter
	BoundaryContradicts               // more than one boundary
	BoundaryPrefix                    // lines that only begin with the boundary
	BoundaryBad                       // no boundary, an empty one, or one that never occurs
	BoundaryGuessed                   // parts found without a boundary to go by
	BoundaryBeyond                    // an inner boundary that goes on behind the end of its part
	AfterClose                        // parts behind the closing delimiter
	PartsOutside                      // what looks like parts in a preamble or epilogue
	PartsInText                       // what looks like parts in a text
	Unterminated                      // no closing delimiter
	BareCR                            // a CR alone ends a line
	EncodedContainer                  // a multipart or message that is itself encoded
	MessageByName                     // an attachment that is opened as a message for its name
	Fragment                          // message/partial: a piece of a message that clients put together
	EncodingUnknown                   // an encoding that no standard knows
	EncodingGuessed                   // the content contradicts the encoding it is said to have
	Base64Junk                        // bytes outside the alphabet in base64
	Base64Padding                     // base64 that goes on after its padding
	Base64URL                         // the other alphabet, of RFC 4648 §5
	Base64Cut                         // base64 that ends in the middle of four characters
	QuotedBad                         // quoted-printable escapes that are none
	QuotedLower                       // quoted-printable escapes in lower case
	QuotedBlanks                      // blanks at the end of quoted-printable lines
	InText                            // uuencode, yEnc or BinHex in a text
	reasons
)

// Severity says how much a Reason matters.
type Severity uint8

// The severities. A filter that is to be strict calls a message unscannable from
// Odd on, a tolerant one never does for a finding.
const (
	// Notice: ordinary mail has it, and programs hardly differ.
	Notice Severity = iota
	// Odd: seldom in ordinary mail; programs differ in what they show.
	Odd
	// Contradiction: readers get different parts, names or contents, and hardly
	// any honest program writes it.
	Contradiction
)

var severities = [...]string{"notice", "odd", "contradiction"}

// String is the severity's word.
func (s Severity) String() string {
	if int(s) < len(severities) {
		return severities[s]
	}
	return "unknown"
}

// ParseSeverity is the inverse of String.
func ParseSeverity(s string) (Severity, bool) {
	for i, word := range severities {
		if word == s {
			return Severity(i), true
		}
	}
	return 0, false
}

// reasonTable has a reason's word for rules and logs, and how much it matters.
var reasonTable = [reasons]struct {
	word     string
	severity Severity
	about    string
}{
	HeaderEndsAtBlanks:  {"header-ends-at-blanks", Notice, "a line of blanks in the header may end it"},
	HeaderEndsAtGarbage: {"header-ends-at-garbage", Odd, "a line in the header is no field and may end it"},
	HeaderMissing:       {"header-missing", Notice, "a part without a header, or whose header does not end"},
	HeaderAfterBlank:    {"header-after-blank", Odd, "fields that follow a blank line where the header should begin"},
	FieldName:           {"field-name", Notice, "a field name with blanks or control bytes"},
	FieldRepeated:       {"field-repeated", Notice, "a field that stands there twice"},
	TypeContradicts:     {"type-contradicts", Contradiction, "Content-Type fields that differ"},
	EncodingContradicts: {"encoding-contradicts", Contradiction, "Content-Transfer-Encoding fields that differ"},
	NameContradicts:     {"name-contradicts", Odd, "names with different extensions for one part"},
	ParameterLoose:      {"parameter-loose", Odd, "a parameter that readers understand differently"},
	ParameterSplit:      {"parameter-split", Odd, "pieces of a parameter out of order, repeated, missing or contradicted"},
	BoundaryContradicts: {"boundary-contradicts", Contradiction, "more than one boundary for one multipart"},
	BoundaryPrefix:      {"boundary-prefix", Notice, "lines that begin with the boundary and go on"},
	BoundaryBad:         {"boundary-bad", Contradiction, "a multipart without a boundary that can be used"},
	BoundaryGuessed:     {"boundary-guessed", Odd, "parts found without a boundary"},
	BoundaryBeyond:      {"boundary-beyond", Odd, "a boundary that goes on behind the end of its part"},
	AfterClose:          {"after-close", Odd, "parts behind the closing delimiter"},
	PartsOutside:        {"parts-outside", Contradiction, "what looks like parts before or after a multipart"},
	PartsInText:         {"parts-in-text", Notice, "what looks like parts in a text"},
	Unterminated:        {"unterminated", Notice, "a multipart without its closing delimiter"},
	BareCR:              {"bare-cr", Odd, "a CR alone, where some see the end of a line"},
	EncodedContainer:    {"encoded-container", Odd, "a multipart or message that is itself encoded"},
	MessageByName:       {"message-by-name", Notice, "an attached file that opens as a message"},
	Fragment:            {"fragment", Contradiction, "a piece of a message to be put together by the reader"},
	EncodingUnknown:     {"encoding-unknown", Odd, "an encoding that no standard knows"},
	EncodingGuessed:     {"encoding-guessed", Notice, "content that looks encoded otherwise than it says"},
	Base64Junk:          {"base64-junk", Odd, "bytes outside the alphabet in base64"},
	Base64Padding:       {"base64-padding", Odd, "base64 that goes on after its padding"},
	Base64URL:           {"base64-url", Odd, "base64 in the alphabet for URLs"},
	Base64Cut:           {"base64-cut", Notice, "base64 that ends early"},
	QuotedBad:           {"quoted-bad", Odd, "quoted-printable escapes that are none"},
	QuotedLower:         {"quoted-lower", Notice, "quoted-printable in lower case"},
	QuotedBlanks:        {"quoted-blanks", Notice, "blanks at the end of quoted-printable lines"},
	InText:              {"in-text", Notice, "an encoded file in a text"},
}

// String is the reason's word.
func (r Reason) String() string {
	if r < reasons {
		return reasonTable[r].word
	}
	return "unknown"
}

// Severity is how much the reason matters.
func (r Reason) Severity() Severity {
	if r < reasons {
		return reasonTable[r].severity
	}
	return Contradiction
}

// About says in a few words what was found.
func (r Reason) About() string {
	if r < reasons {
		return reasonTable[r].about
	}
	return "unknown"
}

// AllReasons are the reasons there are, in order.
func AllReasons() []Reason {
	all := make([]Reason, reasons)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// Reading is a set of Reasons: how a reader must depart from the standard to
// come to a part, name or content. The zero Reading is the strict one.
type Reading uint64

// because is the reading with these reasons.
func because(rs ...Reason) Reading {
	var r Reading
	for _, x := range rs {
		r |= 1 << x
	}
	return r
}

// Strict reports whether the reading is that of the standard.
func (r Reading) Strict() bool { return r == 0 }

// Has reports whether the reason is one of the reading's.
func (r Reading) Has(x Reason) bool { return r&(1<<x) != 0 }

// Reasons are the reading's reasons in order.
func (r Reading) Reasons() []Reason {
	list := make([]Reason, 0, bits.OnesCount64(uint64(r)))
	for ; r != 0; r &= r - 1 {
		list = append(list, Reason(bits.TrailingZeros64(uint64(r))))
	}
	return list
}

// String is "strict", or the reasons' words joined by "+".
func (r Reading) String() string {
	if r == 0 {
		return "strict"
	}
	var b strings.Builder
	for _, x := range r.Reasons() {
		if b.Len() > 0 {
			b.WriteByte('+')
		}
		b.WriteString(x.String())
	}
	return b.String()
}

// severity is how much a reason matters in a part that a reader comes to so.
func (r Reading) severity(x Reason) Severity {
	worst := x.Severity()
	for _, y := range (r &^ because(EncodedContainer, MessageByName)).Reasons() {
		worst = min(worst, y.Severity())
	}
	return worst
}

// Finding is a place where programs differ.
type Finding struct {
	Reason Reason
	// Severity is the reason's, or less if only few readers come to the part at
	// all: why they do is a finding of its own.
	Severity Severity
	// Path is that of the part.
	Path string
	// Detail is printable ASCII of at most 120 bytes, "" if there is nothing to
	// add.
	Detail string
}

// String is one printable line.
func (f Finding) String() string {
	s := f.Path + ": " + f.Reason.About()
	if f.Detail != "" {
		s += ": " + f.Detail
	}
	return s
}
