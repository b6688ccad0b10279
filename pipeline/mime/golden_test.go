package mime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestGolden holds the trees of whole messages against those that are kept. With
// POSTERN_GOLDEN=write it writes them instead.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.eml")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d messages, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := dump(t, read(t, string(text)))
			kept := strings.TrimSuffix(file, ".eml") + ".tree"
			if os.Getenv("POSTERN_GOLDEN") == "write" {
				if err := os.WriteFile(kept, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(kept)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s has another tree now; if it should, run the test with POSTERN_GOLDEN=write and read what changes\n%s", file, got)
			}
		})
	}
}
