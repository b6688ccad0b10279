package main

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

func readme(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// optionKeys are the keys of a filter's options, with their tables: what the
// filter asks the configuration for, not what the reference says of it.
func optionKeys(t *testing.T, path string, of reflect.Type) (keys []string) {
	for i := range of.NumField() {
		f := of.Field(i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			keys = append(keys, optionKeys(t, path, f.Type)...) // of this table
			continue
		}
		name := f.Tag.Get("toml")
		if name == "" || f.Tag.Get("doc") == "" {
			t.Errorf("%s: %s has no key or no description", path, f.Name)
		}
		keys = append(keys, path+"."+name)
		inner := f.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			keys = append(keys, optionKeys(t, path+"."+name, inner)...)
		}
	}
	return keys
}

// TestReferenceIsWhole holds reference, manual page and README against the
// filters, facts and functions that there are.
func TestReferenceIsWhole(t *testing.T) {
	var b strings.Builder
	if err := printReference(&b); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("man/postern.toml.5")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{"the reference": b.String(), "man/postern.toml.5": strings.ReplaceAll(string(page), `\-`, "-")}
	var wanted []string
	for _, kind := range kinds() {
		if !strings.Contains(readme(t), "| `"+kind.Name+"` |") {
			t.Errorf("README.md does not list the filter %s", kind.Name)
		}
		_, err := kind.New(quietEnv(), func(into any) error {
			wanted = append(wanted, optionKeys(t, "filter."+kind.Name, reflect.TypeOf(into).Elem())...)
			return errors.New("only asked for the keys")
		})
		if err == nil {
			t.Errorf("the filter %s asks for no options", kind.Name)
		}
	}
	for _, f := range pipeline.Facts().Facts() {
		wanted = append(wanted, f.Name)
	}
	for _, f := range rules.Functions() {
		wanted = append(wanted, f.Usage)
	}
	if len(wanted) < 30 {
		t.Errorf("only %d names are looked for", len(wanted))
	}
	for where, text := range texts {
		for _, name := range wanted {
			if !strings.Contains(text, "\n"+name+"\n") && !strings.Contains(text, "\n"+name+" (") && !strings.Contains(text, "\n"+name+`("NAME") (`) {
				t.Errorf("%s does not list %s: run make man", where, name)
			}
		}
	}
}

// TestReadmeConfiguration takes the README at its word: postern check finds its
// example right, on a host that has the users, the programs and the password that
// it names.
func TestReadmeConfiguration(t *testing.T) {
	dir := t.TempDir()
	programs := strings.NewReplacer("/var/qmail/bin/", dir+"/", "/etc/postern/provider", dir+"/provider")
	for _, name := range []string{"qmail-queue", "qmail-remote.orig", "provider"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	blocks := regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(readme(t), -1)
	if len(blocks) == 0 {
		t.Fatal("README.md has no example")
	}
	for _, block := range blocks {
		text := programs.Replace(block[1])
		o := loadOptions(quietEnv())
		o.LookupUser = func(string) (uint32, error) { return 1000, nil }
		o.Hostname = func() (string, error) { return "mx.example.org", nil }
		c, err := config.Parse(filepath.Join(dir, "postern.toml"), []byte(text), o)
		if err != nil {
			t.Errorf("%v\n%s", err, text)
			continue
		}
		if len(c.Warnings) > 0 {
			t.Errorf("%v\n%s", c.Warnings, text)
		}
	}
}

// TestReadmeCommands looks for every command and target that the README names.
func TestReadmeCommands(t *testing.T) {
	text := readme(t)
	found := regexp.MustCompile("(?:`|\n +)postern ([a-z]+(?: [a-z]+)?)").FindAllStringSubmatch(strings.ReplaceAll(text, "`postern\n", "`postern "), -1)
	if len(found) < 5 {
		t.Errorf("only %d commands found", len(found))
	}
	for _, m := range found {
		words := strings.Fields(m[1])
		c, _, err := rootCommand().Find(words[:1])
		if err != nil {
			t.Errorf("README.md names %q: %v", m[0], err)
			continue
		}
		if len(words) > 1 && c.HasSubCommands() {
			if sub, _, err := c.Find(words[1:]); err != nil || sub == c {
				t.Errorf("README.md names %q, which there is not", m[0])
			}
		}
	}
	makefile, err := os.ReadFile(filepath.Join("..", "..", "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?:\n    |`+"`"+`)make ([a-z ]*[a-z])`).FindAllStringSubmatch(text, -1) {
		for _, target := range strings.Fields(m[1]) {
			if !strings.Contains(string(makefile), "\n"+target+":") {
				t.Errorf("README.md names make %s, which there is not", target)
			}
		}
	}
}

// TestReadmeExitCodes holds the README's table against the one table of
// answers.
func TestReadmeExitCodes(t *testing.T) {
	rows := map[string][]reply.Reply{ // what the chain says: the first column's beginning
		"reject":                        {reply.For(pipeline.Reject, reply.Reply{})},
		"defer":                         {reply.For(pipeline.Defer, reply.Reply{})},
		"message over `limits.message`": {reply.TooBig},
		"envelope broken":               {reply.ReadError, reply.BadEnvelope, reply.AddressTooLong},
		"daemon away for ten seconds":   {reply.Trouble},
	}
	for start, answers := range rows {
		line := regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(start) + `[^|]*\|([^|]*)\|([^|]*)\|([^|]*)\|$`).FindStringSubmatch(readme(t))
		if line == nil {
			t.Errorf("README.md has no row %q", start)
			continue
		}
		exits, heard := strings.Split(line[1], ","), strings.Split(line[3], ",")
		if len(exits) != len(answers) || len(heard) != len(answers) {
			t.Errorf("%s: %d exit codes and %d replies, want %d", start, len(exits), len(heard), len(answers))
			continue
		}
		for i, r := range answers {
			exit := strings.TrimSpace(exits[i])
			if want := r.QueueExit(); exit != strconv.Itoa(int(want)) {
				t.Errorf("%s: exit %s, want %d", start, exit, want)
			}
			if want := reply.FromExit(int(r.QueueExit()), "").SMTP()[:3]; strings.TrimSpace(heard[i]) != want {
				t.Errorf("%s: the client hears %s, want %s", start, heard[i], want)
			}
			if text := r.QueueText(255); strings.Contains(line[2], "`") && !strings.Contains(line[2], "`"+text[:1]+"...") {
				t.Errorf("%s: the text is %q, not %s", start, text, line[2])
			}
		}
	}
}
