// Package dkim is the filters "dkim-verify" and "dkim-sign": it verifies the
// DKIM signatures of what arrives, and signs what leaves (RFC 6376, with RFC
// 8301 and RFC 8463).
//
//	[chain]
//	inbound  = ["dkim-verify"]
//	delivery = ["dkim-sign"]
//
//	[filter.dkim-verify]
//	authserv_id = "mx.example.org"
//
//	[filter.dkim-sign]
//	keys = ["/etc/postern/dkim"]          # a folder: DOMAIN/SELECTOR.pem
//
// It promises that no signature passes which its key did not make over this
// message, that every signature of a message is judged by itself, that what a
// message may cost is bounded, and that nothing is signed but what is ours.
//
// # Verifying
//
// Every signature is a result. "pass" is one that its key made over the message
// as it is. "fail" is one that does not fit: the message was changed, or the
// signature is a forgery. "policy" is one that may be genuine and that we do not
// take: one with l=, which leaves part of the body to anybody (see partial); one
// that has expired or is from the future; one by a key below 1024 bits; one that leaves
// out a From field that the message has. "neutral" makes no sense or cannot be
// judged (a header of more than a mebibyte; thousands of blank lines in one
// place), "permerror" has no key that does (none, a revoked one, one of another
// kind) or is by a historic algorithm, and for
// "temperror" the DNS could not tell. A message without signatures is "none".
// Only "pass" proves anything.
//
// Ten signatures are judged (signatures = 10), those of the author's domain
// before others. Each is judged by itself: a bad one does no harm to a good one.
//
// partial = "whole" takes a signature with l= if nothing follows what it covers,
// and partial = "any" whatever follows: anybody may then append to a message that
// was signed so, and change how it is shown.
//
// The results go to the filters that follow, and with those of the filters
// before into a header field Authentication-Results (RFC 8601) under the name
// authserv_id, which is hostname if it is not set. Fields that bear this name already, or one of also_ours, are
// removed first, however they spell it: anybody could have written them.
//
// Mailing lists and forwarders break signatures, so a signature that fails is
// by itself no reason to refuse anything. What is done is up to
//
//   - on_fail, if a signature fails and none passes, unless its key says that
//     its owner is only testing
//   - on_missing, if the author's domain (that of From) is on the list
//     always_signed, or below such a domain, and no signature of that domain
//     passes; a domain counts as the author's if both have the same registered
//     part, as a.example.org and b.example.org
//   - on_temporary, if the DNS could not tell, and none passes. Who would be
//     refused or held for a missing signature is put off instead, then.
//
// Symbols for rules and scores are DKIM_PASS, DKIM_FAIL, DKIM_MISSING,
// DKIM_TEMPORARY and DKIM_NONE.
//
// # Signing
//
// Signed is what leaves and is ours by its origin: what a user sent who logged
// in, what came from a network that may relay or from a local program, and our
// own bounces. What a stranger sent is never signed, be it forwarded by a user
// of ours: it would make a forged From look genuine. Mail that already has a
// signature of the same key which holds is not signed again.
//
// The domain is the first of these for which there is a key, itself or a domain
// above it that belongs to the same owner (the name that is registered, or one
// below it):
//
//   - that of From, if it is aligned with the envelope sender, or the envelope
//     sender is empty ("from" in choose)
//   - that of the user who logged in ("user" in choose)
//   - domain, if it is set
//
// A site whose users may not write under each other's domains says choose =
// ["user"]. Mail for whose domain there is no key leaves unsigned, as does mail
// without exactly one From field, and a body with thousands of blank lines in
// one place.
//
// # Keys
//
// keys lists folders and patterns. In a folder stand folders named for domains,
// and in these the keys as SELECTOR.pem; all of them sign, or those that
// selectors names. A name with a % is a pattern as in qmail-dk, with the domain
// in place of the %, and the selector is the name of the file:
// /etc/domainkeys/%/default. An RSA key and an Ed25519 key side by side make
// two signatures, for those who know only one kind. Keys are PEM, PKCS #8 or
// PKCS #1, and RSA keys have 1024 to 8192 bits.
//
// A key that is put there, changed or removed counts from the next message on.
// One that is there and cannot be used puts the mail of its domain off: who was
// promised signatures must not get mail without. The peer and the sender hear
// nothing of why; the log does.
//
// A message is signed once, whoever it goes to: signatures are kept for a while.
//
// # What is signed
//
// The signature covers the fields in headers, each as often as the message has
// it, and those in oversign once more, so that nobody can add another: a second
// From or Subject would be shown and the signature still hold. It covers the
// message as it is sent.
//
// # When they fail
//
// If dkim-verify fails, the message goes on; if dkim-sign fails, it stays in the
// queue and is tried again.
package dkim

import (
	"fmt"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// The filters' names in the configuration.
const (
	VerifyName = "dkim-verify"
	SignName   = "dkim-sign"
)

// VerifyKind is dkim-verify's entry in the list of filters.
func VerifyKind() pipeline.Kind {
	return pipeline.KindOf(VerifyName, DefaultVerifyOptions, NewVerifyFilter)
}

// SignKind is dkim-sign's entry in the list of filters.
func SignKind() pipeline.Kind {
	return pipeline.KindOf(SignName, DefaultSignOptions, NewSignFilter)
}

// oneOf is the error of a word that an option does not know.
func oneOf(key, value string, words ...string) error {
	return pipeline.AtKey(key, fmt.Errorf("%q: write %s", reply.Clean(value, 80), strings.Join(words, ", ")))
}
