package main

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/plugins/host"
)

// pluginsDir is where the plugins of a daemon live.
func pluginsDir(state string) string { return filepath.Join(state, "plugins") }

// preparePlugins makes the directories of plugins with a user of their own, for
// which the daemon must still be root; h is who it will be.
func preparePlugins(c *config.Config, h *credentials) error {
	owner := host.Owner{UID: os.Geteuid(), GID: os.Getegid()}
	if h != nil {
		owner = host.Owner{UID: h.uid, GID: h.gid}
	}
	for _, name := range sortedKeys(c.Plugin) {
		if p := c.Plugin[name]; p.User != "" {
			if err := host.Prepare(pluginsDir(c.State), p.Settings(), owner); err != nil {
				return c.Wrong("plugin."+name+".user", err.Error())
			}
		}
	}
	return nil
}

// openPlugins makes the daemon's host of plugins.
func (d *daemon) openPlugins() (err error) {
	d.plugins, err = host.New(host.Options{Programs: d.programs, Dir: pluginsDir(d.state.path), Log: d.log, Version: version})
	return err
}

// settlePlugins says whether the configuration that was read last is in force.
func (d *daemon) settlePlugins(inForce bool) {
	if d.plugins != nil {
		d.plugins.Settle(inForce)
	}
}

// closePlugins ends all plugins.
func (d *daemon) closePlugins() {
	if d.plugins != nil {
		d.plugins.Close() //nolint:errcheck // it has nothing to say
	}
}

// commandPlugins are the plugins of a command: started to be asked, in a
// directory of its own, and ended with it.
type commandPlugins struct {
	*host.Host
	dir     string
	runs    *programs
	ownRuns bool // runs are closed with it
}

// openCommandPlugins makes a host for a command. What plugins write goes to log.
func openCommandPlugins(runs *programs, log *slog.Logger) (*commandPlugins, error) {
	dir, err := os.MkdirTemp("", "postern")
	if err != nil {
		return nil, err
	}
	p := &commandPlugins{dir: dir, runs: runs}
	if err = os.Chmod(dir, 0o711); err == nil { // a plugin with a user of its own comes by
		p.Host, err = host.New(host.Options{Programs: runs, Dir: filepath.Join(dir, "p"), Log: log, Version: version})
	}
	if err != nil {
		os.RemoveAll(dir) //nolint:errcheck // the first error is what counts
		return nil, err
	}
	return p, nil
}

// Kind implements config.Plugins.
func (p *commandPlugins) Kind(s host.Settings) (pipeline.Kind, error) {
	switch {
	case s.User == "":
		s.User = p.runs.as // as the daemon would be
	case os.Geteuid() != 0:
		s.User = "" // as much as can be shown
	}
	s.Instances = 1
	return p.Host.Kind(s)
}

// loadAsking reads a configuration and asks its plugins what they are, until
// they are closed; there are none where it names none, or with an error.
func loadAsking(file string, log *slog.Logger) (*config.Config, *commandPlugins, error) {
	c, err := config.Load(file, loadOptions(quietEnv()))
	if err != nil || len(c.Plugin) == 0 {
		return c, nil, err
	}
	runs := newPrograms(log)
	if err := runs.instead(c); err != nil {
		runs.close()
		return nil, nil, err
	}
	plugins, err := openCommandPlugins(runs, log)
	if err != nil {
		runs.close()
		return nil, nil, err
	}
	plugins.ownRuns = true
	o := loadOptions(quietEnv())
	o.Plugins = plugins
	if c, err = config.Load(file, o); err != nil {
		plugins.close()
		return nil, nil, err
	}
	return c, plugins, nil
}

// pluginLog is the log of a command that starts plugins: what they say is the
// command's own.
func pluginLog(w io.Writer) *slog.Logger {
	plain := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: plain}))
}

func (p *commandPlugins) close() {
	if p == nil {
		return
	}
	p.Host.Close()      //nolint:errcheck // it has nothing to say
	os.RemoveAll(p.dir) //nolint:errcheck // it is a directory for temporary files
	if p.ownRuns {
		p.runs.close()
	}
}
