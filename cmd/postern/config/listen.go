package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/rules"
)

// checkListeners looks at the entrances. Without any there is one for the shim.
func (l *loader) checkListeners() {
	if kid := l.root.kids["listen"]; kid == nil || isTableValue(kid.value) && len(kid.keys) == 0 {
		queue := &Listen{}
		queue.prepare()
		l.Listen = map[string]*Listen{"queue": queue}
	}
	l.checkPrograms()
	l.checkSocket("admin.socket", l.Admin.Socket)
	sockets := map[string]string{l.Admin.Socket: "admin.socket"}
	for _, name := range sorted(l.Listen) {
		listen := l.Listen[name]
		listen.Name = name
		path := "listen." + name
		if l.written(path + ".address") {
			if other := sockets[listen.Address]; other != "" {
				l.add(l.at(path+".address"), "%s is %s, which is %s already", path+".address", show(listen.Address), other)
			}
			sockets[listen.Address] = path + ".address"
			l.checkAddress(listen, path)
			continue
		}
		for _, f := range fieldsOf(reflect.TypeFor[SMTP]()) {
			if l.written(path + "." + f.name) {
				l.add(l.at(path+"."+f.name), `%s.%s is for SMTP servers: give [%s] an address, like ":25"`, path, f.name, path)
			}
		}
		if listen.Socket == "" && name == "queue" && !l.written(path+".socket") {
			listen.Socket = DefaultQueueSocket
		}
		if listen.Socket == "" && name == "remote" && listen.IsRemote() && !l.written(path+".socket") {
			listen.Socket = DefaultRemoteSocket
		}
		if listen.Socket == "" && !l.bad[path+".socket"] {
			l.add(l.at(path+".socket"), "[%s] has neither socket nor address: write socket = %q for the qmail-queue shim, or address = \":25\" for an SMTP server", path, DefaultQueueSocket)
			continue
		}
		l.checkSocket(path+".socket", listen.Socket)
		if other := sockets[listen.Socket]; other != "" && listen.Socket != "" {
			l.add(l.at(path+".socket"), "%s is %s, which is %s already", path+".socket", show(listen.Socket), other)
		}
		sockets[listen.Socket] = path + ".socket"
		if listen.IsRemote() {
			l.checkRemote(listen, path)
		} else {
			l.checkListen(listen, path)
		}
	}
}

func (l *loader) checkSocketMode(listen *Listen, path string) {
	mode, err := strconv.ParseUint(listen.SocketMode, 8, 32)
	if (err != nil || mode > 0o777) && !l.bad[path+".socket_mode"] {
		l.add(l.at(path+".socket_mode"), `%s.socket_mode = %s: write permissions in octal, like "0666"`, path, show(listen.SocketMode))
	}
	listen.mode = uint32(mode)
}

func (l *loader) checkListen(listen *Listen, path string) {
	for _, key := range remoteKeys {
		if l.written(path + "." + key) {
			l.add(l.at(path+"."+key), `%s.%s is for qmail-remote: write program = "qmail-remote", or remove it`, path, key)
		}
	}
	l.checkSocketMode(listen, path)
	if listen.Chain == "" {
		listen.Chain = InboundChain
	}
	known := l.checkChainName(path+".chain", listen.Chain)
	if listen.Local == "" {
		listen.Local = listen.Chain
	} else {
		known = l.checkChainName(path+".local", listen.Local) && known
	}
	l.checkNext(path, listen)
	if !l.written(path + ".lines") {
		listen.Lines = message.Keep
		if listen.Next == NextQueue || listen.Straight() != nil {
			listen.Lines = message.Repair
		}
	}
	if known {
		l.checkSlow(path, listen)
	}
}

// checkChainName reports whether the chain is there to be used.
func (l *loader) checkChainName(path, name string) bool {
	if l.bad[path] {
		return false
	}
	if name == DeliveryChain {
		l.add(l.at(path), "%s: the chain %s is for messages that leave; name another", path, DeliveryChain)
		return false
	}
	if _, ok := l.Chain[name]; !ok {
		known := sorted(l.Chain)
		suggestion := rules.Suggest(name, known)
		hint := ""
		if suggestion == "" {
			hint = "; " + listing("there are ", known)
			if len(known) == 0 {
				hint = "; there is none"
			}
		}
		l.suggest(l.at(path), suggestion, "%s: there is no chain %s%s", path, show(name), hint)
		return false
	}
	return true
}

// slack is how much longer than its chains' deadline a shim waits by default:
// for reading the message to its end and for storing it.
const slack = time.Minute

func (l *loader) checkSlow(path string, listen *Listen) {
	deadline := max(l.chainOptions(listen.Chain).Deadline, l.chainOptions(listen.Local).Deadline)
	if !l.written(path + ".slow") {
		listen.Slow = deadline + slack
		if listen.Straight() != nil {
			listen.Slow = min(deadline+deliverySlack, wire.TotalWait*time.Millisecond)
		}
	}
	if l.bad[path+".slow"] || l.bad["chain_options"] {
		return
	}
	if listen.Slow <= deadline {
		l.add(l.at(path+".slow"), "%s.slow = %s: it must be longer than the deadline of its chains, %s, or the shim gives up before they do", path, formatDuration(listen.Slow), formatDuration(deadline))
	}
	if listen.Slow > wire.TotalWait*time.Millisecond {
		l.add(l.at(path+".slow"), "%s.slow = %s: at most %s", path, formatDuration(listen.Slow), formatDuration(wire.TotalWait*time.Millisecond))
	}
}

// chainOptions are what a chain has besides its filters.
func (c *Config) chainOptions(chain string) ChainOptions {
	if o := c.ChainOptions[chain]; o != nil {
		return *o
	}
	return ChainOptions{Deadline: pipeline.DefaultDeadline}
}

// checkNext looks at where messages go: it finds the loops that can be seen
// from here.
func (l *loader) checkNext(path string, listen *Listen) {
	key := path + ".next"
	at := l.at(key)
	switch {
	case l.bad[key]:
	case listen.Next == "" && l.o.HasQueue && !l.written(key):
		listen.Next = NextQueue
	case listen.Next == "":
		l.add(at, "%s is missing: write the path of the site's own qmail-queue, like \"/var/qmail/bin/qmail-queue\"", key)
	case listen.Next == NextQueue && !l.o.HasQueue:
		l.add(at, "%s = %q: our own queue is not in this version; write the path of the site's own qmail-queue", key, NextQueue)
	case listen.Next == NextQueue:
	case listen.Next == NextDiscard:
		l.warn(at, "%s = %q: mail is answered with success and thrown away", key, NextDiscard)
	case listen.Next == NextDeliver:
		l.add(at, `%s = %q is for qmail-remote; what comes in goes to a path, %s or %s`, key, NextDeliver, NextQueue, NextDiscard)
	case listen.Next == NextQMQP:
		l.qmqpNext(listen, key)
	case isStraight(listen.Next):
		l.straightNext(listen, key)
	default:
		l.nextProgram(listen, key, NextQueue, NextDiscard)
	}
}

// nextProgram checks a next that is the path of a program; words are what it
// could be besides.
func (l *loader) nextProgram(listen *Listen, key string, words ...string) {
	at := l.at(key)
	switch {
	case !strings.Contains(listen.Next, "/"):
		l.suggest(at, rules.Suggest(listen.Next, words), "%s = %s: write a path, %s", key, show(listen.Next), strings.Join(words, " or "))
	case strings.IndexByte(listen.Next, 0) >= 0:
		l.add(at, "%s = %s: a path has no NUL byte", key, show(listen.Next))
	default:
		if !filepath.IsAbs(listen.Next) {
			listen.Next = filepath.Join(l.folder, listen.Next)
		}
		listen.Next = filepath.Clean(listen.Next)
		if err := checkProgram(listen.Next, l.o.Shims); err != nil {
			l.add(at, "%s = %s: %v", key, show(listen.Next), err)
		}
	}
}

// checkProgram says why a path cannot be the next program.
func checkProgram(path string, shims []string) error {
	if len(path) >= wire.MaxPath {
		return fmt.Errorf("the path is longer than %d bytes", wire.MaxPath-1)
	}
	info, err := os.Stat(path)
	if err != nil {
		return cause(err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("it is no program but %s", fileKind(info.Mode()))
	}
	if info.Mode().Perm()&0o111 == 0 {
		return errors.New("it is not executable: see chmod(1)")
	}
	for _, shim := range shims {
		if same, err := sameProgram(path, info, shim); err != nil {
			return err
		} else if same {
			return fmt.Errorf("that is Postern's own shim %s: mail would go round in a loop; name the program of qmail that it stands in for", shim)
		}
	}
	return nil
}

// maxShim is the longest program that is taken for a copy of a shim, in bytes.
const maxShim = 32 << 20

// sameProgram reports whether a file is a shim: the same file, or a copy of it,
// as when it was installed over the site's own qmail-queue.
func sameProgram(path string, info os.FileInfo, shim string) (bool, error) {
	other, err := os.Stat(shim)
	if err != nil {
		return false, nil // a shim that is not installed cannot be called
	}
	if os.SameFile(info, other) {
		return true, nil
	}
	if info.Size() != other.Size() || info.Size() > maxShim || !other.Mode().IsRegular() {
		return false, nil
	}
	ours, err := os.ReadFile(shim)
	if err != nil {
		return false, nil
	}
	theirs, err := os.ReadFile(path)
	if os.IsPermission(err) {
		return false, nil // qmail's programs may be executable only
	}
	if err != nil {
		return false, cause(err)
	}
	return bytes.Equal(ours, theirs), nil
}
