// Package certs gives the SMTP server its TLS: certificates from files or from
// an ACME server, and a policy of versions and ciphers for each listener.
//
//	store, err := certs.New(certs.Options{Pairs: ..., ACME: ..., Log: log})  // before root is dropped
//	config, err := store.Config(certs.Policy{MinVersion: "tls1.2"})          // a listener each, before root is dropped
//	go store.Manage(ctx)                                                     // obtains, renews, warns
//	if store.Ready(policy) { ... }                                           // offer STARTTLS?
//	session.TLS = certs.Describe(certs.Verify(config, conn.ConnectionState()))
//	err = store.Reload()                                                     // SIGHUP: look at the files now
//	store.Close()
//
// It promises that no handshake fails because a certificate changes, and that
// at most one at a time is kept by looking at files: a new pair is taken as a
// whole, once it parses and its key matches, and until then the old one serves;
// that a broken pair is
// told once, with what to do; that a certificate which comes to its end is told
// 14, 7 and 1 days before; that no private key is written anywhere but, with
// mode 0600, below Options.State; and that Close leaves no goroutine of ours.
//
// # Which certificate
//
// The name that the client asks for (SNI, RFC 6066 §3) is looked up among the
// certificates' DNS names, first as it is, then with a wildcard for its first
// label (RFC 6125 §6.4.3). A name that is not found, or none, gets the default:
// the certificates that cover the first name of the first pair. Of several that
// fit, those that the client can check are taken, those in force before those
// that have expired, and then those with an elliptic key before those with RSA.
//
// # Files
//
// They are looked at (device, inode, size, time of change) during a handshake,
// at most once in Options.Poll, and when Manage or Reload says so. A pair is
// rarely replaced in one instant; a pair found broken by a handshake is
// therefore told only when it is found so a second time.
//
// # ACME
//
// certmagic (RFC 8555, RFC 9773) keeps the account, the challenges and the
// files; when to try is decided here, by our clock and with a backoff that
// respects the limits that public servers set. certmagic's own retrying, its
// on-demand issuance, its default cache, configuration and logger, its prompts
// and its OCSP stapling are not used. What it keeps for the life of the
// process, also after Close, is one goroutine for each pair of directory and
// e-mail (its rate limiter) and the idle connections to the ACME server, until
// that hangs up.
package certs
