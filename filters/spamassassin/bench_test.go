package spamassassin

import (
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/servers/serverstest"
)

// BenchmarkAsk is a message of 4 KiB through the filter, beside the least that a
// client can do with the same stub, which answers at once; the two take turns.
func BenchmarkAsk(b *testing.B) {
	s := serverstest.Start(b, "unix", honest)
	f := newFilter(b, "", s.Address)
	text := "Subject: x\n\n" + strings.Repeat(strings.Repeat("x", 70)+"\n", 57)
	var own, raw time.Duration
	for b.Loop() {
		start := time.Now()
		must(b, f, text)
		middle := time.Now()
		if err := bare(strings.TrimPrefix(s.Address, "unix:"), text); err != nil {
			b.Fatal(err)
		}
		own, raw = own+middle.Sub(start), raw+time.Since(middle)
	}
	b.ReportMetric(float64(own)/float64(raw), "filter/raw")
}

// bare is the least that a question takes.
func bare(path, text string) error {
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "SYMBOLS SPAMC/1.5\r\nContent-length: "+strconv.Itoa(len(text))+"\r\n\r\n"+text); err != nil {
		return err
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		return err
	}
	_, err = io.ReadAll(c)
	return err
}
