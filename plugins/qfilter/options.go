package qfilter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
)

// What a configuration may hold.
const (
	maxPrograms    = 100
	maxArgs        = 1000
	maxConcurrency = 1000
	maxVariable    = 32 << 10 // bytes of one in the table env
)

// What programs may change.
const (
	theMessage  = "message"
	theEnvelope = "envelope"
)

// configure makes of the options what is asked for every message, and says what
// is wrong with them.
func (f *Filter) configure() (wrong []error) {
	bad := func(key, format string, args ...any) {
		wrong = append(wrong, pipeline.AtKey(key, fmt.Errorf(format, args...)))
	}
	o := &f.o
	var err error
	if f.commands, err = o.commands(); err != nil {
		wrong = append(wrong, err)
	}
	if o.MayChange == nil {
		o.MayChange = []string{theMessage, theEnvelope}
	}
	f.may = map[string]bool{}
	for i, what := range o.MayChange {
		if f.may[what] = true; what != theMessage && what != theEnvelope {
			bad(fmt.Sprintf("may_change[%d]", i), "%q: write message or envelope", reply.Clean(what, 80))
		}
	}
	f.exits, f.queues = map[int]decision{}, map[string]decision{}
	for key, word := range o.Exits {
		code, err := strconv.Atoi(key)
		d, ok := parseDecision(word)
		switch {
		case err != nil || code < 0 || code > 255 || strconv.Itoa(code) != key:
			bad("exits."+key, "%q is no exit code: write 0 to 255", reply.Clean(key, 20))
		case !ok:
			bad("exits."+key, "%q: write %s", reply.Clean(word, 80), decisionWords)
		default:
			f.exits[code] = d
		}
	}
	for path, word := range o.Queues {
		d, ok := parseDecision(word)
		if !ok {
			bad("queues."+path, "%q: write %s", reply.Clean(word, 80), decisionWords)
		}
		f.queues[path] = d
	}
	for name, value := range o.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") || len(name)+len(value) > maxVariable {
			bad("env."+name, "a variable has a name without =, and at most %d bytes without a NUL", maxVariable)
		}
	}
	if !filepath.IsAbs(o.Dir) || strings.Contains(o.Dir, "\x00") {
		bad("dir", "%q is no absolute path", reply.Clean(o.Dir, 200))
	}
	if o.Memory < 0 {
		bad("memory", "%d: write a size", o.Memory)
	}
	if o.CPU < 0 || o.CPU > 0 && o.CPU < time.Second {
		bad("cpu", "%v: write at least 1s", o.CPU)
	}
	if o.MaxOutput < 0 {
		bad("max_output", "%d: write a size", o.MaxOutput)
	}
	if o.MaxFile < 0 {
		bad("max_file", "%d: write a size", o.MaxFile)
	}
	if o.Concurrency < 0 || o.Concurrency > maxConcurrency {
		bad("concurrency", "%d: write 1 to %d", o.Concurrency, maxConcurrency)
	}
	if o.Lines != "" {
		if f.lines, _ = message.ParseLines(o.Lines); f.lines == message.Keep || f.lines.String() != o.Lines {
			bad("lines", "%q: write repair or refuse", reply.Clean(o.Lines, 80))
		}
	}
	return wrong
}

// commands are the programs, as either key has them.
func (o *Options) commands() ([]command, error) {
	key, all := "programs", o.Programs
	if len(o.Command) > 0 {
		if key = "command"; len(all) > 0 {
			return nil, pipeline.AtKey(key, errors.New("command and programs are the same: write one of them"))
		}
		all = slices.Collect(chain(o.Command))
	}
	switch {
	case len(all) == 0:
		return nil, errors.New(`there is no program: write command = ["/path/of/a/program"]`)
	case len(all) > maxPrograms:
		return nil, pipeline.AtKey(key, fmt.Errorf("%d programs, at most %d", len(all), maxPrograms))
	}
	commands := make([]command, len(all))
	for i, args := range all {
		at := key
		if key == "programs" {
			at = fmt.Sprintf("%s[%d]", key, i)
		}
		if err := checkArgs(args); err != nil {
			return nil, pipeline.AtKey(at, fmt.Errorf("program %d: %w", i+1, err))
		}
		commands[i] = command{args}
	}
	return commands, nil
}

func checkArgs(args []string) error {
	switch {
	case len(args) == 0 || args[0] == "":
		return errors.New("it is empty")
	case len(args) > maxArgs:
		return fmt.Errorf("%d arguments, at most %d", len(args), maxArgs)
	case strings.Contains(args[0], "/") && !filepath.IsAbs(args[0]):
		return fmt.Errorf("%q is neither an absolute path nor a name", reply.Clean(args[0], 200))
	case slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, "\x00") || len(a) > maxVariable }):
		return fmt.Errorf("an argument holds a NUL, or more than %d bytes", maxVariable)
	}
	return nil
}

// chain splits a command line at each "--", as qmail-qfilter does.
func chain(line []string) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		for {
			end := slices.Index(line, "--")
			if end < 0 {
				if len(line) > 0 { // one at the very end ends the last program
					yield(line)
				}
				return
			}
			if !yield(line[:end]) {
				return
			}
			line = line[end+1:]
		}
	}
}

// command is a program with its arguments, itself the first.
type command struct{ args []string }

// name is what logs and traces call it.
func (c command) name() string { return reply.Clean(c.args[0], 200) }

// find is the program's path; a name without a slash is looked for in the folders
// of PATH, as execvp(3) does.
func (c command) find(path string) (string, error) {
	name := c.args[0]
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	err := fmt.Errorf("there is no %s in %s", reply.Clean(name, 200), reply.Clean(path, 400))
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		at := filepath.Join(dir, name)
		if executable(at) == nil {
			return at, nil
		}
	}
	return "", err
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is no program", reply.Clean(path, 200))
	}
	return nil
}

// decision is what is to become of a message.
type decision struct {
	action pipeline.Action
	reply  reply.Reply
	// fails is set where the program has failed; goes on is an action of Continue.
	fails bool
	// why is for log and trace.
	why string
}

const decisionWords = `continue, accept, reject, defer, discard, quarantine, error, or a reply like "554 5.7.1 no"`

// parseDecision reads a word of the tables exits and queues.
func parseDecision(word string) (decision, bool) {
	if word == "error" {
		return decision{fails: true}, true
	}
	if a, ok := reply.ParseAction(word); ok {
		return decision{action: a}, true
	}
	switch r, ok := reply.Parse(word); {
	case ok && r.Class == reply.Permanent:
		return decision{action: pipeline.Reject, reply: r}, true
	case ok && r.Class == reply.Temporary:
		return decision{action: pipeline.Defer, reply: r}, true
	}
	return decision{}, false
}

// exitDrop is qmail-qfilter's own; exitDefer is the filters' usual "later".
const (
	exitDrop  = 99
	exitDefer = 71
)

// judge is what an exit code means, with the text that came on descriptor 6.
func (f *Filter) judge(code int, text string) decision {
	if d, ok := f.exits[code]; ok {
		return d
	}
	switch code {
	case 0:
		return decision{}
	case exitDrop:
		return decision{action: pipeline.Discard}
	}
	r := reply.FromExit(code, text)
	told := len(text) > 2 && slices.Contains(reply.CustomExits[:], code)
	switch {
	case r.Class == reply.Permanent:
		return decision{action: pipeline.Reject, reply: r}
	case code == exitDefer || told:
		return decision{action: pipeline.Defer, reply: r}
	}
	return decision{fails: true}
}
