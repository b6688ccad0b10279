package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline/ingress/auth"
	"github.com/postern-mta/postern/pipeline/ingress/certs"
)

// finding is something about a configuration that shows only in the files that
// it names.
type finding struct {
	text string
	err  error
}

// unread tells whether a file could not be looked at because of who we are: the
// daemon may read it as root.
func (f finding) unread() bool { return errors.Is(f.err, fs.ErrPermission) }

// checkSMTP looks at what the SMTP entrances use.
func checkSMTP(c *config.Config) (all []finding) {
	told := map[string]bool{}
	for _, name := range sortedKeys(c.Listen) {
		l := c.Listen[name]
		if !usesTLS(l) {
			continue
		}
		s, wrong, err := openForCheck(c, l)
		if wrong != nil && !told[wrong.Error()] {
			told[wrong.Error()] = true
			all = append(all, finding{err: fmt.Errorf("certificates: %w", wrong)})
		}
		var offer certs.Offer
		if err == nil {
			offer, err = s.Offered(policy(l))
		}
		if err != nil {
			all = append(all, finding{err: fmt.Errorf("listen.%s: %w", name, err)})
			continue
		}
		all = append(all, finding{text: fmt.Sprintf("TLS of listen.%s (tls = %q) with %s:\n  %s", name, l.TLS, certificatesOf(c, l, s), strings.ReplaceAll(strings.TrimSpace(offer.String()), "\n", "\n  "))})
		s.Close() //nolint:errcheck // it was only looked at
	}
	used := map[string]bool{}
	for _, l := range c.Listen {
		for _, name := range l.Auth {
			used[name] = true
		}
	}
	for _, name := range sortedKeys(used) {
		a := c.Auth[name]
		if a.Kind != "file" {
			continue
		}
		n, err := auth.CheckFile(a.File)
		if err != nil {
			all = append(all, finding{err: fmt.Errorf("auth.%s: %w", name, err)})
			continue
		}
		all = append(all, finding{text: fmt.Sprintf("auth.%s: %d users in %s", name, n, clean(a.File))})
	}
	return all
}

// openForCheck is the store of an entrance, without asking an ACME server. If
// there is no certificate, or none that can be read, it is one with a
// certificate of its own making, whose key is of the kind that ACME brings.
func openForCheck(c *config.Config, l *config.Listen) (*certs.Store, error, error) {
	o := certs.Options{Hostname: c.Hostname, Log: slog.New(slog.DiscardHandler), Pairs: pairsOf(c, l.Certificates)}
	s, wrong := certs.New(o)
	if wrong == nil && len(o.Pairs) > 0 {
		return s, nil, nil
	}
	dir, err := os.MkdirTemp("", "postern-check-")
	if err != nil {
		return nil, wrong, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // nothing depends on it
	s, err = certs.New(certs.Options{Hostname: c.Hostname, Log: o.Log, Fallback: certs.FallbackSelfSigned, State: dir})
	return s, wrong, err
}

// certificatesOf tells of the certificates of an entrance.
func certificatesOf(c *config.Config, l *config.Listen, s *certs.Store) string {
	var said []string
	for _, e := range s.Expires() {
		if e.Source == "self-signed" {
			continue
		}
		said = append(said, fmt.Sprintf("%s until %s", clean(strings.Join(e.Names, ", ")), e.NotAfter.UTC().Format("2006-01-02")))
	}
	if slices.Equal(l.Certificates, sortedKeys(c.Certificate)) && len(c.ACME.Names) > 0 {
		said = append(said, "what ACME brings for "+clean(strings.Join(c.ACME.Names, ", ")))
	}
	if len(said) == 0 {
		return "certificates that cannot be read here (as with an ECDSA key)"
	}
	return strings.Join(said, "; ")
}

// printFindings prints what was found, and reports whether it is all right.
func printFindings(all []finding, out, errs io.Writer) bool {
	right := true
	for _, f := range all {
		switch {
		case f.err == nil:
			fmt.Fprintln(out, f.text)
		case f.unread():
			fmt.Fprintf(errs, "warning: not looked at, for you may not read it: %v\n", f.err)
		default:
			fmt.Fprintln(errs, f.err)
			right = false
		}
	}
	return right
}
