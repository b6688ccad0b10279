package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/rules"
)

// tapKind is the kind of filter whose rules are control/taps by default.
const tapKind = "tap"

// execbanKind is the kind of filter whose signatures are control/signatures by
// default.
const (
	execbanKind   = "execban"
	signaturesKey = "signatures"
)

// maxFilters is the most filters of one chain.
const maxFilters = 256

// checkChains looks at the chains' lists, and gives the filters that have no
// table one with defaults.
func (l *loader) checkChains() {
	if !l.written("chain") {
		l.Chain = map[string][]string{InboundChain: {}}
		if l.kind(tapKind) != nil && len(l.taps) > 0 {
			l.Chain[InboundChain] = []string{tapKind}
			l.from["chain."+InboundChain] = l.where(l.taps[0].place)
		}
	}
	if l.Filter == nil {
		l.Filter = map[string]*Filter{}
	}
	for _, name := range sorted(l.Chain) {
		path := "chain." + name
		if n := len(l.Chain[name]); n > maxFilters {
			l.add(l.at(path), "%s: %d filters, at most %d", path, n, maxFilters)
			l.Chain[name] = nil
		}
		for i, filter := range l.Chain[name] {
			at := l.atItem(path, i)
			switch {
			case !nameRule.MatchString(filter):
				l.add(at, "%s: %s is no name of a filter: letters, digits, - and _, at most 64", path, show(filter))
			case slices.Index(l.Chain[name], filter) < i:
				l.add(at, "%s: %s is in it twice; a second one needs a table with a name of its own and kind = %q", path, filter, filter)
			case l.Filter[filter] == nil && !l.written("filter."+filter):
				f := &Filter{}
				f.prepare()
				f.written = false
				f.own = &node{place: at, value: map[string]any{}}
				l.Filter[filter] = f
			}
		}
	}
	for _, name := range sorted(l.ChainOptions) {
		path := "chain_options." + name
		if _, ok := l.Chain[name]; !ok {
			l.suggest(l.at(path), rules.Suggest(name, sorted(l.Chain)), "[%s]: there is no chain %s", path, show(name))
		}
		if l.ChainOptions[name].Deadline <= 0 {
			l.add(l.at(path+".deadline"), "%s.deadline must be longer than 0", path)
		}
	}
}

// atItem is the place of a list's item.
func (l *loader) atItem(path string, i int) place {
	return l.at(path + "[" + strconv.Itoa(i) + "]")
}

// kind is the kind of that name, nil if there is none.
func (c *Config) kind(name string) *pipeline.Kind {
	for i := range c.o.Kinds {
		if c.o.Kinds[i].Name == name {
			return &c.o.Kinds[i]
		}
	}
	return nil
}

// checkFilters makes every filter once, to see whether it can be made, and puts
// it in its places.
func (l *loader) checkFilters() {
	steps := map[string]pipeline.Step{}
	for _, name := range sorted(l.Filter) {
		f := l.Filter[name]
		f.Name = name
		if made, ok := l.makeStep(l.problems, f); ok {
			steps[name], l.options[name] = made.Step, made.options
			f.OnError, f.Always = &made.OnError, &made.Always
			maps.Copy(l.set, made.set)
			maps.Copy(l.users, made.users)
		}
	}
	used, tapped := map[string]bool{}, false
	for _, chain := range sorted(l.Chain) {
		for i, name := range l.Chain[chain] {
			used[name] = true
			tapped = tapped || l.Filter[name] != nil && l.Filter[name].Kind == tapKind
			if step, ok := steps[name]; ok {
				l.checkPlace(chain, l.atItem("chain."+chain, i), step)
			}
		}
	}
	for _, name := range sorted(l.Filter) {
		if !used[name] {
			l.warn(l.at("filter."+name), "[filter.%s] is in no chain, so it does nothing", name)
		}
	}
	if len(l.taps) > 0 && !tapped {
		l.warn(l.taps[0].place, "no chain has a filter of kind %s, so these taps do nothing", tapKind)
	}
	if len(l.errors) == 0 { // else a listener may name it, misspelt
		l.checkUse()
	}
	for _, step := range steps {
		closeFilter(step.Filter)
	}
}

// checkUse warns of chains that nothing comes to.
func (l *loader) checkUse() {
	used := map[string]bool{DeliveryChain: true}
	for _, listen := range l.Listen {
		if listen.IsRemote() {
			continue
		}
		used[listen.Chain], used[listen.Local] = true, true
	}
	for _, name := range sorted(l.Chain) {
		if !used[name] {
			l.warn(l.at("chain."+name), "no entrance uses the chain %s", name)
		}
	}
}

// checkPlace looks whether a filter has something to do in a chain.
func (l *loader) checkPlace(chain string, at place, step pipeline.Step) {
	stages := pipeline.StagesOf(step.Filter)
	leaving := slices.Contains(stages, pipeline.AtDelivery)
	if chain == DeliveryChain && !leaving {
		l.add(at, "chain.%s: %s does nothing with messages that leave", chain, step.Name)
		return
	}
	if chain != DeliveryChain && leaving && len(stages) == 1 {
		l.add(at, "chain.%s: %s works on messages that leave only; put it into the chain %s", chain, step.Name, DeliveryChain)
		return
	}
	if _, err := pipeline.NewChain(chain, []pipeline.Step{step}, pipeline.ChainOptions{}); err != nil {
		if l.written("filter." + step.Name + ".when") {
			at = l.at("filter." + step.Name + ".when")
		}
		l.add(at, "chain.%s: %v", chain, err)
	}
}

// Chains makes the chains of this configuration, with filters of their own. It
// may be called again; each result is to be closed by its owner. The error is
// an *Errors: what Load found right may have changed since.
func (c *Config) Chains(modes *pipeline.Modes, generation uint64) ([]*pipeline.Chain, error) {
	p := &problems{file: c.File}
	var chains []*pipeline.Chain
	for _, name := range sorted(c.Chain) {
		o := c.chainOptions(name)
		var steps []pipeline.Step
		for _, filter := range c.Chain[name] {
			if step, ok := c.makeStep(p, c.Filter[filter]); ok {
				steps = append(steps, step.Step)
			}
		}
		chain, err := pipeline.NewChain(name, steps, pipeline.ChainOptions{
			Deadline: o.Deadline, Mixed: o.Mixed, Modes: modes, Now: c.o.Env.Now, Generation: generation, Pool: c.choosesPool(),
		})
		if err != nil {
			p.add(c.set["chain."+name], "chain.%s: %v", name, err)
			for _, s := range steps {
				closeFilter(s.Filter)
			}
			continue
		}
		chains = append(chains, chain)
	}
	if err := p.err(); err != nil {
		for _, chain := range chains {
			chain.Close() //nolint:errcheck // the reason not to use it is told already
		}
		return nil, err
	}
	return chains, nil
}

func closeFilter(f pipeline.Filter) {
	if closer, ok := f.(io.Closer); ok {
		closer.Close() //nolint:errcheck // it has done nothing
	}
}

// made is a filter in its place, and what it was made from.
type made struct {
	pipeline.Step
	options reflect.Value    // the struct that its kind decoded; may be invalid
	set     map[string]place // of its own keys
	users   map[string]string
}

// makeStep makes a filter from its table.
func (c *Config) makeStep(p *problems, f *Filter) (step made, ok bool) {
	path := "filter." + f.Name
	at := func(key string) place {
		if at, ok := c.set[path+"."+key]; ok {
			return at
		}
		return f.own.place
	}
	before := len(p.errors) + p.more
	step.Step = pipeline.Step{Name: f.Name, Timeout: f.Timeout, Mode: f.Mode}
	if f.Timeout <= 0 {
		p.add(at("timeout"), "%s.timeout must be longer than 0", path)
	}
	if f.When != "" {
		rule, err := rules.Compile(pipeline.Facts(), f.When)
		if err != nil {
			p.add(at("when"), "%s.when: %v", path, err)
		}
		step.When = rule
	} else if _, written := c.set[path+".when"]; written {
		p.add(at("when"), "%s.when is empty: write a rule, or leave it out", path)
	}
	kind := c.filterKind(p, f, at("kind"))
	if kind == nil || c.badTaps && wantsTaps(f, kind) {
		return step, false
	}
	if !c.makeFilter(p, f, kind, &step) {
		return step, false
	}
	traits := pipeline.TraitsOf(step.Filter)
	step.OnError, step.Always = traits.OnError, traits.Always
	if f.OnError != nil {
		step.OnError = *f.OnError
	}
	if f.Always != nil {
		step.Always = *f.Always
	}
	if len(p.errors)+p.more > before {
		closeFilter(step.Filter)
		return step, false
	}
	return step, true
}

func (c *Config) filterKind(p *problems, f *Filter, at place) *pipeline.Kind {
	if f.Kind == "" {
		f.Kind = f.Name
	}
	kind := c.kind(f.Kind)
	if kind != nil {
		return kind
	}
	var known []string
	for _, k := range c.o.Kinds {
		known = append(known, k.Name)
	}
	switch suggestion := rules.Suggest(f.Kind, known); {
	case f.written:
		p.suggest(at, suggestion, "[filter.%s]: there is no kind of filter %s", f.Name, show(f.Kind))
	case suggestion != "":
		p.suggest(at, suggestion, "there is no filter %s", show(f.Name))
	default:
		p.add(at, "there is no filter %s: add [filter.%s] with its kind; %s", show(f.Name), f.Name, listing("known are ", known))
	}
	return nil
}

// keyed is an error of a filter that knows which of its keys it is about, like
// "rule[2].when".
type keyed interface{ Key() string }

// makeFilter makes a filter of its own keys.
func (c *Config) makeFilter(p *problems, f *Filter, kind *pipeline.Kind, into *made) bool {
	own, path := c.withPlugins(c.withBadAddresses(c.withSignatures(c.withTaps(f, kind), kind), kind), kind), "filter."+f.Name
	decoded := false
	into.set, into.users = map[string]place{}, map[string]string{}
	decode := func(target any) error {
		v := reflect.ValueOf(target)
		if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
			return fmt.Errorf("decode into %T: it takes a pointer to a struct", target)
		}
		decoded = true
		d := decoder{problems: &problems{file: c.File}, folder: c.folder, set: into.set, users: into.users, unknown: misplaced, more: commonKeys()}
		d.table(own, path, v.Elem())
		into.options = reflect.New(v.Elem().Type()).Elem()
		into.options.Set(v.Elem())
		return d.err()
	}
	filter, err := construct(kind, c.env(f.Name), decode)
	q := &problems{file: c.File}
	switch {
	case err != nil:
		c.explain(q, err, path, own.place, into.set)
	case filter == nil:
		q.add(own.place, "[%s]: the kind %s made no filter", path, kind.Name)
	case !decoded:
		d := decoder{problems: q, set: into.set, unknown: misplaced, more: commonKeys()}
		d.table(own, path, reflect.ValueOf(&struct{}{}).Elem())
	}
	p.take(q.errors, q.more)
	if q.errors != nil && filter != nil {
		closeFilter(filter)
	}
	into.Filter = filter
	return q.errors == nil
}

// explain turns the error of a filter into ours, each at its place.
func (c *Config) explain(p *problems, err error, path string, table place, set map[string]place) {
	var mistakes *Errors
	var about keyed
	if several, ok := err.(interface{ Unwrap() []error }); ok && !errors.As(err, &mistakes) {
		for _, err := range several.Unwrap() {
			c.explain(p, err, path, table, set)
		}
		return
	}
	switch {
	case errors.As(err, &mistakes):
		p.take(mistakes.List, mistakes.More)
	case errors.As(err, &about):
		at, ok := set[path+"."+about.Key()]
		if !ok {
			at = table
		}
		p.add(at, "%s.%s: %v", path, about.Key(), err)
	default:
		p.add(table, "[%s]: %v", path, err)
	}
}

// construct calls New: a filter that panics on its configuration must not take
// the daemon down.
func construct(kind *pipeline.Kind, env pipeline.Env, decode pipeline.Decode) (f pipeline.Filter, err error) {
	defer func() {
		if r := recover(); r != nil {
			f, err = nil, fmt.Errorf("the kind %s failed on it: %v", kind.Name, r)
		}
	}()
	if f, err = kind.New(env, decode); err != nil {
		return nil, err // and never a filter with it, which would be closed
	}
	return f, nil
}

// env is what a filter may use.
func (c *Config) env(name string) pipeline.Env {
	env := c.o.Env
	if env.Log == nil {
		env.Log = slog.New(slog.DiscardHandler)
	}
	env.Log, env.Name = env.Log.With("filter", name), name
	if env.Now == nil {
		env.Now = time.Now
	}
	if env.Host = c.Hostname; !validHost(c.Hostname) {
		env.Host = "localhost" // what is wrong with it has been said already
	}
	if c.o.State != nil {
		env.State = c.o.State(name)
	}
	return env
}

// wantsTaps reports whether a filter is a tap without rules of its own, be they
// lines (rules) or tables (rule).
func wantsTaps(f *Filter, kind *pipeline.Kind) bool {
	return kind.Name == tapKind && f.own.kids["rules"] == nil && f.own.kids["rule"] == nil
}

// withTaps gives a tap without rules those of control/taps.
func (c *Config) withTaps(f *Filter, kind *pipeline.Kind) *node {
	if len(c.taps) == 0 || !wantsTaps(f, kind) {
		return f.own
	}
	list := &node{place: c.taps[0].place}
	values := make([]any, len(c.taps))
	for i, t := range c.taps {
		values[i] = t.text
		list.elems = append(list.elems, &node{place: t.place, value: t.text})
	}
	list.value = values
	return f.own.with("rules", list)
}

// withSignatures gives an execban without signatures those of the control
// directory. A file that cannot be read is the filter's to tell.
func (c *Config) withSignatures(own *node, kind *pipeline.Kind) *node {
	if kind.Name != execbanKind || own.kids[signaturesKey] != nil || c.Files.Dir == "" {
		return own
	}
	file := filepath.Join(c.Files.Dir, signaturesKey)
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return own
	}
	return own.with(signaturesKey, &node{place: c.Files.at(signaturesKey, 0), value: file})
}

// commonKeys are the keys that every filter has.
func commonKeys() []string { return names(fieldsOf(reflect.TypeFor[Filter]())) }

// Deadline is the longest that a chain's message stage may take.
func (c *Config) Deadline(chain string) time.Duration { return c.chainOptions(chain).Deadline }
