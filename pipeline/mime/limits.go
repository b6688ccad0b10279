package mime

import "github.com/postern-mta/postern/pipeline/message"

// Limits bound what Read does. A zero field means its default. What goes beyond
// one is cut off and reported by Message.Exceeded: the message cannot be called
// scanned.
type Limits struct {
	// Depth bounds how deep parts lie in each other; the message itself is at 1.
	Depth int
	// Parts bounds the parts of the tree, those of all readings together.
	Parts int
	// Header bounds one header in bytes.
	Header int
	// Field bounds one Content field in bytes, and so a name or boundary.
	Field int
	// Fields bounds the Content fields of one header, and the parameters of one
	// field.
	Fields int
	// Names bounds the names of one part.
	Names int
	// Boundary bounds a boundary in bytes; RFC 2046 §5.1.1 has 70.
	Boundary int
	// Boundaries bounds how many boundaries one multipart may seem to have.
	Boundaries int
	// Delimiters bounds the lines of a message that begin like a delimiter.
	Delimiters int
	// Embedded bounds the uuencoded, yEnc and BinHex files in one text.
	Embedded int
	// Decoded bounds, in bytes, what is decoded into the spool: messages,
	// multiparts and texts inside that are themselves encoded.
	Decoded int64
	// Work bounds the bytes looked at, as a multiple of the message's size.
	Work int
}

// The defaults of Limits.
const (
	DefaultDepth      = 40
	DefaultParts      = 10_000
	DefaultHeader     = 1 << 20
	DefaultField      = 64 << 10
	DefaultFields     = 100
	DefaultNames      = 100
	DefaultBoundary   = 250
	DefaultBoundaries = 16
	DefaultDelimiters = 100_000
	DefaultEmbedded   = 100
	DefaultDecoded    = 256 << 20
	DefaultWork       = 64
)

func (l Limits) withDefaults() Limits {
	for _, x := range []struct {
		v *int
		d int
	}{
		{&l.Depth, DefaultDepth},
		{&l.Parts, DefaultParts},
		{&l.Header, DefaultHeader},
		{&l.Field, DefaultField},
		{&l.Fields, DefaultFields},
		{&l.Names, DefaultNames},
		{&l.Boundary, DefaultBoundary},
		{&l.Boundaries, DefaultBoundaries},
		{&l.Delimiters, DefaultDelimiters},
		{&l.Embedded, DefaultEmbedded},
		{&l.Work, DefaultWork},
	} {
		if *x.v == 0 {
			*x.v = x.d
		}
	}
	if l.Decoded == 0 {
		l.Decoded = DefaultDecoded
	}
	return l
}

// Options of Read. The zero value has the default limits and decodes encoded
// messages inside into memory.
type Options struct {
	Limits Limits
	// Spool takes what is decoded to be read again, above Memory bytes a piece
	// (0: message.InMemory). Nil: all of it is in memory, up to Limits.Decoded.
	Spool  message.Spooler
	Memory int
}

// Limit names a limit that a message went beyond.
type Limit uint8

// The limits, as they are in Limits.
const (
	DepthLimit Limit = iota
	PartsLimit
	HeaderLimit
	FieldLimit
	FieldsLimit
	NamesLimit
	BoundaryLimit
	BoundariesLimit
	DelimitersLimit
	EmbeddedLimit
	DecodedLimit
	WorkLimit
	limits
)

var limitTable = [limits]struct{ word, about string }{
	DepthLimit:      {"depth", "parts lie too deep in each other"},
	PartsLimit:      {"parts", "too many parts"},
	HeaderLimit:     {"header", "a header is too large"},
	FieldLimit:      {"field", "a field is too large"},
	FieldsLimit:     {"fields", "too many fields or parameters"},
	NamesLimit:      {"names", "too many names for one part"},
	BoundaryLimit:   {"boundary", "a boundary is too long"},
	BoundariesLimit: {"boundaries", "too many boundaries for one multipart"},
	DelimitersLimit: {"delimiters", "too many lines that look like delimiters"},
	EmbeddedLimit:   {"embedded", "too many encoded files in a text"},
	DecodedLimit:    {"decoded", "too much to decode"},
	WorkLimit:       {"work", "too many readings of the same bytes"},
}

// String is the limit's word.
func (l Limit) String() string {
	if l < limits {
		return limitTable[l].word
	}
	return "unknown"
}

// About says in a few words what went beyond the limit.
func (l Limit) About() string {
	if l < limits {
		return limitTable[l].about
	}
	return "unknown"
}

// Excess is a limit that was reached.
type Excess struct {
	Limit Limit
	// Path is that of the part.
	Path string
}

// String is one printable line.
func (x Excess) String() string { return x.Path + ": " + x.Limit.About() }
