package schedule

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// course is when attempts are made, in seconds since birth, if each one ends at
// once and fails.
func course(b Backoff, n int) []int {
	var all []int
	at := epoch
	for k := range n {
		all = append(all, int(at.Sub(epoch)/time.Second))
		at = b.Next(epoch, at, k+1, nil)
	}
	return all
}

func TestBackoffCourse(t *testing.T) {
	for text, want := range map[string][]int{
		"qmail":                {0, 400, 1600, 3600, 6400, 10000, 14400, 19600, 25600},
		"qmail 10":             {0, 100, 400, 900, 1600},
		"exponential 1m 2 10m": {0, 60, 180, 420, 900, 1500, 2100},
		"exponential 1m 1 1m":  {0, 60, 120, 180},
		"list 5m 15m 1h":       {0, 300, 1200, 4800, 8400},
		"list 1h30m":           {0, 5400, 10800},
	} {
		b, err := ParseBackoff(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := course(b, len(want)); !slices.Equal(got, want) {
			t.Errorf("%s: attempts at %v, want %v", text, got, want)
		}
		if b.String() != text {
			t.Errorf("%q is written as %q", text, b)
		}
	}
	if got := course(Backoff{}, 3); !slices.Equal(got, []int{0, 400, 1600}) {
		t.Errorf("the zero value: attempts at %v", got)
	}
}

// As qmail's manual has it: forty attempts in a week's lifetime, the last one
// after 608,400 seconds.
func TestQmailLifetime(t *testing.T) {
	at, n := epoch, 0
	for {
		n++
		if Expired(epoch, at, DefaultLifetime) {
			break
		}
		at = Qmail(QmailRemote).Next(epoch, at, n, nil)
	}
	if age := at.Sub(epoch); n != 40 || age != 608400*time.Second {
		t.Errorf("%d attempts, the last after %v", n, age)
	}
	if Expired(epoch, epoch.Add(DefaultLifetime), DefaultLifetime) {
		t.Error("an attempt exactly at the lifetime's end is not after it")
	}
}

func TestBackoffJitterAndClock(t *testing.T) {
	one := func() float64 { return 0.999999 }
	none := func() float64 { return 0 }
	for _, b := range []Backoff{{}, Qmail(10), Exponential(time.Minute, 1.5, time.Hour), List(time.Minute, time.Hour)} {
		for _, age := range []time.Duration{-time.Hour, 0, time.Second, time.Hour, 100 * 24 * time.Hour} {
			for _, attempts := range []int{0, 1, 2, 50, 1 << 20} {
				now := epoch.Add(age)
				plain := b.Next(epoch, now, attempts, nil)
				if plain.Before(now.Add(time.Second)) || plain.After(now.Add(maxInterval)) {
					t.Errorf("%v: age %v, attempt %d: next after %v", b, age, attempts, plain.Sub(now))
				}
				least, most := b.Next(epoch, now, attempts, none), b.Next(epoch, now, attempts, one)
				if part := float64(most.Sub(plain)) / float64(plain.Sub(now)); least != plain || part < 0.099 || part > 0.1 {
					t.Errorf("%v: jitter adds from %v to %v", b, least.Sub(plain), most.Sub(plain))
				}
				if got := b.WithJitter(0).Next(epoch, now, attempts, one); got != plain {
					t.Errorf("%v: jitter 0 adds %v", b, got.Sub(plain))
				}
			}
		}
	}
}

func TestParseBackoffErrors(t *testing.T) {
	for text, says := range map[string]string{
		"":                                  `"" is no policy`,
		"Qmail":                             `"Qmail" is no policy`,
		"qmail ":                            "constant of qmail's",
		"qmail 0":                           "from 1 to 1000",
		"qmail -5":                          "from 1 to 1000",
		"qmail 1 2":                         "one number at most",
		" qmail":                            `"" is no policy`,
		"exponential":                       "three words",
		"exponential 1m 2":                  "three words",
		"exponential 1m 0.5 4h":             "no factor",
		"exponential 1m 1e1 4h":             "no factor",
		"exponential 1m NaN 4h":             "no factor",
		"exponential 1m 101 4h":             "no factor",
		"exponential 4h 2 1m":               "shorter than the first",
		"list":                              "from one to 100",
		"list 5m  15m":                      `"" is no interval`,
		"list 5":                            `"5" is no interval`,
		"list 5m3h":                         "no interval",
		"list 0s":                           "no interval",
		"list 31d":                          "no interval",
		"list 1.5h":                         "no interval",
		"list 5m jitter 10":                 "whole number",
		"list 5m jitter 101%":               "whole number",
		"list 5m jitter":                    "no interval",
		"list 99999999999999999d":           "no interval",
		"list" + strings.Repeat(" 1m", 101): "from one to 100",
		strings.Repeat("q", 2000):           "longer than 1024",
	} {
		_, err := ParseBackoff(text)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.30q: error %v, want %q in it", text, err, says)
		}
	}
}

func FuzzParseBackoff(f *testing.F) {
	for _, text := range []string{"qmail", "qmail 10 jitter 0%", "exponential 1m 2.5 4h", "list 5m 15m 1h30m 2d jitter 20%", "list 1d1h1m1s"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, err := ParseBackoff(text)
		if err != nil {
			return
		}
		again, err := ParseBackoff(b.String())
		if err != nil || again.String() != b.String() {
			t.Fatalf("%q is written as %q, which reads as %q (%v)", text, b, again, err)
		}
		at := epoch
		for k := range 5 {
			next := b.Next(epoch, at, k+1, func() float64 { return 0.5 })
			if d := next.Sub(at); d < time.Second || d > maxInterval*2 {
				t.Fatalf("%q waits for %v", text, d)
			}
			if plain := again.Next(epoch, at, k+1, func() float64 { return 0.5 }); plain.Sub(next).Abs() > time.Millisecond {
				t.Fatalf("%q and %q differ: %v and %v", text, b, next, plain)
			}
			at = next
		}
	})
}
