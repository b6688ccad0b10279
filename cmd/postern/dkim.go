package main

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/filters/dkim"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/resolve"
)

// tempFail is the exit code for "try again" (sysexits.h).
const tempFail exitCode = 75

func dkimCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "dkim",
		Short: "Keys and signatures of DKIM",
		Long: `Make keys to sign mail with, say what to put into the DNS for them, and verify or
sign a message on a pipe.

The usual order: "postern dkim keygen example.org", put the records that it prints
into the DNS, "postern dkim check example.org" until it says that all is right, and
then the filter dkim-sign into the chain delivery. To change a key, make a second one
with another selector beside it, and take the first one away once mail that it signed
has arrived: after a week.`,
	}
	c.AddCommand(dkimKeygenCommand(), dkimDNSCommand(), dkimCheckCommand(), dkimVerifyCommand(), dkimSignCommand())
	return c
}

// keysFlag adds --keys.
func keysFlag(c *cobra.Command) *[]string {
	return c.Flags().StringSliceP("keys", "k", []string{dkim.DefaultKeys}, "where keys are, as in filter.dkim-sign.keys: a folder that holds DOMAIN/SELECTOR.pem, or a pattern like /etc/domainkeys/%/default")
}

// serversFlag adds --dns.
func serversFlag(c *cobra.Command) *[]string {
	return c.Flags().StringSlice("dns", nil, "the address:port of a DNS server to ask, in place of those of /etc/resolv.conf")
}

// absolute makes paths absolute, as a shell's user means them.
func absolute(paths []string) ([]string, error) {
	all := make([]string, len(paths))
	for i, p := range paths {
		a, err := filepath.Abs(p)
		if err != nil {
			return nil, err
		}
		all[i] = a
	}
	return all, nil
}

func openKeys(places, selectors []string) (*dkim.Keys, error) {
	places, err := absolute(places)
	if err != nil {
		return nil, err
	}
	return dkim.NewKeys(places, selectors)
}

// keysOf are the keys that sign for a domain. Here the path may be told.
func keysOf(keys *dkim.Keys, domain string) ([]dkim.Key, error) {
	found, err := keys.For(domain)
	if bad := (*dkim.KeyFileError)(nil); errors.As(err, &bad) {
		return nil, fmt.Errorf("%s: %w", bad.Path, bad.Err)
	}
	if err == nil && len(found) == 0 {
		return nil, fmt.Errorf("there is no key for %s: make one with postern dkim keygen", clean(domain))
	}
	return found, err
}

// keygenOptions are the flags of postern dkim keygen.
type keygenOptions struct {
	keys, selector, kind string
	bits                 int
}

func dkimKeygenCommand() *cobra.Command {
	var o keygenOptions
	c := &cobra.Command{
		Use:   "keygen DOMAIN",
		Short: "Make keys for a domain",
		Long: `Make keys for a domain as DIR/DOMAIN/SELECTOR.pem, and print the records that
publish them. Both kinds are made by default: an RSA key, which everybody can verify,
and an Ed25519 key, which is smaller and costs less.

A key that is there already is not replaced. The files have mode 0600 and, if root
makes them, the owner of DIR: let that be the daemon's user. dkim-sign begins to sign
with a key at once, so publish it first or make it elsewhere.`,
		Example: `  postern dkim keygen example.org
  postern dkim keygen example.org --type rsa --bits 4096 --selector 2027`,
		Args: cobra.ExactArgs(1),
	}
	f := c.Flags()
	f.StringVarP(&o.keys, "keys", "k", dkim.DefaultKeys, "the folder of the keys")
	f.StringVarP(&o.selector, "selector", "s", "", "the key's selector (default year and month; with --type both, -rsa and -ed25519 are added)")
	f.StringVarP(&o.kind, "type", "t", "both", "the kind of key: rsa, ed25519 or both")
	f.IntVarP(&o.bits, "bits", "b", 2048, "the length of an RSA key")
	c.RunE = func(c *cobra.Command, args []string) error {
		return o.run(c.OutOrStdout(), args[0], time.Now())
	}
	return c
}

func (o keygenOptions) run(stdout io.Writer, domain string, now time.Time) error {
	selector := o.selector
	if selector == "" {
		selector = now.UTC().Format("200601")
	}
	type wanted struct {
		selector string
		bits     int
	}
	var all []wanted
	switch o.kind {
	case "rsa":
		all = []wanted{{selector, o.bits}}
	case "ed25519":
		all = []wanted{{selector, 0}}
	case "both":
		all = []wanted{{selector + "-rsa", o.bits}, {selector + "-ed25519", 0}}
	default:
		return fmt.Errorf("--type %s: write rsa, ed25519 or both", clean(o.kind))
	}
	if o.kind != "ed25519" && o.bits == 0 {
		return errors.New("--bits 0: an RSA key has 2048 or more")
	}
	for _, w := range all {
		key, content, err := dkim.GenerateKey(w.bits)
		if err != nil {
			return err
		}
		k, err := dkim.NewKey(domain, w.selector, key)
		if err != nil {
			return err
		}
		path := filepath.Join(o.keys, k.Domain, k.Selector+".pem")
		if err := writeKeyFile(o.keys, path, content); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "; %s\n", clean(path))
		if err := printRecord(stdout, k); err != nil {
			return err
		}
	}
	return nil
}

// writeKeyFile makes a key's file, whole or not at all, for the owner of root.
func writeKeyFile(root, path string, content []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it is in the way of nothing
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if info, err := os.Stat(root); err == nil && os.Getuid() == 0 {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			if err := errors.Join(os.Chown(dir, int(st.Uid), int(st.Gid)), f.Chown(int(st.Uid), int(st.Gid))); err != nil {
				return err
			}
		}
	}
	err = os.Link(f.Name(), path)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already: choose another --selector, or remove it", clean(path))
	}
	return err
}

// maxString is how much of a record one string of the DNS holds, in bytes.
const maxString = 250

// printRecord prints a key's record as a zone file has it.
func printRecord(w io.Writer, k dkim.Key) error {
	record, err := dkim.Record(k.Signer.Public())
	if err != nil {
		return err
	}
	var parts []string
	for len(record) > maxString {
		parts = append(parts, `"`+record[:maxString]+`"`)
		record = record[maxString:]
	}
	parts = append(parts, `"`+record+`"`)
	if len(parts) == 1 {
		_, err = fmt.Fprintf(w, "%s. IN TXT %s\n", k.Query(), parts[0])
	} else {
		_, err = fmt.Fprintf(w, "%s. IN TXT ( %s )\n", k.Query(), strings.Join(parts, "\n\t"))
	}
	return err
}

func dkimDNSCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "dns DOMAIN",
		Short: "Print the DNS records of a domain's keys",
		Long:  "Print the records that publish the keys which sign for a domain, as a zone file has them.",
		Args:  cobra.ExactArgs(1),
	}
	places := keysFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		keys, err := openKeys(*places, nil)
		if err != nil {
			return err
		}
		found, err := keysOf(keys, args[0])
		if err != nil {
			return err
		}
		for _, k := range found {
			if err := printRecord(c.OutOrStdout(), k); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}

func dkimCheckCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "check DOMAIN",
		Short: "Compare a domain's keys with the DNS",
		Long: `Compare the keys which sign for a domain with what the DNS says of them. The exit
code is 0 if all of them are published, 1 if one is not or cannot be used, and 75 if
the DNS could not tell.`,
		Args: cobra.ExactArgs(1),
	}
	places, servers := keysFlag(c), serversFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		keys, err := openKeys(*places, nil)
		if err != nil {
			return err
		}
		found, err := keysOf(keys, args[0])
		if err != nil {
			return err
		}
		r, err := resolve.New(resolve.Options{Servers: *servers})
		if err != nil {
			return err
		}
		return checkPublished(c.Context(), r.LookupTXT, found, c.OutOrStdout())
	}
	return c
}

type lookTXT func(ctx context.Context, name string) ([]string, error)

func checkPublished(ctx context.Context, look lookTXT, keys []dkim.Key, stdout io.Writer) error {
	wrong, unknown := false, false
	for _, k := range keys {
		err := dkim.CheckPublished(ctx, look, k)
		note := ""
		if r, ok := k.Signer.Public().(*rsa.PublicKey); ok && r.N.BitLen() < 2048 {
			note = fmt.Sprintf(", but short with %d bits: make one of 2048", r.N.BitLen())
		}
		switch {
		case err == nil:
			fmt.Fprintf(stdout, "%s: published%s\n", k.Query(), note)
		case dkim.IsTemporary(err):
			unknown = true
			fmt.Fprintf(stdout, "%s: cannot tell: %s\n", k.Query(), clean(err.Error()))
		default:
			wrong = true
			fmt.Fprintf(stdout, "%s: wrong: %s\n", k.Query(), clean(err.Error()))
		}
	}
	switch {
	case wrong:
		return silent{}
	case unknown:
		return tempFail
	}
	return nil
}

// piped reads a message from a pipe. Its body goes to a file if it is large,
// in a folder that done removes.
func piped(r io.Reader) (m message.Message, done func(), err error) {
	dir, err := os.MkdirTemp("", "postern-dkim-*")
	if err != nil {
		return message.Message{}, nil, err
	}
	remove := func() { os.RemoveAll(dir) } //nolint:errcheck // nothing needs it
	spool, err := message.OpenDirectory(dir)
	if err == nil {
		m, err = message.Read(r, message.Options{Lines: message.Keep, Spool: spool})
	}
	if err != nil {
		remove()
		return message.Message{}, nil, fmt.Errorf("reading the message: %w", err)
	}
	return m, func() { m.Body().Release(); remove() }, nil //nolint:errcheck // the folder goes
}

// dkimVerifyOptions are the flags of postern dkim verify.
type dkimVerifyOptions struct {
	header    bool
	id        string
	places    []string
	servers   []string
	localKeys bool
}

func dkimVerifyCommand() *cobra.Command {
	var o dkimVerifyOptions
	c := &cobra.Command{
		Use:   "verify",
		Short: "Verify the signatures of a message on standard input",
		Long: `Read a message from standard input and print a line for each of its signatures: the
result, the domain and the selector, the algorithm and, where the result is not pass,
why. With --header the message is written to standard output instead, with a field
Authentication-Results on top and without those that bear the same name, and the
lines go to standard error.

With --local the keys are not looked up in the DNS but in the folders of --keys: what
dkim-sign signs can so be verified before its keys are published.

The exit code is 0 if a signature passes, 1 if none does, and 75 if none does and the
DNS could not tell. With --header it is 0 as soon as the message is written.`,
		Example: "  postern dkim verify <message\n  postern dkim sign <message | postern dkim verify --local",
		Args:    cobra.NoArgs,
	}
	f := c.Flags()
	f.BoolVar(&o.header, "header", false, "write the message with a field of the results")
	f.StringVar(&o.id, "authserv-id", "", "our name in that field (default the machine's host name)")
	f.BoolVar(&o.localKeys, "local", false, "take the public keys from the folders of --keys")
	places, servers := keysFlag(c), serversFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		o.places, o.servers = *places, *servers
		return o.run(c.Context(), c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr())
	}
	return c
}

func (o dkimVerifyOptions) run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	look, err := o.look()
	if err != nil {
		return err
	}
	m, done, err := piped(stdin)
	if err != nil {
		return err
	}
	defer done()
	v := &dkim.Verifier{Look: look}
	results, seen, err := v.Verify(ctx, m)
	if err != nil {
		return err
	}
	lines := stdout
	if o.header {
		lines = stderr
	}
	code := printResults(lines, results, seen)
	if !o.header {
		return code
	}
	var all []pipeline.AuthResult
	for _, r := range results {
		all = append(all, r.AuthResult())
	}
	id := o.id
	if id == "" {
		if id, err = os.Hostname(); err != nil {
			return err
		}
	}
	h, err := dkim.WithResults(m.Head(), id, all)
	if err != nil {
		return err
	}
	_, err = m.WithHead(h).WriteTo(stdout)
	return err
}

func (o dkimVerifyOptions) look() (lookTXT, error) {
	if o.localKeys {
		keys, err := openKeys(o.places, nil)
		if err != nil {
			return nil, err
		}
		return keys.Lookup, nil
	}
	r, err := resolve.New(resolve.Options{Servers: o.servers})
	if err != nil {
		return nil, err
	}
	return r.LookupTXT, nil
}

// printResults prints results; the error is the exit code for them.
func printResults(w io.Writer, results []dkim.Result, seen int) error {
	var code error = silent{}
	for _, r := range results {
		line := []string{r.Result}
		for _, p := range [...][2]string{{"d=", r.Domain}, {"s=", r.Selector}, {"a=", r.Algorithm}} {
			if p[1] != "" {
				line = append(line, p[0]+p[1])
			}
		}
		if r.Reason != "" {
			line = append(line, "("+r.Reason+")")
		}
		fmt.Fprintln(w, clean(strings.Join(line, " ")))
		switch {
		case r.Result == dkim.Pass:
			code = nil
		case r.Result == dkim.TempError && code != nil:
			code = tempFail
		}
	}
	switch more := seen - len(results); {
	case seen == 0:
		fmt.Fprintln(w, "none")
	case more > 0:
		fmt.Fprintf(w, "%d more signatures not judged\n", more)
	}
	return code
}

func dkimSignCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "sign",
		Short: "Sign a message on standard input",
		Long: `Read a message from standard input and write it to standard output with a signature
by each key of its author's domain, or of --domain. Nothing is written if it cannot be
signed; the exit code is then 1.`,
		Example: "  postern dkim sign --domain example.org <message >signed",
		Args:    cobra.NoArgs,
	}
	places := keysFlag(c)
	f := c.Flags()
	domain := f.StringP("domain", "d", "", "the domain that signs (default that of From)")
	selectors := f.StringSliceP("selector", "s", nil, "the keys that sign (default all of the domain)")
	form := f.String("canonicalization", "relaxed/relaxed", "relaxed or simple, for header and body")
	expires := f.Duration("expires", 0, "how long the signature holds; 0: for ever")
	c.RunE = func(c *cobra.Command, _ []string) error {
		header, body, _ := strings.Cut(*form, "/")
		for _, word := range [...]string{header, body} {
			if word != "relaxed" && word != "simple" {
				return fmt.Errorf("--canonicalization %s: write relaxed/relaxed, relaxed/simple, simple/relaxed or simple/simple", clean(*form))
			}
		}
		if *expires < 0 {
			return errors.New("--expires must not be negative")
		}
		keys, err := openKeys(*places, *selectors)
		if err != nil {
			return err
		}
		s := &dkim.Signer{HeaderForm: header, BodyForm: body, Expires: *expires}
		return signPipe(c.Context(), s, keys, *domain, c.InOrStdin(), c.OutOrStdout())
	}
	return c
}

func signPipe(ctx context.Context, s *dkim.Signer, keys *dkim.Keys, domain string, stdin io.Reader, stdout io.Writer) error {
	m, done, err := piped(stdin)
	if err != nil {
		return err
	}
	defer done()
	if domain == "" {
		if domain, err = dkim.AuthorDomain(m.Head()); err != nil {
			return fmt.Errorf("%w: say --domain", err)
		}
	}
	found, err := keysOf(keys, domain)
	if err != nil {
		return err
	}
	var edits []message.FieldEdit
	for _, k := range found {
		value, err := s.Sign(ctx, m, k)
		if err != nil {
			return err
		}
		edits = append(edits, message.FieldEdit{Op: message.Add, Name: dkim.FieldName, Value: value})
	}
	h, err := m.Head().Edit(edits...)
	if err != nil {
		return err
	}
	_, err = m.WithHead(h).WriteTo(stdout)
	return err
}
