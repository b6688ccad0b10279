package qfilter

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/message"
)

// BenchmarkProgram is a message through the filter, with a program that reads all
// of it and lets it pass, and with one that writes it anew with a field on top:
// beside the same program, started by fork and exec and waited for, with the
// message in a file and nothing else; and beside qmail-qfilter with that program
// and a queue that takes everything, where qmail-qfilter is in PATH. They take
// turns, one call or sixteen at a time, and the median of each counts.
func BenchmarkProgram(b *testing.B) {
	for _, program := range []struct {
		name   string
		things []string
	}{{"reads", []string{"read=0"}}, {"adds a field", []string{"say=1,X-Seen: yes\n", "copy"}}} {
		for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
			for _, parallel := range []int{1, 16} {
				b.Run(fmt.Sprintf("%s/%dKiB/%d", strings.ReplaceAll(program.name, " ", "-"), size>>10, parallel), func(b *testing.B) {
					benchmark(b, doing(b, program.things...), size, parallel)
				})
			}
		}
	}
}

func benchmark(b *testing.B, args []string, size, parallel int) {
	env := environment(b)
	f, err := New(env, Options{Command: args})
	if err != nil {
		b.Fatal(err)
	}
	m, err := message.Read(strings.NewReader(plain+strings.Repeat(strings.Repeat("x", 71)+"\n", (size-len(plain))/72)), message.Options{Spool: env.Spool})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Body().Release()
	own := func() error {
		v, err := (instance{f}).Message(context.Background(), transaction(), m)
		if err == nil && v.Body != nil {
			err = fmt.Errorf("%+v: the body has been copied", v)
		}
		return err
	}
	raw := func() error { return bare(args, m) }
	ways := []func() error{own, raw}
	peer, err := exec.LookPath("qmail-qfilter")
	if err == nil {
		ways = append(ways, func() error { return qmailQfilter(peer, args, m) })
	}
	took := make([][]time.Duration, len(ways))
	for b.Loop() {
		for i, way := range ways {
			start := time.Now()
			if err := atOnce(parallel, way); err != nil {
				b.Fatal(err)
			}
			took[i] = append(took[i], time.Since(start))
		}
	}
	usual := make([]float64, len(ways)) // the median, since a busy host stops one of many for long
	for i := range took {
		slices.Sort(took[i])
		usual[i] = took[i][len(took[i])/2].Seconds()
	}
	b.ReportMetric(float64(parallel)/usual[0], "calls/s")
	b.ReportMetric(float64(parallel)/usual[1], "bare-calls/s")
	b.ReportMetric(usual[0]/usual[1], "x-bare")
	if len(usual) > 2 {
		b.ReportMetric(float64(parallel)/usual[2], "qmail-qfilter-calls/s")
		b.ReportMetric(usual[0]/usual[2], "x-qmail-qfilter")
	}
}

func atOnce(parallel int, way func() error) error {
	errs := make(chan error, parallel)
	var all sync.WaitGroup
	for range parallel {
		all.Go(func() {
			if err := way(); err != nil {
				errs <- err
			}
		})
	}
	all.Wait()
	close(errs)
	return <-errs
}

// bare is the least that it takes to have a program look at a message.
func bare(args []string, m message.Message) error {
	in, err := m.Descriptor(nil)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer out.Close()
	p, err := os.StartProcess(args[0], args, &os.ProcAttr{Files: []*os.File{in, out, out}})
	if err != nil {
		return err
	}
	state, err := p.Wait()
	if err == nil && !state.Success() {
		err = fmt.Errorf("%v", state)
	}
	return err
}

// qmailQfilter is qmail-qfilter with the program.
func qmailQfilter(peer string, args []string, m message.Message) error {
	in, err := m.Descriptor(nil)
	if err != nil {
		return err
	}
	defer in.Close()
	raw, err := envelope.Append(nil, envelope.To("a@example.net", "r@example.org"))
	if err != nil {
		return err
	}
	e, err := message.MemoryFile("envelope", raw)
	if err != nil {
		return err
	}
	defer e.Close()
	p, err := os.StartProcess(peer, append([]string{peer}, args...), &os.ProcAttr{
		Files: []*os.File{in, e, os.Stderr}, Env: []string{"QQF_QMAILQUEUE=/bin/true", "PATH=" + defaultPath},
	})
	if err != nil {
		return err
	}
	state, err := p.Wait()
	if err == nil && !state.Success() {
		err = fmt.Errorf("%s: %v", peer, state)
	}
	return err
}
