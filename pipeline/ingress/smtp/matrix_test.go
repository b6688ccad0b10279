package smtp

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
)

// minCases is how many cases there are at least, dialogues and cells of the
// matrix together, and minCells how many cells.
const (
	minCases = 700
	minCells = 500
)

// column is a state of testdata/matrix.txt: how a session gets there.
type column struct {
	name    string
	options []setting
	steps   []string
}

const (
	greeted   = "S: 220 mx.example.org ..."
	sayMail   = "C: MAIL FROM:<a@client.example>"
	sayRcpt   = "C: RCPT TO:<b@example.org>"
	sayEhlo   = "C: EHLO client.example"
	sayLhlo   = "C: LHLO client.example"
	mailTaken = "S: 250 2.1.0 ok"
	rcptTaken = "S: 250 2.1.5 ok"
	hello     = "S+: 250"
)

// columns is the table of states.
func columns() []column {
	mx := []setting{{"tls", "offer"}, {"auth", ""}, {"requiretls", ""}, {"bad", "50"}}
	with := func(more ...setting) []setting { return append(more, mx...) }
	secure := []string{greeted, sayEhlo, hello, "C: STARTTLS", "S: 220 2.0.0 ...", "TLS:"}
	under := func(more ...string) []string { return append(append([]string(nil), secure...), more...) }
	lmtp := with(setting{"service", "lmtp"})
	return []column{
		{"fresh", mx, []string{greeted}},
		{"helo", mx, []string{greeted, "C: HELO client.example", hello}},
		{"ready", mx, []string{greeted, sayEhlo, hello}},
		{"sender", mx, []string{greeted, sayEhlo, hello, sayMail, mailTaken}},
		{"rcpts", mx, []string{greeted, sayEhlo, hello, sayMail, mailTaken, sayRcpt, rcptTaken}},
		{"chunks", mx, []string{greeted, sayEhlo, hello, sayMail, mailTaken, sayRcpt, rcptTaken, "C: BDAT 6", "C: A: b", "S: 250 2.0.0 ..."}},
		{"tls", mx, secure},
		{"secure", mx, under(sayEhlo, hello)},
		{"user", mx, under(sayEhlo, hello, "C: AUTH PLAIN AGpvZQBzZWNyZXQ=", "S: 235 2.7.0 ...")},
		{"submission", with(setting{"service", "submission"}), under(sayEhlo, hello)},
		{"lhlo", lmtp, []string{greeted, sayLhlo, hello}},
		{"lmtpsender", lmtp, []string{greeted, sayLhlo, hello, sayMail, mailTaken}},
		{"lmtprcpts", lmtp, []string{greeted, sayLhlo, hello, sayMail, mailTaken, sayRcpt, rcptTaken}},
		{"require", append([]setting{{"tls", "require"}}, mx[1:]...), []string{greeted, sayEhlo, hello}},
		{"refused", with(setting{"filter", "connect reject 554 5.7.1 you are listed"}), []string{"S: 554 5.7.1 ..."}},
	}
}

// settings are the column's options. Nobody may log in where sessions are
// refused, or the refusal would wait.
func (c *column) settings() []setting {
	if c.name != "refused" {
		return c.options
	}
	var all []setting
	for _, s := range c.options {
		if s.key != "auth" {
			all = append(all, s)
		}
	}
	return all
}

// probes tell the states after a command from one another.
var probes = map[string][]string{
	"fresh":      {sayMail, "S: 503 5.5.1 say ..."},
	"helo":       {sayMail + " SIZE=1", "S: 555 5.5.4 ...", sayMail, mailTaken},
	"ready":      {"C: DATA", "S: 503 5.5.1 bad ...", sayMail + " SIZE=1", mailTaken, "STORED: {stored}"},
	"sender":     {sayMail, "S: 503 5.5.1 bad ...", "C: DATA", "S: {nobody} 5.5.1 ...", sayRcpt, rcptTaken},
	"rcpts":      {sayMail, "S: 503 5.5.1 bad ...", "C: DATA", "S: 354 ...", "C: .", "S*{each}: 250 2.0.0 ok q1", "FROM: a@client.example", "STORED: 1"},
	"chunks":     {"C: DATA", "S: 503 5.5.1 bad ...", "C: BDAT 0 LAST", "S*{each}: 250 2.0.0 ok q1", "STORED: 1"},
	"data":       {"C: QUIT", "C: .", "S*{each}: 250 2.0.0 ok q1", "BODY: QUIT\\n"},
	"tls":        {"TLS:", sayMail, "S: 503 5.5.1 say ...", "C: {hello} client.example", "S+: 250 | !STARTTLS"},
	"user":       {"C: AUTH PLAIN AGpvZQBzZWNyZXQ=", "S: 503 5.5.1 ...", sayMail + " SIZE=1", mailTaken, "C: RCPT TO:<c@elsewhere.example>", rcptTaken},
	"userhelo":   {sayMail + " SIZE=1", "S: 555 5.5.4 ...", sayMail, mailTaken, "C: RCPT TO:<c@elsewhere.example>", rcptTaken},
	"usersender": {sayMail, "S: 503 5.5.1 bad ...", "C: RCPT TO:<c@elsewhere.example>", rcptTaken},
	"locked":     {sayMail, "S: 530 5.7.0 authentication required"},
	"plain":      {sayMail, "S: 530 5.7.0 say STARTTLS first", "C: NOOP", "S: 250 2.0.0 ok"},
	"refused":    {"C: NOOP", "S: 503 5.5.1 bad ...", "C: QUIT", "S: 221 2.0.0 bye", "EOF:"},
	"closed":     {"EOF:"},
}

// cell is one command in one state.
type cell struct {
	where, command, column, answer, after string
}

var cellLine = regexp.MustCompile(`^(\w+) +\| (\d{3}(?: \d\.\d{1,2}\.\d{1,2})?) +\| (\w+)$`)

// readMatrix reads testdata/matrix.txt.
func readMatrix(t *testing.T) (commands []string, cells []cell) {
	t.Helper()
	content, err := os.ReadFile("testdata/matrix.txt")
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(string(content), "\n") {
		where := fmt.Sprintf("matrix.txt:%d", i+1)
		if command, ok := strings.CutPrefix(line, "== "); ok {
			commands = append(commands, command)
			continue
		}
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		m := cellLine.FindStringSubmatch(line)
		if m == nil || len(commands) == 0 {
			t.Fatalf("%s: %q is no cell", where, line)
		}
		cells = append(cells, cell{where, commands[len(commands)-1], m[1], m[2], m[3]})
	}
	return commands, cells
}

// dialogue is the case of a cell: the way to the state, the command, its
// answer, and what tells the state that follows.
func (c cell) dialogue(t *testing.T, at column) *dialogue {
	t.Helper()
	d := &dialogue{name: c.column + " " + c.command, where: c.where, options: at.settings()}
	probe, ok := probes[c.after]
	if !ok {
		t.Fatalf("%s: there is no state %q", c.where, c.after)
	}
	lines := append(append([]string(nil), at.steps...), "C: "+c.command)
	if strings.Contains(c.answer, " ") || c.answer == "354" {
		lines = append(lines, "S: "+c.answer+" ...")
	} else {
		lines = append(lines, "S+: "+c.answer)
	}
	stored := "0"
	if strings.HasPrefix(c.command, "BDAT") && c.answer == "250 2.0.0" && c.after == "ready" {
		stored = "1"
	}
	fill := strings.NewReplacer("{stored}", stored, "{nobody}", "554", "{hello}", "EHLO", "{each}", "1")
	if at.isLMTP() {
		// It answers each recipient (RFC 2033 §4.2), of whom a cell may add one.
		each := "1"
		if c.column == "lmtprcpts" && strings.HasPrefix(c.command, "RCPT") && c.after == "rcpts" && c.answer[0] == '2' {
			each = "2"
		}
		fill = strings.NewReplacer("{stored}", stored, "{nobody}", "503", "{hello}", "LHLO", "{each}", each)
	}
	for _, line := range append(lines, probe...) {
		line = fill.Replace(line)
		m := stepLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("%s: %q is no step", c.where, line)
		}
		times := 1
		if m[2] == "2" {
			times = 2
		}
		d.add(t, step{c.where, m[1], m[3], times})
	}
	return d
}

func (c *column) isLMTP() bool {
	return c.options[0] == (setting{"service", "lmtp"})
}

// TestMatrix has every command in every state: none may be missing, and each
// is answered, and followed by a state, as testdata/matrix.txt has it.
func TestMatrix(t *testing.T) {
	commands, cells := readMatrix(t)
	states := map[string]column{}
	for _, c := range columns() {
		states[c.name] = c
	}
	table := map[[2]string]string{}
	for _, c := range cells {
		at, ok := states[c.column]
		key := [2]string{c.command, c.column}
		if _, twice := table[key]; twice || !ok {
			t.Fatalf("%s: the state %q is unknown, or stands there twice", c.where, c.column)
		}
		table[key] = c.answer
		d := c.dialogue(t, at)
		for _, bytewise := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s bytewise=%v", d.name, bytewise), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { d.run(t, bytewise) })
			})
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-34s", "")
	for _, c := range columns() {
		fmt.Fprintf(&b, " %-10s", c.name)
	}
	for _, command := range commands {
		fmt.Fprintf(&b, "\n%-34.34s", command)
		for _, c := range columns() {
			answer, ok := table[[2]string{command, c.name}]
			if !ok {
				t.Errorf("matrix.txt: nothing is said of %q in the state %s", command, c.name)
				answer = "MISSING"
			}
			fmt.Fprintf(&b, " %-10s", answer)
		}
	}
	t.Log(b.String())
	if len(cells) < minCells {
		t.Errorf("%d cells, want at least %d", len(cells), minCells)
	}
	for name := range commandTable() {
		if !strings.Contains("\n"+strings.Join(commands, "\n"), "\n"+name) && !sameAsOther[name] {
			t.Errorf("matrix.txt: no row for the command %s", name)
		}
	}
}

// sameAsOther are the commands that share the row of another in commandTable:
// EXPN and ETRN stand for those that are not implemented, GET for those of
// other protocols.
var sameAsOther = map[string]bool{
	"TURN": true, "ATRN": true, "SEND": true, "SOML": true, "SAML": true,
	"HEAD": true, "POST": true, "PUT": true, "DELETE": true, "CONNECT": true, "OPTIONS": true, "TRACE": true, "PATCH": true, "PRI": true,
}
