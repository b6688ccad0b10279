package qfilter

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/program"
	"github.com/postern-mta/postern/pipeline/reply"
)

// The descriptors of a program, as qmail-qfilter has them, and that of a text
// for the peer, as netqmail's successors have it.
const (
	fdMessage     = 0
	fdNewMessage  = 1
	fdSaid        = 2
	fdEnvelope    = 3
	fdNewEnvelope = 4
	fdQueue       = 5
	fdText        = 6
)

const (
	// maxSaid is how much of what a program says on descriptor 2 is logged, in bytes.
	maxSaid = 2000
	// maxQueue is the longest path of a qmail-queue, in bytes, with its NUL.
	maxQueue = 4096
	// maxRaw is the largest envelope that is read, in bytes.
	maxRaw = 64 << 20
)

// run is the programs at work on one message.
type run struct {
	filter  *Filter
	tx      *pipeline.Transaction
	message message.Message // as it came
	input   *tempFile       // what the next program reads
	queue   *tempFile       // of descriptor 5, for all programs
	changed *output         // the last new message; nil: there is none
	env     envelope.Envelope
	raw     []byte // the envelope as the next program reads it
	moved   bool   // it is another one than came
	variables
	notes []string // for log and trace
}

// output is what a program wrote, and its name.
type output struct {
	*tempFile
	size int64
	by   string
}

// begin prepares a message for the first program.
func (f *Filter) begin(tx *pipeline.Transaction, m message.Message) (*run, error) {
	r := &run{filter: f, tx: tx, message: m, env: active(tx), variables: f.variables(tx.Session)}
	if err := r.prepare(); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *run) prepare() (err error) {
	if r.raw, err = envelope.Append(nil, r.env); err != nil {
		return err
	}
	in, err := r.message.Descriptor(r.filter.env.Spool)
	if err != nil {
		return fmt.Errorf("a file of the message: %w", err)
	}
	r.input = &tempFile{in}
	if err = r.input.share(0o444); err != nil {
		return err
	}
	r.queue, err = inMemory()
	return err
}

// active is the envelope with the recipients that the filter is asked about.
func active(tx *pipeline.Transaction) envelope.Envelope {
	e := tx.Envelope
	e.Recipients = make([]envelope.Recipient, len(tx.Active))
	for i, n := range tx.Active {
		e.Recipients[i] = tx.Envelope.Recipients[n]
	}
	return e
}

func (r *run) close() {
	r.input.close()
	r.queue.close()
	if r.changed != nil {
		r.changed.close()
	}
}

// all runs the programs, one after the other, until one decides.
func (r *run) all(ctx context.Context) (decision, error) {
	var last decision
	for _, c := range r.filter.commands {
		d, err := r.one(ctx, c)
		if err != nil {
			return d, fmt.Errorf("%s: %w", c.name(), err)
		}
		if d.action != pipeline.Continue {
			last = d
			break
		}
	}
	if last.action != pipeline.Continue && last.action != pipeline.Accept && last.action != pipeline.Quarantine {
		return last, nil
	}
	return r.elsewhere(last)
}

// elsewhere looks at descriptor 5 when all programs have run.
func (r *run) elsewhere(last decision) (decision, error) {
	path, err := r.queue.path()
	if path == "" || err != nil {
		return last, err
	}
	d, ok := r.filter.queues[path]
	switch {
	case !ok:
		return last, fmt.Errorf("a program wants the message to go to the queue program %s: write into the table queues what that means", reply.Clean(path, 200))
	case d.fails:
		return last, fmt.Errorf("a program wants the message to go to the queue program %s", reply.Clean(path, 200))
	case d.action != pipeline.Continue && last.action != pipeline.Quarantine:
		d.why = "it is to go to the queue program " + reply.Clean(path, 200)
		return d, nil
	}
	return last, nil
}

// one runs one program to its end.
func (r *run) one(ctx context.Context, c command) (decision, error) {
	f := r.filter
	vars, note := r.list(r.env, len(r.raw), r.size())
	if note != "" {
		r.note(c, note)
	}
	path, err := c.find(f.path())
	if err != nil {
		return decision{}, err
	}
	files, err := r.files()
	if err != nil {
		return decision{}, err
	}
	defer files.close()
	limit := f.o.MaxOutput + r.size()
	p, err := f.env.Programs.Start(program.Spec{
		Path: path, Args: c.args, Env: vars, Dir: f.o.Dir, Files: files.byNumber(r), User: f.o.User,
		Limits: program.Limits{Memory: f.o.Memory, FileSize: max(f.o.MaxFile, limit), CPU: f.seconds(ctx)},
	})
	files.started()
	if err != nil {
		return decision{}, fmt.Errorf("it cannot be run: %w", err)
	}
	end, err := files.watch(ctx, p, r.queue, limit)
	text := files.text.read(reply.MaxText)
	if said := files.said.read(maxSaid); said != "" {
		f.log.Info("a program of qfilter says", "program", c.name(), "id", r.tx.ID, "text", said)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return decision{}, fmt.Errorf("it was killed: %w", context.Cause(ctx))
	case err != nil:
		return decision{}, err
	case end.Signal == unix.SIGXFSZ:
		return decision{}, fmt.Errorf("it made a file larger than %d bytes (max_file)", max(f.o.MaxFile, limit))
	case end.Exit < 0:
		return decision{}, fmt.Errorf("it died: signal: %s", end.Signal)
	}
	return r.ended(c, end.Exit, text, files, limit)
}

// ended is what an exit code means, and takes over what the program wrote.
func (r *run) ended(c command, code int, text string, files *files, limit int64) (decision, error) {
	d := r.filter.judge(code, text)
	d.why = fmt.Sprintf("%s: exit %d", c.name(), code)
	switch {
	case d.fails && text != "":
		return d, fmt.Errorf("exit %d: %s", code, reply.Clean(text, reply.MaxText))
	case d.fails:
		return d, fmt.Errorf("exit %d", code)
	}
	switch d.action {
	case pipeline.Reject, pipeline.Defer, pipeline.Discard:
		return d, nil
	}
	if err := r.takeMessage(c, files, limit); err != nil {
		return d, err
	}
	if _, err := r.queue.size(limit); err != nil {
		return d, err
	}
	return d, r.takeEnvelope(c, files, limit)
}

// takeMessage makes a new message the next program's.
func (r *run) takeMessage(c command, files *files, limit int64) error {
	size, err := files.message.size(limit)
	if size == 0 || err != nil {
		return err
	}
	if !r.filter.may[theMessage] {
		return fmt.Errorf("it wrote a message of %d bytes, and may not change it (may_change)", size)
	}
	if err := files.message.whole(r.filter.free); err != nil {
		return err
	}
	in, err := files.message.sealed()
	if err != nil {
		return fmt.Errorf("what it wrote: %w", err)
	}
	r.input.close()
	if r.changed != nil {
		r.changed.close()
	}
	r.input, r.changed = in, &output{files.message, size, c.name()}
	files.message = nil
	r.notes = append(r.notes, c.name()+" wrote the message anew")
	return nil
}

// takeEnvelope makes a new envelope the next program's.
func (r *run) takeEnvelope(c command, files *files, limit int64) error {
	size, err := files.envelope.size(limit)
	if size == 0 || err != nil {
		return err
	}
	if !r.filter.may[theEnvelope] {
		return fmt.Errorf("it wrote an envelope of %d bytes, and may not change it (may_change)", size)
	}
	raw, err := files.envelope.content(size)
	if err != nil {
		return err
	}
	e, err := parseEnvelope(raw)
	if err != nil {
		return fmt.Errorf("the envelope that it wrote cannot be used: %w", err)
	}
	r.env, r.raw, r.moved = e, raw, true
	r.notes = append(r.notes, c.name()+" wrote the envelope anew")
	return nil
}

// size is that of the message which the next program reads.
func (r *run) size() int64 {
	if r.changed != nil {
		return r.changed.size
	}
	return r.message.Size()
}

func (r *run) note(c command, note string) {
	r.filter.log.Warn("a program of qfilter is told less", "program", c.name(), "id", r.tx.ID, "note", note)
	if len(r.notes) == 0 || r.notes[len(r.notes)-1] != note {
		r.notes = append(r.notes, note)
	}
}

// reason is what log and trace say.
func (r *run) reason(d decision) string {
	if d.action != pipeline.Continue {
		return strings.Join(append([]string{d.why}, r.notes...), "; ")
	}
	return strings.Join(r.notes, "; ")
}

// seconds is how much processor time a program may use: it needs no more than
// there is left of the call.
func (f *Filter) seconds(ctx context.Context) int64 {
	if f.o.CPU > 0 {
		return int64((f.o.CPU + time.Second - 1) / time.Second)
	}
	if until, ok := ctx.Deadline(); ok {
		return int64(max(time.Until(until), 0)/time.Second) + 1
	}
	return 0
}

// files are what one program has besides the message.
type files struct {
	message, envelope *tempFile // new ones
	old               *tempFile // the envelope
	said, text        *line
}

func (r *run) files() (*files, error) {
	f := &files{}
	if err := f.open(r); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *files) open(r *run) (err error) {
	if f.message, err = r.filter.temporary(r.size()); err != nil {
		return err
	}
	if f.envelope, err = inMemory(); err != nil {
		return err
	}
	old, err := message.MemoryFile("envelope", r.raw)
	if err != nil {
		return err
	}
	f.old = &tempFile{old}
	if f.said, err = newLine(maxSaid); err != nil {
		return err
	}
	if f.text, err = newLine(reply.MaxText); err != nil {
		return err
	}
	if err = r.input.rewind(); err != nil {
		return err
	}
	return r.queue.rewind()
}

// watchEvery is how often the files of a program that runs are looked at.
const watchEvery = 10 * time.Millisecond

// watch waits for a program's end, and kills one that writes more than limit bytes
// to one of its files. A limit of the kernel's would be one on its own files, too:
// on logs that have grown for years.
func (f *files) watch(ctx context.Context, p *program.Process, queue *tempFile, limit int64) (program.Ending, error) {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		select {
		case <-p.Done():
			return p.Wait(ctx)
		case <-ctx.Done():
			return p.Wait(ctx)
		case <-t.C:
		}
		for _, file := range []*tempFile{f.message, f.envelope, queue} {
			if _, err := file.size(limit); err != nil {
				dead, cancel := context.WithCancel(ctx)
				cancel()
				end, _ := p.Wait(dead) // it is killed, and that is no news
				return end, err
			}
		}
	}
}

func (f *files) byNumber(r *run) map[int]*os.File {
	return map[int]*os.File{
		fdMessage: r.input.File, fdNewMessage: f.message.File, fdSaid: f.said.theirs, fdEnvelope: f.old.File,
		fdNewEnvelope: f.envelope.File, fdQueue: r.queue.File, fdText: f.text.theirs,
	}
}

// started gives up what only the program needs.
func (f *files) started() {
	f.old.close()
	f.said.started()
	f.text.started()
}

func (f *files) close() {
	for _, t := range []*tempFile{f.message, f.envelope, f.old} {
		t.close()
	}
	f.said.close()
	f.text.close()
}
