package main

import (
	"context"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/postern-mta/postern/cmd/postern/admin"
)

// cmdWaitSite waits until what is explained of a domain has a line like the
// pattern.
func cmdWaitSite(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: waitsite DOMAIN PATTERN")
	}
	pattern := regexp.MustCompile("(?m)" + args[1])
	client := admin.NewClient(filepath.Join(ts.Getenv("RUN"), "admin.sock"))
	var text strings.Builder
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		e, err := client.SiteExplain(context.Background(), args[0])
		ts.Check(err)
		text.Reset()
		ts.Check(printSiteExplanation(&text, &e, time.Now()))
		if pattern.MatchString(text.String()) {
			return
		}
	}
	ts.Fatalf("no line like %s in\n%s", args[1], text.String())
}
