// Package rules is the language in which an administrator says "when": a condition over named facts, compiled once and
// matched for every message, with an answer to "why did it match?". It also holds the lists that a qmail administrator
// already has: control file lines, domain lists in the manner of rcpthosts, address lists in that of badmailfrom,
// control/taps, tcprules in source and compiled, and the constant databases (cdb) in which qmail keeps its larger lists.
// Files that are read again when they change leave the old content in force where the new one is broken.
//
// The package knows strings and named facts, nothing of mail or queues: the caller declares a [Schema] and hands over
// values through [Facts], by name, only when a rule asks for them.
//
//	from endsWith "@example.org" and size < 50 * MB
//	any(recipients, indomain(#, "example.org")) and not cidr(ip, "10.0.0.0/8", "fd00::/8")
//	header("Subject") matches "(?i)invoice" or len(headers("Received")) > 30
//
// # The language
//
// Operators, loosest first: or (||), and (&&), the comparisons == != < <= > >= in matches contains startsWith endsWith,
// then + -, then * / %. not (!) binds tighter than a comparison: write not (a == b), or a not in b. and and or stop as
// soon as the answer is known, and a fact that is not reached is not fetched. Strings are in "..", '..' or `..` (raw). Lists are written [a, b]. // and /* */ are comments.
//
// KB, MB and GB are 1024, 1024² and 1024³. [Functions] lists the functions. Within any, all, none, one, filter and count
// the element is #; they do not nest.
//
// There is no nil, no indexing, no variables and no loop: a rule takes time in proportion to its length and to the facts
// that it reads (one that looks up every element of one list in another: to the product of their lengths). The pattern of
// matches, like and cidr is always a literal, so what comes from the network is never a pattern; matches is Go's RE2
// syntax and takes linear time.
//
// # Bytes
//
// Facts come from the network and need not be valid UTF-8. Comparisons are on bytes; where case does not count it is that
// of the ASCII letters only, so no two different byte strings are taken for one because both are malformed, and no foreign
// letter folds into an ASCII one. lower and upper change other letters only in valid UTF-8.
//
// # Promises
//
// A rule never panics: a missing or mistyped fact, or a fact function that panics, is an error of Match, and it is for the
// caller to decide what a rule without an answer means. Errors are one clean line. Whatever a
// [CDB] holds, it is read within its bounds. A [Rule], a [Tap], the lists, the databases and the files are safe for
// concurrent use.
package rules
