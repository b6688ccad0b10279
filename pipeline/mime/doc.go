// Package mime reads hostile mail: a message as a tree of parts, in every
// reading that a mail client or another scanner may plausibly have of it.
//
// Programs disagree about broken MIME, and who hides a file in a message lives
// in that difference. So Read does not choose. Where programs differ (two
// Content-Type fields, a boundary that is the beginning of another, base64 that
// goes on after its padding) it follows each way, and the tree holds the union:
// every part, every name a part could have, and its content under every
// decoding. What is reached the way of the standard has the zero Reading; what
// is reached otherwise carries the Reasons that lead there.
//
// What it promises:
//
//   - The strict reading is always in the tree, and it is that of RFC 2045,
//     2046, 2047, 2183 and 2231 for a message that keeps to them. Such a message
//     has one reading, and costs one.
//   - Where programs differ there is a Finding with a Severity, and where a limit
//     cut something off there is an Exceeded: a caller that passes a message on
//     without looking at both has not scanned it.
//   - Work is linear in the message's size and memory is bounded by Limits: a
//     content is a reader over the original bytes and never a copy of them, but
//     for encoded messages inside, which go to the caller's spool.
//   - The same bytes give the same tree. No input makes it panic or hang.
//
// Nothing here knows what a dangerous file is: that is the caller's part.
package mime
