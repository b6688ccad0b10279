package execban

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/postern-mta/postern/filters/execban/content"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// policy is what becomes of what is found.
type policy struct {
	actions map[string]pipeline.Action // of every class
	except  []exception
	text    string
}

// exception is a compiled Exception; no classes means all.
type exception struct {
	when    *rules.Rule
	classes []string
}

// known says whether there is a class.
func (p *policy) known(class string) bool {
	_, ok := p.actions[class]
	return ok
}

// actionWords are the options for actions.
var actionWords = map[string]pipeline.Action{
	"refuse": pipeline.Reject, "quarantine": pipeline.Quarantine, "defer": pipeline.Defer, "pass": pipeline.Continue,
}

// allClasses is the word for the classes that no list names.
const allClasses = "all"

// Bounds of a configuration.
const (
	maxOwn        = 100 // classes
	maxExtensions = 10_000
	maxExceptions = 1000
	maxText       = 200 // bytes
	maxSignatures = 2 << 20
)

func keyed(key, format string, args ...any) error {
	return pipeline.AtKey(key, fmt.Errorf(format, args...))
}

// compile checks the options and makes of them what judges and what scans.
func (o *Options) compile() (*policy, *request, error) {
	p := &policy{actions: map[string]pipeline.Action{}, text: o.Text}
	r := &request{Extensions: map[string]string{}, Archive: o.limits(), Parts: o.Parts, Time: o.Time}
	unscannable, ok := actionWords[o.Unscannable]
	if !ok {
		return nil, nil, keyed("unscannable", "%q: write refuse, quarantine, defer or pass", reply.Clean(o.Unscannable, 80))
	}
	if r.Strictness, ok = parseStrictness(o.Strictness); !ok {
		return nil, nil, keyed("strictness", "%q: write never, contradiction, odd or notice", reply.Clean(o.Strictness, 80))
	}
	for _, c := range content.Classes() {
		p.actions[c.Name] = pipeline.Continue
		if c.Default {
			p.actions[c.Name] = pipeline.Reject
		}
	}
	p.actions[SignatureClass] = pipeline.Reject
	for _, c := range [...]string{ArchivesEncrypted, ArchivesNested, Unscannable} {
		p.actions[c] = unscannable
	}
	err := errors.Join(o.limitErrors(), p.own(o.Classes, r.Extensions), p.lists(o), p.exceptions(o.Except), r.readSignatures(o.Signatures))
	if len(o.Text) > maxText || reply.Clean(o.Text, maxText) != o.Text {
		err = errors.Join(err, keyed("text", "it must be one line of printable ASCII, of at most %d bytes", maxText))
	}
	return p, r, err
}

func (o *Options) limitErrors() error {
	var wrong []error
	for _, n := range [...]struct {
		key        string
		value, max int64
	}{
		{"depth", int64(o.Depth), 30},
		{"members", int64(o.Members), 1_000_000},
		{"parts", int64(o.Parts), 1_000_000},
		{"bytes", o.Bytes, 1 << 40},
		{"member", o.Member, 1 << 40},
		{"time", int64(o.Time), int64(10 * 60 * 1e9)},
	} {
		if n.value < 1 || n.value > n.max {
			wrong = append(wrong, keyed(n.key, "it must be from 1 to %s", map[bool]string{true: "10m", false: fmt.Sprint(n.max)}[n.key == "time"]))
		}
	}
	return errors.Join(wrong...)
}

var (
	className = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	extension = regexp.MustCompile(`^[^./\\:\s\x00-\x1f]{1,32}$`)
)

// own takes in own classes.
func (p *policy) own(classes []Class, extensions map[string]string) error {
	if len(classes) > maxOwn {
		return keyed(fmt.Sprintf("class[%d]", maxOwn), "more than %d classes", maxOwn)
	}
	var wrong []error
	for i, c := range classes {
		key := fmt.Sprintf("class[%d]", i)
		if !className.MatchString(c.Name) || len(c.Name) > maxClass || c.Name == allClasses {
			wrong = append(wrong, keyed(key+".name", "%q is no name of a class: lower-case letters and digits, with - between them", reply.Clean(c.Name, 80)))
			continue
		}
		if len(c.Extensions) == 0 {
			wrong = append(wrong, keyed(key+".extensions", "there is none, so nothing is of this class"))
		}
		if !p.known(c.Name) {
			p.actions[c.Name] = pipeline.Reject
		}
		for j, e := range c.Extensions {
			at := fmt.Sprintf("%s.extensions[%d]", key, j)
			e = strings.ToLower(strings.TrimPrefix(e, "."))
			switch {
			case !extension.MatchString(e):
				wrong = append(wrong, keyed(at, "%q is no extension: write what follows the last dot", reply.Clean(e, 80)))
			case extensions[e] != "" && extensions[e] != c.Name:
				wrong = append(wrong, keyed(at, "%q is in the class %s already", reply.Clean(e, 80), extensions[e]))
			case len(extensions) == maxExtensions:
				return keyed(at, "more than %d extensions", maxExtensions)
			default:
				extensions[e] = c.Name
			}
		}
	}
	return errors.Join(wrong...)
}

// lists gives classes the actions of the lists in which they stand.
func (p *policy) lists(o *Options) error {
	var wrong []error
	placed, all := map[string]string{}, ""
	lists := [...]struct {
		word    string
		classes []string
	}{{"refuse", o.Refuse}, {"quarantine", o.Quarantine}, {"defer", o.Defer}, {"pass", o.Pass}}
	for _, l := range lists {
		for i, class := range l.classes {
			err := error(nil)
			switch other := placed[class]; {
			case other != "":
				err = fmt.Errorf("%s is in %s already", class, other)
			case class == allClasses:
				all = l.word
			default:
				err = p.mustKnow(class)
			}
			if err != nil {
				wrong = append(wrong, keyed(fmt.Sprintf("%s[%d]", l.word, i), "%w", err))
				continue
			}
			placed[class] = l.word
			if class != allClasses {
				p.actions[class] = actionWords[l.word]
			}
		}
	}
	if all != "" {
		for class := range p.actions {
			if placed[class] == "" && class != Unscannable && class != ArchivesEncrypted && class != ArchivesNested {
				p.actions[class] = actionWords[all]
			}
		}
	}
	return errors.Join(wrong...)
}

// mustKnow is an error if there is no such class.
func (p *policy) mustKnow(class string) error {
	if p.known(class) {
		return nil
	}
	names := p.classes()
	if s := rules.Suggest(class, names); s != "" {
		return fmt.Errorf("there is no class %q; did you mean %q?", reply.Clean(class, 80), s)
	}
	return fmt.Errorf("there is no class %q; known are %s", reply.Clean(class, 80), strings.Join(names, ", "))
}

func (p *policy) classes() []string {
	var names []string
	for class := range p.actions {
		names = append(names, class)
	}
	slices.Sort(names)
	return names
}

func (p *policy) exceptions(all []Exception) error {
	if len(all) > maxExceptions {
		return keyed(fmt.Sprintf("except[%d]", maxExceptions), "more than %d exceptions", maxExceptions)
	}
	var wrong []error
	for i, e := range all {
		key := fmt.Sprintf("except[%d]", i)
		x := exception{when: rules.Always()}
		if e.When != "" {
			var err error
			if x.when, err = rules.Compile(pipeline.Facts(), e.When); err != nil {
				wrong = append(wrong, pipeline.AtKey(key+".when", err))
				continue
			}
			if since := pipeline.Stage(x.when.Since()); since > pipeline.AtMessage {
				wrong = append(wrong, keyed(key+".when", "it asks for what is known only at the %v stage", since))
				continue
			}
		}
		if len(e.Classes) == 0 {
			wrong = append(wrong, keyed(key+".classes", "there is none: write the classes that pass, or [\"all\"]"))
		}
		for j, class := range e.Classes {
			if err := p.mustKnow(class); err != nil && class != allClasses {
				wrong = append(wrong, pipeline.AtKey(fmt.Sprintf("%s.classes[%d]", key, j), err))
			}
		}
		if !slices.Contains(e.Classes, allClasses) {
			x.classes = e.Classes
		}
		p.except = append(p.except, x)
	}
	return errors.Join(wrong...)
}

// readSignatures reads the file of signatures and tries whether it is one.
func (r *request) readSignatures(path string) error {
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return pipeline.AtKey("signatures", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSignatures+1))
	if err != nil {
		return pipeline.AtKey("signatures", err)
	}
	if len(b) > maxSignatures {
		return keyed("signatures", "%s: more than %d bytes", path, maxSignatures)
	}
	if _, err := content.ParseSignatures(strings.NewReader(string(b))); err != nil {
		return keyed("signatures", "%s: %w", path, err)
	}
	r.Signatures = string(b)
	return nil
}
