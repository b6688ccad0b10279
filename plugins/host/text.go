package host

import (
	"strings"
	"unicode/utf8"

	"github.com/postern-mta/postern/pipeline/reply"
)

// text is a text that protobuf takes: what is no UTF-8 is replaced.
func text(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// cleanText is what a plugin says, for a log or an administrator; or other words
// where it says nothing.
func cleanText(s, otherwise string) string {
	if s = reply.Clean(s, maxLine); s == "" {
		return otherwise
	}
	return s
}
