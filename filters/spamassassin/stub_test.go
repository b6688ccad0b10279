package spamassassin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/servers/serverstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// query is what a spamd is asked.
type query struct{ command, user, body string }

// read reads a question; PING it answers by itself.
func read(c *serverstest.Conn) (q query, ok bool) {
	line, err := c.R.ReadString('\n')
	if err != nil {
		return q, false
	}
	q.command = strings.TrimSpace(line)
	length := 0
	for line != "\r\n" {
		if line, err = c.R.ReadString('\n'); err != nil {
			return q, false
		}
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch name {
		case "Content-length":
			length, _ = strconv.Atoi(value)
		case "User":
			q.user = value
		}
	}
	if strings.HasPrefix(q.command, "PING ") {
		io.WriteString(c, "SPAMD/1.5 0 PONG\r\n")
		return q, false
	}
	body, err := io.ReadAll(c.R) // to the half of the connection that closes
	q.body = string(body)
	return q, err == nil && len(body) == length
}

func asked(c *serverstest.Conn) bool {
	_, ok := read(c)
	return ok
}

// says is an answer with a Spam line and rules.
func says(line, rules string) string {
	return fmt.Sprintf("SPAMD/1.1 0 EX_OK\r\nContent-length: %d\r\nSpam: %s\r\n\r\n%s", len(rules), line, rules)
}

// honest finds spam where the body says so.
func honest(c *serverstest.Conn) {
	q, ok := read(c)
	switch {
	case !ok:
	case strings.Contains(q.body, "GTUBE"):
		c.Say(says("True ; 1000.0 / 5.0", "GTUBE,MISSING_DATE"))
	default:
		c.Say(says("False ; 0.5 / 5.0", "MISSING_DATE"))
	}
}

func newFilter(t testing.TB, config string, addresses ...string) *Filter {
	t.Helper()
	env := pipeline.Env{Log: slog.New(slog.DiscardHandler)}
	f, err := Kind().New(env, filtertest.Decode("address = [\""+strings.Join(addresses, `", "`)+"\"]\n"+config))
	if err != nil {
		t.Fatal(err)
	}
	return f.(*Filter)
}

// asker has a filter judge: one that fails decides nothing.
func asker(t testing.TB, addresses ...string) func(context.Context) error {
	f := newFilter(t, "refuse = 0.1", addresses...)
	return func(ctx context.Context) error {
		v, err := f.Message(ctx, filtertest.Transaction(), message.FromString(serverstest.Long()))
		if err != nil && (v.Action != pipeline.Continue || v.Edits != nil || v.Symbols != nil) || err == nil && v.Symbols[0].Score != 0.5 {
			t.Errorf("%+v, %v", v, err)
		}
		return err
	}
}

const good = "SPAMD/1.1 0 EX_OK\r\nContent-length: 17\r\nSpam: True ; 99.0 / 5.0\r\n\r\nGTUBE,BAYES_99\r\n\r"

// own are faults of this protocol.
func own() (all []serverstest.Fault) {
	for name, text := range map[string]string{
		"a length too small": strings.Replace(good, "17", "16", 1), "a length too large": strings.Replace(good, "17", "18", 1),
		"no length": "SPAMD/1.1 0 EX_OK\r\nSpam: True ; 9 / 5\r\n\r\n", "a length that is none": strings.Replace(good, "17", "-17", 1),
		"two lengths": strings.Replace(good, "Spam:", "Content-Length: 17\r\nSpam:", 1), "no Spam": "SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\n\r\n",
		"two verdicts":        strings.Replace(good, "Spam:", "Spam: False ; 0 / 5\r\nSpam:", 1),
		"a word that is none": says("Perhaps ; 9.0 / 5.0", "A"), "no score": says("True ; / 5.0", "A"), "no level": says("True ; 9.0", "A"),
		"NaN": says("True ; nan / 5.0", "A"), "infinite": says("True ; inf / 5.0", "A"), "hexadecimal": says("True ; 0x1p9 / 5", "A"),
		"huge": says("True ; 9999999999 / 5.0", "A"), "hugest": says("True ; "+strings.Repeat("9", 400)+" / 5.0", "A"), "huge level": says("True ; 9 / -9999999999", "A"),
		"control bytes in a rule": says("True ; 9 / 5", "A,B\x1b[2J"), "a line in a rule": says("True ; 9 / 5", "A\r\nX-Injected: b"), "not UTF-8": says("True ; 9 / 5", "A\xff"),
		"a rule without a name": says("True ; 9 / 5", "A,,B"), "too many rules": says("True ; 9 / 5", strings.Repeat("A,", 600)+"A"), "a rule as long as can be": says("True ; 9 / 5", strings.Repeat("A", 100)),
		"timeout": "SPAMD/1.1 79 EX_TIMEOUT\r\n\r\n", "code 256": strings.Replace(good, " 0 ", " 256 ", 1), "a bare LF": strings.ReplaceAll(good, "\r\n", "\n"),
		"a line that is none": strings.Replace(good, "Spam:", "nonsense\r\nSpam:", 1), "PONG": "SPAMD/1.5 0 PONG\r\n", "another version": strings.Replace(good, "1.1", "\x00", 1),
	} {
		all = append(all, serverstest.Fault{Name: name, Play: serverstest.Saying(asked, text)})
	}
	return all
}

// Whatever a spamd does wrong, the filter fails in time and decides nothing; with
// another spamd beside it, that one scores.
func TestFaults(t *testing.T) {
	serverstest.Suffer(t, append(serverstest.Faults(asked, good), own()...), honest, asker)
}

// Nothing is there.
func TestAbsent(t *testing.T) { serverstest.Absent(t, "not scored: ", asker) }

// A message that cannot be read is no fault of a spamd's.
func TestReadError(t *testing.T) {
	s := serverstest.Start(t, "unix", honest)
	f := newFilter(t, "", s.Address)
	head, rest := message.ParseHead(serverstest.Long())
	b := message.StoredBody{At: strings.NewReader(rest[:200_000]), Size: int64(len(rest))}.Open()
	defer b.Release()
	if _, err := f.Message(context.Background(), filtertest.Transaction(), message.New(head, b)); !errors.Is(err, io.ErrUnexpectedEOF) || f.spamds.Failing() != nil || s.Answers.Load() != 0 {
		t.Error(err, f.spamds.Failing())
	}
}

// The end of the context ends a call that waits, and is nobody's fault.
func TestCancel(t *testing.T) {
	var f *Filter
	serverstest.Cancel(t, func(t testing.TB, addresses ...string) func(context.Context) error {
		f = newFilter(t, "", addresses...)
		return func(ctx context.Context) error {
			_, err := f.Message(ctx, filtertest.Transaction(), message.FromString(serverstest.Long()))
			return err
		}
	})
	if err := f.spamds.Failing(); err != nil {
		t.Error(err)
	}
}

// After many faults there are as many descriptors as before; goroutines are
// counted at the end of all tests.
func TestLeaks(t *testing.T) {
	s := serverstest.Start(t, "unix", honest)
	filtertest.Must(t, newFilter(t, "", s.Address), serverstest.Long())
	serverstest.Leaks(t, s, append(serverstest.Faults(asked, good), own()...), func() error {
		_, err := filtertest.Judge(newFilter(t, "", s.Address), serverstest.Long(), 20*time.Second)
		return err
	})
}
