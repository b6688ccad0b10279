package rcptcheck

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/reply"
)

// check says what is wrong with the options.
func (o *Options) check() (wrong []error) {
	bad := func(key, format string, args ...any) {
		wrong = append(wrong, pipeline.AtKey(key, fmt.Errorf(format, args...)))
	}
	if o.Need != "" && o.Need != needAny && o.Need != needAll {
		bad("need", "%q: write any or all", reply.Clean(o.Need, 80))
	}
	if o.Action != reply.Reject.String() && o.Action != reply.Defer.String() {
		bad("action", "%q: write reject or defer", reply.Clean(o.Action, 80))
	}
	if o.Text != reply.Clean(o.Text, reply.MaxText) {
		bad("text", "it must be one line of at most %d ASCII characters", reply.MaxText)
	}
	if o.ValidFor < 0 || o.ValidFor > 7*24*time.Hour {
		bad("valid_for", "%v: write 0 to a week", o.ValidFor)
	}
	if o.InvalidFor < 0 || o.InvalidFor > 7*24*time.Hour {
		bad("invalid_for", "%v: write 0 to a week", o.InvalidFor)
	}
	if o.CacheSize < 0 || o.CacheSize > maxCache {
		bad("cache_size", "%d: write 1 to %d", o.CacheSize, maxCache)
	}
	if o.MaxFile < 0 {
		bad("max_file", "%d: write a size", o.MaxFile)
	}
	if o.Programs < 0 || o.Programs > 1000 {
		bad("programs", "%d: write 1 to 1000", o.Programs)
	}
	switch {
	case len(o.Checks) == 0:
		wrong = append(wrong, errors.New("there is no check: add a table named check with list, file, cdb, program, recipients or callout"))
	case len(o.Checks) > maxChecks:
		bad(fmt.Sprintf("check[%d]", maxChecks), "more than %d checks", maxChecks)
		return wrong
	}
	for i := range o.Checks {
		for _, e := range o.Checks[i].check() {
			wrong = append(wrong, e.Below(fmt.Sprintf("check[%d]", i)))
		}
	}
	return wrong
}

// check says what is wrong with a check; keys begin with a dot.
func (c *Check) check() (wrong []pipeline.KeyError) {
	bad := func(key, format string, args ...any) {
		wrong = append(wrong, pipeline.AtKey(key, fmt.Errorf(format, args...)))
	}
	set := 0
	for _, is := range []bool{c.List != nil, c.File != "", c.CDB != "", c.Program != "", c.Recipients != "", c.Callout} {
		if is {
			set++
		}
	}
	if set != 1 {
		bad("", "it has %d of list, file, cdb, program, recipients and callout: write one", set)
	}
	for key, path := range map[string]string{".file": c.File, ".cdb": c.CDB, ".program": c.Program, ".recipients": c.Recipients} {
		if path != "" && !filepath.IsAbs(path) {
			bad(key, "%q is no absolute path", reply.Clean(path, 200))
		}
	}
	if c.Program == "" && (len(c.Args) > 0 || c.Each) || c.Program+c.Recipients == "" && (c.Wait != 0 && !c.Callout || c.User != "") {
		bad("", "args, each, user and wait are about a program, and there is none; wait may stand with callout")
	}
	if c.Wait < 0 || c.Wait > 5*time.Minute {
		bad(".wait", "%v: write at most 5m", c.Wait)
	}
	for i, a := range c.Args {
		if strings.Contains(a, "\x00") {
			bad(fmt.Sprintf(".args[%d]", i), "it holds a NUL")
		}
	}
	if set == 1 && c.List != nil && len(c.List) == 0 {
		bad(".list", "it is empty, and would refuse everybody: write recipients, or remove the check")
	}
	if len(c.List) > maxList {
		bad(".list", "%d recipients, at most %d: write them into a file", len(c.List), maxList)
		return wrong
	}
	for i, a := range c.List {
		if !isEntry(a) {
			bad(fmt.Sprintf(".list[%d]", i), "%q is no address: write user@example.org, or @example.org", reply.Clean(a, 80))
		}
	}
	for i, d := range c.Domains {
		if d == "" || strings.ContainsAny(d, "@* \t") {
			bad(fmt.Sprintf(".domains[%d]", i), "%q is no domain: write example.org, or .example.org for all below", reply.Clean(d, 80))
		}
	}
	return wrong
}

// source is the check's, and warns of what is not there.
func (c *Check) source(log *slog.Logger, now func() time.Time, r *runner, kept *cache) source {
	var s source
	path := c.File + c.CDB + c.Program + c.Recipients
	switch {
	case c.File != "":
		s = &listFile{textFile[*list]{path: path, parse: parseList, log: log, now: now}}
	case c.Recipients != "":
		s = newControl(path, c, log, now, r)
	case c.CDB != "":
		s = &database{path: path, log: log, now: now}
	case c.Program != "":
		p := &program{path: path, args: c.Args, user: c.User, wait: orElse(c.Wait, defaultWait), runner: r}
		if !c.Each {
			p.kept = kept
		}
		s = p
	default:
		return newList(c.List)
	}
	if _, err := os.Stat(path); err != nil {
		log.Warn("rcptcheck cannot ask, and puts recipients off until it can", "check", s.name(), "error", err)
	}
	return s
}
