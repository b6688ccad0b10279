package rspamd

import (
	"strconv"
	"testing"

	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/servers/serverstest"
)

// BenchmarkAsk is a message through the filter, beside the least that a client can
// do.
func BenchmarkAsk(b *testing.B) {
	s := serverstest.Start(b, "unix", honest)
	f := newFilter(b, "", s.Address)
	serverstest.Bench(b, s, func(text string) { filtertest.Must(b, f, text) }, func(text string) string {
		return "POST /checkv2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: " + strconv.Itoa(len(text)) + "\r\n\r\n" + text
	})
}
