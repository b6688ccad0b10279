package mime

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/postern-mta/postern/pipeline/message"
)

// Message is a message as a tree of parts. It reads from the bytes that it was
// made of, which must stay until Close. It is safe for concurrent use, but for
// Close.
type Message struct {
	// Root is the message itself as a part.
	Root *Part
	// Findings are the places where programs differ, a reason once for a part and
	// 200 at most.
	Findings []Finding
	// Exceeded are the limits that cut something off, each once. A message with
	// one cannot be called scanned.
	Exceeded []Excess

	bodies []*message.Body
}

// Close gives back what was spooled. It returns the first error of the spool.
func (m *Message) Close() error {
	var errs []error
	for _, b := range m.bodies {
		errs = append(errs, b.Release())
	}
	m.bodies = nil
	return errors.Join(errs...)
}

// Worst is the greatest severity of the findings; ok is false if there is none.
func (m *Message) Worst() (worst Severity, ok bool) {
	for _, f := range m.Findings {
		worst = max(worst, f.Severity)
	}
	return worst, len(m.Findings) > 0
}

// Walk gives all parts of all readings, each before those inside.
func (m *Message) Walk() iter.Seq[*Part] {
	return func(yield func(*Part) bool) {
		if m.Root != nil {
			m.Root.walk(yield)
		}
	}
}

func (p *Part) walk(yield func(*Part) bool) bool {
	if !yield(p) {
		return false
	}
	for _, x := range p.Parts {
		if !x.walk(yield) {
			return false
		}
	}
	return true
}

// Role says what kind of thing a part is.
type Role uint8

// The roles.
const (
	Entity   Role = iota // a header and a body
	Preamble             // text before the first part of a multipart
	Epilogue             // text behind its last one
	Embedded             // a file encoded in a text
)

var roleWords = [...]string{"entity", "preamble", "epilogue", "embedded"}

// String is the role's word.
func (r Role) String() string {
	if int(r) < len(roleWords) {
		return roleWords[r]
	}
	return "unknown"
}

// Part is a part of a message, in one or more readings.
type Part struct {
	// Path is the part's place: the message is "1", what is directly inside it
	// "1.1" and so on. The content of an attached message is a part inside the
	// attachment. Parts of odd readings are counted too.
	Path string
	Role Role
	// Reading is how a reader comes to the part.
	Reading Reading
	// Types are what the part says it is, in lower case, the strict one first; at
	// least one. They are data from outside, of any bytes.
	Types []Type
	// Encodings are what its Content-Transfer-Encoding fields say, cleaned.
	Encodings []string
	// Names are the names that it may have, the strict ones first.
	Names []Name
	// Contents are its bytes under each decoding, the strict one first. A multipart
	// and an attached message have none, unless they are files in some reading.
	Contents []Content
	// Parts are the parts inside.
	Parts []*Part
	// Offset and Size are where it stands, header included, in the message or in
	// what was decoded of it: see Decoded.
	Offset, Size int64
	// Decoded says that the part stands in what was decoded.
	Decoded bool

	src   *source
	depth int
	kind  string // its type if it states none
	body  int64  // where the strict body begins
}

// Type is a media type that a part may have.
type Type struct {
	Value   string
	Reading Reading
}

// Type is the part's type in its strict reading.
func (p *Part) Type() string {
	if len(p.Types) == 0 {
		return ""
	}
	return p.Types[0].Value
}

// Strict reports whether the part is one in the standard's reading.
func (p *Part) Strict() bool { return p.Reading.Strict() && p.Role == Entity }

// Raw is the part's body as it stands, undecoded.
func (p *Part) Raw() Content {
	return Content{How: Identity, Reading: p.Reading, src: p.src, start: p.body, end: p.Offset + p.Size}
}

// Header reads the part's header as it stands; it is empty for a role other than
// Entity.
func (p *Part) Header() io.Reader { return p.src.section(p.Offset, p.body) }

// How says how a content was decoded.
type How uint8

// The ways of decoding.
const (
	Identity          How = iota
	Base64                // bytes outside the alphabet are skipped, padding ends it
	Base64Restarts        // another encoding begins behind padding
	Base64SkipsPads       // padding is skipped
	Base64StopsAtJunk     // a byte outside the alphabet ends it
	Base64DropsLines      // a line with such a byte is dropped
	Base64ForURLs         // - and _ are letters
	QuotedPrintable       // lower case is taken, bad escapes stay, blanks at line ends go
	QuotedUpperOnly       // escapes in lower case stay
	QuotedKeepsBlanks     // blanks at line ends stay, and hinder a soft break
	QuotedDropsBad        // the '=' of a bad escape goes
	UU                    // uuencode
	UUWholeLines          // uuencode whose lines count for what they hold, not for what they say
	XX                    // xxencode
	UUBase64              // uuencode -m
	YEnc                  // yEnc
	BinHexData            // the data fork of BinHex 4
	BinHexResource        // its resource fork
	hows
)

var howWords = [hows]string{
	"identity", "base64", "base64/restarts", "base64/skips-pads", "base64/stops-at-junk", "base64/drops-lines", "base64/url",
	"quoted-printable", "quoted-printable/upper-only", "quoted-printable/keeps-blanks", "quoted-printable/drops-bad",
	"uuencode", "uuencode/whole-lines", "xxencode", "uuencode/base64", "yenc", "binhex/data", "binhex/resource",
}

// String is the word for the way.
func (h How) String() string {
	if h < hows {
		return howWords[h]
	}
	return "unknown"
}

// Content is a part's bytes under one decoding. It can be opened any number of
// times.
type Content struct {
	How     How
	Reading Reading

	src        *source
	start, end int64
	quoted     int // marks of a quotation before each line
}

// EncodedSize is how many bytes of the message the content is decoded from.
func (c Content) EncodedSize() int64 { return c.end - c.start }

// Open reads the decoded bytes. Errors are those of the message's own reader;
// bad encoding is no error. There are at most twice as many bytes as
// EncodedSize, but for BinHex, where there may be 128 times as many.
func (c Content) Open() io.Reader {
	src := c.src.section(c.start, c.end)
	if dec := c.decoder(); dec != nil {
		return newDecodeReader(src, dec, c.EncodedSize())
	}
	return src
}

// ErrTooLarge is what Spool says of a content above its bound.
var ErrTooLarge = errors.New("the content is larger than it may be")

// Spool decodes the content into something that can be read at offsets, up to
// memory bytes in memory (0: message.InMemory) and more in a file of spool; a nil
// spool keeps all in memory. A content above max bytes is ErrTooLarge. The caller
// holds the body and must Release it.
func (c Content) Spool(spool message.Spooler, memory int, max int64) (*message.Body, error) {
	w := message.NewWriter(spool, memory)
	n, err := io.Copy(w, io.LimitReader(c.Open(), max+1))
	if err == nil && n > max {
		err = ErrTooLarge
	}
	if err != nil {
		w.Abort()
		return nil, fmt.Errorf("decode %s: %w", c.How, err)
	}
	return w.Body()
}

// decoder is what decodes the content; nil for Identity.
func (c Content) decoder() decoder {
	switch c.How {
	case Base64:
		return &base64Decoder{tables: base64Standard}
	case Base64Restarts:
		return &base64Decoder{tables: base64Standard, padding: padRestarts}
	case Base64SkipsPads:
		return &base64Decoder{tables: base64Standard, padding: padSkipped}
	case Base64StopsAtJunk:
		return &base64Decoder{tables: base64Standard, junkEnds: true}
	case Base64DropsLines:
		return newBase64LineDecoder()
	case Base64ForURLs:
		return &base64Decoder{tables: base64Either, padding: padRestarts}
	case QuotedPrintable:
		return &quotedDecoder{}
	case QuotedUpperOnly:
		return &quotedDecoder{mode: quotedMode{upperOnly: true}}
	case QuotedKeepsBlanks:
		return &quotedDecoder{mode: quotedMode{keepBlanks: true}}
	case QuotedDropsBad:
		return &quotedDecoder{mode: quotedMode{dropBad: true}}
	}
	return c.embeddedDecoder()
}

func (c Content) embeddedDecoder() decoder {
	switch c.How {
	case UU:
		return newUUDecoder(c.quoted, false, false)
	case UUWholeLines:
		return newUUDecoder(c.quoted, false, true)
	case XX:
		return newUUDecoder(c.quoted, true, false)
	case UUBase64:
		return newUnquoteDecoder(c.quoted, 1, "====", &base64Decoder{tables: base64Standard, padding: padRestarts})
	case YEnc:
		return newYEncDecoder(c.quoted)
	case BinHexData:
		return newUnquoteDecoder(c.quoted, 1, "", &binHexDecoder{fork: dataFork})
	case BinHexResource:
		return newUnquoteDecoder(c.quoted, 1, "", &binHexDecoder{fork: resourceFork})
	}
	return nil
}

// addContent adds a content unless it is there.
func (p *Part) addContent(c Content) bool {
	if slices.ContainsFunc(p.Contents, func(x Content) bool {
		return x.How == c.How && x.start == c.start && x.end == c.end && x.src == c.src
	}) {
		return false
	}
	p.Contents = append(p.Contents, c)
	return true
}
