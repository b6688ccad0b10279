package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline/ingress/auth"
)

// lockPatience is how long postern password waits for somebody else who changes
// the same file.
const lockPatience = 10 * time.Second

// passwordOptions are the flags of postern password.
type passwordOptions struct {
	file, user    string
	delete, check bool
	cost          auth.Cost
}

func passwordCommand() *cobra.Command {
	var o passwordOptions
	c := &cobra.Command{
		Use:   "password",
		Short: "Make a hash for the password file, or change the file",
		Long: `Read a password, twice and without echo from a terminal, else one line of standard
input, and print its argon2id hash; with --user, the line for the password file.

With --file and --user the user's line in the file is added or replaced, or deleted
with --delete. The file is replaced as a whole, so a daemon that reads it meanwhile
sees the old one or the new one; it notices the change by itself within a second. A
new file has mode 0600: give it to the daemon's user.

With --check nothing is changed: --file alone tells whether the file is right, and
--file with --user whether the password read is the user's (exit 0) or not (exit 1).

A line of the file is NAME:HASH. The domain of a name is compared without regard to
case, the local part as it stands. Empty lines and lines that begin with # count for
nothing. Hashes of "argon2 -id -e" and "doveadm pw -s ARGON2ID" (without the braces
and what is in them) will do as well.`,
		Example: `  postern password --file /etc/postern/users --user alice@example.org
  postern password --file /etc/postern/users --user alice@example.org --delete
  postern password --file /etc/postern/users --check`,
		Args: cobra.NoArgs,
	}
	usual := auth.UsualCost()
	f := c.Flags()
	f.StringVarP(&o.file, "file", "f", "", "the password file to change or to check")
	f.StringVarP(&o.user, "user", "u", "", "the user, as the mail client names him")
	f.BoolVar(&o.delete, "delete", false, "delete the user's line")
	f.BoolVar(&o.check, "check", false, "change nothing, check the file or the user's password")
	f.Uint32Var(&o.cost.Memory, "memory", usual.Memory, "memory that a login takes, in KiB")
	f.Uint32Var(&o.cost.Passes, "passes", usual.Passes, "passes over that memory")
	f.Uint8Var(&o.cost.Lanes, "lanes", usual.Lanes, "lanes, each of which may use a core")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := o.valid(); err != nil {
			return err
		}
		return o.run(c.Context(), c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr())
	}
	return c
}

// valid reports flags that make no sense together.
func (o *passwordOptions) valid() error {
	switch {
	case o.delete && o.check:
		return errors.New("--delete and --check exclude each other")
	case o.delete && (o.file == "" || o.user == ""):
		return errors.New("--delete needs --file and --user")
	case o.check && o.file == "":
		return errors.New("--check needs --file")
	case o.file != "" && o.user == "" && !o.check:
		return errors.New("--file needs --user, or --check")
	}
	return nil
}

func (o *passwordOptions) run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	switch {
	case o.check && o.user == "":
		return o.checkFile(stdout)
	case o.delete:
		ctx, cancel := context.WithTimeout(ctx, lockPatience)
		defer cancel()
		if err := auth.DeleteUser(ctx, o.file, o.user); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s: deleted %s\n", clean(o.file), clean(o.user))
		return nil
	}
	password, err := readPassword(stdin, stderr, !o.check)
	if err != nil {
		return err
	}
	if o.check {
		return o.checkUser(password, stdout)
	}
	hash, err := auth.Hash(password, o.cost)
	if err != nil {
		return err
	}
	switch {
	case o.file != "":
		return o.write(ctx, hash, stdout)
	case o.user != "":
		fmt.Fprintf(stdout, "%s:%s\n", auth.Normal(o.user), hash)
	default:
		fmt.Fprintln(stdout, hash)
	}
	return nil
}

// write changes the file; waiting for its lock begins only now, after the
// password was typed.
func (o *passwordOptions) write(ctx context.Context, hash string, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	change, err := auth.SetUser(ctx, o.file, o.user, hash)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s: %s %s\n", clean(o.file), change, clean(o.user))
	return nil
}

func (o *passwordOptions) checkFile(stdout io.Writer) error {
	n, err := auth.CheckFile(o.file)
	if err != nil {
		return fmt.Errorf("the password file is wrong:\n%w", err)
	}
	fmt.Fprintf(stdout, "%s: right, users: %d\n", clean(o.file), n)
	if info, err := os.Stat(o.file); err == nil && info.Mode()&fs.FileMode(0o007) != 0 {
		fmt.Fprintf(stdout, "%s: open to every user of this host (%s): chmod o= it\n", clean(o.file), info.Mode().Perm())
	}
	return nil
}

func (o *passwordOptions) checkUser(password string, stdout io.Writer) error {
	right, err := auth.CheckUser(o.file, o.user, password)
	if err != nil {
		return err
	}
	if !right {
		return fmt.Errorf("%s: this is not the password of %s", o.file, o.user)
	}
	fmt.Fprintf(stdout, "%s: this is the password of %s\n", clean(o.file), clean(o.user))
	return nil
}

// readPassword reads a password: from a terminal without echo, and again if
// twice is set; else one line.
func readPassword(stdin io.Reader, prompt io.Writer, twice bool) (string, error) {
	if f, ok := stdin.(*os.File); ok {
		if mode, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			return readTerminal(f, *mode, prompt, twice)
		}
	}
	password, err := readLine(bufio.NewReaderSize(stdin, maxTyped))
	if err != nil {
		return "", fmt.Errorf("no password on standard input: %w", err)
	}
	return password, nil
}

// readTerminal asks for a password with the terminal's echo off. A signal that
// ends the program turns it on again first.
func readTerminal(f *os.File, mode unix.Termios, prompt io.Writer, twice bool) (string, error) {
	fd := int(f.Fd())
	quiet := mode
	quiet.Lflag &^= unix.ECHO
	quiet.Lflag |= unix.ICANON | unix.ISIG | unix.ECHONL
	// What was typed too much is not left for the shell to run.
	restore := func() { unix.IoctlSetTermios(fd, unix.TCSETSF, &mode) } //nolint:errcheck // there is nothing else to try
	ended := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(ended)
	defer close(done)
	go func() {
		select {
		case <-ended:
			restore()
			os.Exit(1)
		case <-done:
		}
	}()
	if err := unix.IoctlSetTermios(fd, unix.TCSETSW, &quiet); err != nil {
		return "", fmt.Errorf("the terminal's echo cannot be turned off: %w", err)
	}
	defer restore()
	in := bufio.NewReaderSize(f, maxTyped)
	fmt.Fprint(prompt, "Password: ")
	password, err := readLine(in)
	if err != nil || !twice {
		return password, err
	}
	fmt.Fprint(prompt, "Once more: ")
	again, err := readLine(in)
	switch {
	case err != nil:
		return "", err
	case again != password:
		return "", errors.New("the passwords differ; nothing was changed")
	}
	return password, nil
}

// maxTyped bounds the line that holds a password, its end included.
const maxTyped = auth.MaxPassword + 2

// readLine reads a line that is not empty, without its end.
func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
	switch {
	case errors.Is(err, bufio.ErrBufferFull) || len(line) > auth.MaxPassword:
		return "", fmt.Errorf("the password has more than %d bytes", auth.MaxPassword)
	case len(line) == 0 && (err == nil || errors.Is(err, io.EOF)):
		return "", errors.New("the password is empty; nothing was changed")
	case err != nil && !errors.Is(err, io.EOF):
		return "", err
	}
	return strings.Clone(string(line)), nil
}
