package config

import (
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	const day = 24 * time.Hour
	for s, want := range map[string]time.Duration{
		"30s": 30 * time.Second, "0": 0, "0s": 0, "1.5h": 90 * time.Minute, "2m30s": 150 * time.Second,
		"7d": 7 * day, "1w": 7 * day, "1w2d3h": 9*day + 3*time.Hour, "1d12h": 36 * time.Hour, "500ms": 500 * time.Millisecond,
		"15250w": 15250 * 7 * day,
	} {
		if got, err := ParseDuration(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "30", "s", "d", "-1s", "-1d", "1d2w", "1.5d", "1 d", "1h2d", "soon", "1dd", "99999999w", "15250w9999999h", "106751d24h", "4294967296d",
		"9223372036854775807s", "1d-1s",
	} {
		if got, err := ParseDuration(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "4096": 4096, "4096B": 4096, "1K": 1024, "1 KB": 1024, "1kib": 1024, "50 MB": 50 << 20, "1.5GiB": 3 << 29, "2T": 2 << 40,
		"9223372036854775807": 1<<63 - 1, " 7 ": 7,
	} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "MB", "-1", "1.5", "1e3", "50 MX", "1 K B", "9223372036854775808", "8388608TB", "1..5 MB", ".", "0x10", "+1", "1_000"} {
		if got, err := ParseSize(s); err == nil {
			t.Errorf("%q: %d", s, got)
		}
	}
	for n, want := range map[int64]string{0: "0", 1: "1", 1023: "1023", 1024: "1 KB", 1536: "1536", 50 << 20: "50 MB", 1 << 30: "1 GB", 2048 << 40: "2048 TB"} {
		got := formatSize(n)
		if got != want {
			t.Errorf("formatSize(%d) = %q, want %q", n, got, want)
		}
		if back, err := ParseSize(got); err != nil || back != n {
			t.Errorf("%q is %d, %v", got, back, err)
		}
	}
}
