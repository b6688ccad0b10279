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
	"github.com/postern-mta/postern/pipeline/envelope"
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

// saying answers every message with a text.
func saying(text string) func(*serverstest.Conn) {
	return func(c *serverstest.Conn) {
		if asked(c) {
			c.Say(text)
		}
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

// judge has a filter judge a message to some recipients.
func judge(f *Filter, text string, within time.Duration, to ...string) (pipeline.Verdict, error) {
	if len(to) == 0 {
		to = []string{"r@example.org"}
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	tx := &pipeline.Transaction{Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", to...)}
	for i := range to {
		tx.Active = append(tx.Active, i)
	}
	return f.Message(ctx, tx, message.FromString(text))
}

func must(t testing.TB, f *Filter, text string, to ...string) pipeline.Verdict {
	t.Helper()
	v, err := judge(f, text, 20*time.Second, to...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// large is longer than what a socket holds.
var large = "Subject: large\n\n" + strings.Repeat(strings.Repeat("x", 70)+"\n", 7000)

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
		all = append(all, serverstest.Fault{Name: name, Play: saying(text)})
	}
	return all
}

// Whatever a spamd does wrong, the filter fails in time and decides nothing; with
// another spamd beside it, that one scores.
func TestFaults(t *testing.T) {
	for _, fault := range append(serverstest.Faults(asked, good), own()...) {
		t.Run(fault.Name, func(t *testing.T) {
			t.Parallel()
			bad := serverstest.Start(t, "unix", fault.Play)
			f := newFilter(t, "refuse = 0.1", bad.Address)
			within := 20 * time.Second
			if fault.Slow {
				within = time.Second
			}
			v, err := judge(f, large, within)
			if err == nil || v.Action != pipeline.Continue || v.Edits != nil || v.Symbols != nil || !strings.Contains(err.Error(), bad.Address) {
				t.Fatalf("%+v, %v", v, err)
			}
			if strings.ContainsFunc(err.Error(), func(c rune) bool { return c < ' ' || c > '~' }) {
				t.Errorf("%q", err)
			}
			fine := serverstest.Start(t, "unix", honest)
			f = newFilter(t, "", bad.Address, fine.Address)
			if fault.Slow {
				within = 4 * time.Second // of which each has a half
			}
			for range 2 { // so that both come first once
				if v, err = judge(f, large, within); err != nil || v.Symbols[0].Score != 0.5 {
					t.Errorf("beside one that works: %v, %v", v, err)
				}
			}
		})
	}
}

// Nothing is there.
func TestAbsent(t *testing.T) {
	gone := serverstest.Start(t, "tcp", honest)
	gone.Stop()
	f := newFilter(t, "", gone.Address, "unix:/nonexistent/spamd")
	for range 4 {
		if _, err := judge(f, large, 10*time.Second); err == nil || !strings.Contains(err.Error(), "not scored: ") || !strings.Contains(err.Error(), gone.Address) || !strings.Contains(err.Error(), "/nonexistent") {
			t.Fatal(err)
		}
	}
}

// A message that cannot be read is no fault of a spamd's.
func TestReadError(t *testing.T) {
	s := serverstest.Start(t, "unix", honest)
	f := newFilter(t, "", s.Address)
	head, rest := message.ParseHead(large)
	b := message.StoredBody{At: strings.NewReader(rest[:200_000]), Size: int64(len(rest))}.Open()
	defer b.Release()
	tx := &pipeline.Transaction{Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", "r@example.org"), Active: []int{0}}
	if _, err := f.Message(context.Background(), tx, message.New(head, b)); !errors.Is(err, io.ErrUnexpectedEOF) || f.spamds.Failing() != nil || s.Answers.Load() != 0 {
		t.Error(err, f.spamds.Failing())
	}
}

// The end of the context ends a call that waits, and is nobody's fault.
func TestCancel(t *testing.T) {
	began := make(chan struct{}, 1)
	s := serverstest.Start(t, "tcp", func(c *serverstest.Conn) {
		began <- struct{}{}
		c.Hang()
	})
	f := newFilter(t, "", s.Address)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-began
		cancel()
	}()
	tx := &pipeline.Transaction{Session: filtertest.Stranger(), Envelope: envelope.To("a@example.net", "r@example.org"), Active: []int{0}}
	if _, err := f.Message(ctx, tx, message.FromString(large)); err == nil || f.spamds.Failing() != nil {
		t.Error(err, f.spamds.Failing())
	}
}

// After many faults there are as many descriptors as before; goroutines are
// counted at the end of all tests.
func TestLeaks(t *testing.T) {
	s := serverstest.Start(t, "unix", honest)
	must(t, newFilter(t, "", s.Address), large)
	serverstest.Leaks(t, s, append(serverstest.Faults(asked, good), own()...), func() error {
		_, err := judge(newFilter(t, "", s.Address), large, 20*time.Second)
		return err
	})
}
