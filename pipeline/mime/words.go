package mime

// DecodeWords is a field's value with its encoded words decoded (RFC 2047),
// wherever they stand, as clients do; what is none stays. It is data from
// outside, of any bytes.
func DecodeWords(value string) string { return decodeWords(value) }

// DecodeCharset is text in a charset as UTF-8. An unknown charset is taken for
// UTF-8 if the bytes are, else for Windows-1252, as clients do.
func DecodeCharset(charset, text string) string { return decodeCharset(charset, text) }
