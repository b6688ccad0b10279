package config

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/plugins/host"
)

// Plugins asks a plugin what it is, as host.Host does.
type Plugins interface {
	Kind(host.Settings) (pipeline.Kind, error)
}

// Plugin is a table [plugin.NAME]: a filter that is a program of its own. Its
// name is a kind of filter then.
type Plugin struct {
	// Name is the table's.
	Name string

	Command     []string          `toml:"command" doc:"the program and its arguments. A name without a slash is looked for in the usual places, a relative path is from the configuration file's folder" unset:"it must be written"`
	SHA256      string            `toml:"sha256" doc:"the SHA-256 of the program's file, in hexadecimal: the plugin is started only from a file that is this one. Of a script it covers the script if it is the program itself (with #! and the x bit), not if its interpreter is" unset:"any file will do"`
	User        string            `toml:"user" runs:"user" doc:"the user that it runs as, by name or number; the daemon must be started by root. It cannot write to the daemon's files then, and large bodies are lent to it without being copied" unset:"the daemon's own"`
	Instances   int               `toml:"instances" min:"1" doc:"how many processes of it run"`
	Concurrency int               `toml:"concurrency" min:"1" doc:"how many calls each process gets at one time; further ones wait, within the filter's timeout"`
	Timeout     time.Duration     `toml:"timeout" doc:"how long a process may take from its start until it can be asked"`
	Memory      int64             `toml:"memory" unit:"bytes" min:"1048576" doc:"the most memory of each process: what is private and writable"`
	CPU         time.Duration     `toml:"cpu" doc:"the processor time of each process; shortly before it is used up another one takes its place" unset:"no bound"`
	Env         map[string]string `toml:"env" doc:"further variables of its environment, which has PATH, HOME, TMPDIR, LANG and nothing of the daemon's"`
	Dir         string            `toml:"dir" path:"dir" doc:"the folder in which it works and keeps what it keeps; it must be there, and belong to its user" unset:"a folder below state"`
}

func (p *Plugin) prepare() {
	*p = Plugin{Instances: host.DefaultInstances, Concurrency: host.DefaultConcurrency, Timeout: host.DefaultTimeout, Memory: host.DefaultMemory}
}

// Settings are those that the host wants.
func (p *Plugin) Settings() host.Settings {
	return host.Settings{
		Name: p.Name, Command: p.Command, SHA256: strings.ToLower(p.SHA256), User: p.User, Instances: p.Instances, Concurrency: p.Concurrency,
		Timeout: p.Timeout, Memory: p.Memory, CPU: p.CPU, Env: p.Env, Dir: p.Dir,
	}
}

var (
	pluginRule   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
	sha256Rule   = regexp.MustCompile(`^[0-9A-Fa-f]{64}$`)
	variableRule = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
)

// searchPath is where programs are looked for that are named without a slash.
var searchPath = []string{"/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"}

// checkPlugins looks at the plugins, asks each what it is, and makes kinds of
// filters of them.
func (l *loader) checkPlugins() {
	l.o.Kinds = slices.Clone(l.o.Kinds)
	for _, name := range sorted(l.Plugin) {
		p, path := l.Plugin[name], "plugin."+name
		p.Name = name
		if l.kind(name) != nil {
			l.add(l.at(path), "[%s]: %s is a filter of Postern's own: give the plugin another name", path, name)
			continue
		}
		kind := unaskedKind(name)
		if l.checkPlugin(p, path) && l.o.Plugins != nil {
			asked, err := l.o.Plugins.Kind(p.Settings())
			if err == nil {
				kind = asked
			} else {
				l.add(l.at(path+".command"), "[%s]: the plugin %s cannot be used: %v", path, show(p.Command[0]), err)
			}
		}
		l.o.Kinds = append(l.o.Kinds, kind)
	}
}

// checkPlugin looks at one plugin's table, and finds its program.
func (l *loader) checkPlugin(p *Plugin, path string) bool {
	before := len(l.errors) + l.more
	at := func(key string) place { return l.at(path + "." + key) }
	bad := func(key string) bool { return l.bad[path+"."+key] }
	if !pluginRule.MatchString(p.Name) {
		l.add(l.at(path), "[%s]: the name of a plugin has small letters, digits and -, at most 64", path)
	}
	switch {
	case bad("command"):
		return false
	case len(p.Command) == 0 || p.Command[0] == "":
		l.add(at("command"), `[%s] has no command: write command = ["/path/of/the/program"]`, path)
	default:
		l.findProgram(p, at("command"), path)
	}
	if p.SHA256 != "" && !sha256Rule.MatchString(p.SHA256) {
		l.add(at("sha256"), "%s.sha256 must be 64 hexadecimal digits, as sha256sum prints them", path)
	}
	if p.Instances > host.MaxInstances {
		l.add(at("instances"), "%s.instances = %d: it must be at most %d", path, p.Instances, host.MaxInstances)
	}
	if p.Concurrency > host.MaxConcurrency {
		l.add(at("concurrency"), "%s.concurrency = %d: it must be at most %d", path, p.Concurrency, host.MaxConcurrency)
	}
	if p.Timeout <= 0 {
		l.add(at("timeout"), "%s.timeout must be longer than 0", path)
	}
	if p.CPU < 0 || p.CPU > 0 && p.CPU < time.Second {
		l.add(at("cpu"), "%s.cpu must be a second at least", path)
	}
	for _, name := range sorted(p.Env) {
		if !variableRule.MatchString(name) || strings.HasPrefix(name, "PLUGIN_") || strings.HasPrefix(name, "POSTERN_") || strings.IndexByte(p.Env[name], 0) >= 0 {
			l.add(at("env."+name), "%s.env: %s is no variable that can be set", path, show(name))
		}
	}
	if p.Dir != "" {
		if info, err := os.Stat(p.Dir); err != nil || !info.IsDir() {
			if err == nil {
				err = errors.New("it is no directory")
			}
			l.add(at("dir"), "%s.dir = %s: %v", path, show(p.Dir), cause(err))
		}
	}
	return len(l.errors)+l.more == before
}

// findProgram makes the program's path absolute.
func (l *loader) findProgram(p *Plugin, at place, path string) {
	name := p.Command[0]
	p.Command = slices.Clone(p.Command)
	if !strings.Contains(name, "/") {
		for _, dir := range searchPath {
			file := filepath.Join(dir, name)
			if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				p.Command[0] = file
				return
			}
		}
		l.add(at, "%s.command: there is no program %s in %s; write its path", path, show(name), strings.Join(searchPath, ":"))
		return
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(l.folder, name)
	}
	p.Command[0] = filepath.Clean(name)
	info, err := os.Stat(p.Command[0])
	switch {
	case err != nil:
		l.add(at, "%s.command: %s: %v", path, show(p.Command[0]), cause(err))
	case !info.Mode().IsRegular():
		l.add(at, "%s.command: %s is no file", path, show(p.Command[0]))
	case info.Mode()&0o111 == 0:
		l.add(at, "%s.command: %s cannot be executed: chmod +x it, or write its interpreter in front of it", path, show(p.Command[0]))
	}
}

// checkPluginsUsed warns of plugins that do nothing.
func (l *loader) checkPluginsUsed() {
	if len(l.errors) > 0 { // a filter may name it, misspelt
		return
	}
	used := map[string]bool{}
	for _, f := range l.Filter {
		used[f.Kind] = true
	}
	for _, name := range sorted(l.Plugin) {
		if !used[name] {
			l.warn(l.at("plugin."+name), "[plugin.%s] is the kind of no filter, so it does nothing; put %s into a chain", name, name)
		}
	}
}

// unaskedKind is a plugin that has not been asked what it is, where a
// configuration is only looked at: it takes all options, and judges nothing.
func unaskedKind(name string) pipeline.Kind {
	return pipeline.Kind{Name: name, New: func(_ pipeline.Env, decode pipeline.Decode) (pipeline.Filter, error) {
		return unasked{}, decode(&anyOptions{})
	}}
}

// anyOptions is a table whose keys are not known.
type anyOptions struct{}

func (*anyOptions) keep(*node) {}

type unasked struct{}

var errUnasked = errors.New("this plugin has not been started")

func (unasked) Open(context.Context, *pipeline.Session) (pipeline.Instance, error) {
	return nil, errUnasked
}

func (unasked) Traits() pipeline.Traits {
	all := make([]pipeline.Stage, pipeline.Stages)
	for i := range all {
		all[i] = pipeline.Stage(i)
	}
	return pipeline.Traits{Stages: all}
}
