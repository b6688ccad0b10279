package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/rules"
)

// The domains of morercpthosts.cdb are ours, those below them only if it says so.
func TestMoreHosts(t *testing.T) {
	control := t.TempDir()
	var cdb bytes.Buffer
	if err := rules.WriteCDB(&cdb, []rules.CDBRecord{{Key: "more.example"}, {Key: ".below.example"}}); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"me": "mx.example.org\n", "rcpthosts": "example.org\n", "morercpthosts.cdb": cdb.String()} {
		if err := os.WriteFile(filepath.Join(control, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := config.Parse("postern.toml", []byte("listen.queue.next = \"discard\"\n"), config.Options{Control: control, HasQueue: true})
	if err != nil {
		t.Fatal(err)
	}
	l, err := openLists(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for domain, want := range map[string]bool{
		"example.org": true, "more.example": true, "MORE.example": true, "a.more.example": false, "a.below.example": true, "below.example": false, "other.example": false,
	} {
		if l.ours(domain) != want {
			t.Errorf("%s: ours is %v", domain, !want)
		}
	}
	if err := os.WriteFile(filepath.Join(control, "morercpthosts.cdb"), []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openLists(c, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a broken file was taken")
	}
}
