package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/ingress/handoff"
	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/message"
)

// ParseDuration reads a length of time: what time.ParseDuration reads, and
// weeks and days before it ("7d", "1d12h"). It is never negative.
func ParseDuration(s string) (time.Duration, error) {
	const want = `write a number and a unit (w, d, h, m, s, ms), like "30s" or "1d12h"`
	rest, total := s, time.Duration(0)
	for _, unit := range []struct {
		letter string
		length time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		number, after, found := strings.Cut(rest, unit.letter)
		if !found {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return 0, errors.New(want)
		}
		if n > uint64(math.MaxInt64/unit.length) {
			return 0, errors.New("too long")
		}
		length := time.Duration(n) * unit.length
		if total += length; total < 0 {
			return 0, errors.New("too long")
		}
		rest = after
	}
	if rest == "" && s != "" {
		return total, nil
	}
	d, err := time.ParseDuration(rest)
	switch {
	case err != nil:
		return 0, errors.New(want)
	case d < 0:
		return 0, errors.New("it must not be negative")
	case total+d < 0:
		return 0, errors.New("too long")
	}
	return total + d, nil
}

var sizeUnits = []struct {
	name  string
	bytes float64
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"KB", 1 << 10},
	{"MB", 1 << 20},
	{"GB", 1 << 30},
	{"TB", 1 << 40},
	{"K", 1 << 10},
	{"M", 1 << 20},
	{"G", 1 << 30},
	{"T", 1 << 40},
	{"B", 1},
}

// ParseSize reads a number of bytes: "50 MB", "1.5GiB", "4096". As in rules, KB,
// MB and GB are 1024, 1024² and 1024³; the case of letters does not count.
func ParseSize(s string) (int64, error) {
	number, factor := strings.TrimSpace(s), 1.0
	for _, u := range sizeUnits {
		if cut := len(number) - len(u.name); cut > 0 && strings.EqualFold(number[cut:], u.name) {
			number, factor = strings.TrimRight(number[:cut], " "), u.bytes
			break
		}
	}
	if number == "" || strings.Trim(number, "0123456789.") != "" {
		return 0, errors.New(`write a number of bytes, or one with a unit, like "50 MB"`)
	}
	if factor == 1 {
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return 0, errors.New("it is not a whole number of bytes")
		}
		return n, nil
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, errors.New(`write a number of bytes, or one with a unit, like "50 MB"`)
	}
	if f *= factor; f >= math.MaxInt64 {
		return 0, errors.New("it is too large")
	}
	return int64(f), nil
}

// formatSize is the inverse of ParseSize.
func formatSize(n int64) string {
	for i := len(sizeUnits) - 2; i >= 0; i-- { // the largest unit that leaves no rest
		u := sizeUnits[i]
		if len(u.name) == 2 && n != 0 && n%int64(u.bytes) == 0 && (n/int64(u.bytes) < 1024 || u.name == "TB") {
			return strconv.FormatInt(n/int64(u.bytes), 10) + " " + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// words are the types whose values are words in the configuration.
func words(t reflect.Type) []string {
	switch t {
	case reflect.TypeFor[wire.Dialect]():
		return wordsOf[wire.Dialect](func(d wire.Dialect) string { return d.String() }, wire.DialectNone)
	case reflect.TypeFor[message.Lines]():
		return wordsOf[message.Lines](message.Lines.String, message.Keep)
	case reflect.TypeFor[pipeline.Mode]():
		return wordsOf[pipeline.Mode](pipeline.Mode.String, pipeline.Off)
	case reflect.TypeFor[pipeline.Mixed]():
		return wordsOf[pipeline.Mixed](pipeline.Mixed.String, pipeline.MixedReject)
	case reflect.TypeFor[pipeline.OnError]():
		return wordsOf[pipeline.OnError](pipeline.OnError.String, pipeline.ErrorContinues)
	case reflect.TypeFor[handoff.NextMode]():
		return []string{handoff.NextAuto: "auto", handoff.NextExec: "exec", handoff.NextWait: "wait"}
	}
	return nil
}

func wordsOf[T ~uint8](name func(T) string, last T) []string {
	var all []string
	for v := T(0); v <= last; v++ {
		all = append(all, name(v))
	}
	return all
}

// logLevels are the words of log.level.
var logLevels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// typeName says what a value of the file is, for people.
func typeName(v any) string {
	switch v.(type) {
	case string:
		return "a text"
	case int64:
		return "a number"
	case float64:
		return "a fraction"
	case bool:
		return "true or false"
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

// wanted says what a key takes, for people.
func (f *field) wanted(t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if all := f.choices(t); all != nil {
		return "one of " + strings.Join(all, ", ")
	}
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return `a length of time in quotes, like "30s"`
	case isText(t):
		if w, ok := reflect.Zero(t).Interface().(interface{ wants() string }); ok {
			return w.wants()
		}
		return "a text in quotes"
	case f.unit == "bytes":
		return `a size, like "50 MB"`
	}
	switch t.Kind() {
	case reflect.String:
		if f.path != "" {
			return "a path in quotes"
		}
		return "a text in quotes"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a table"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Interface:
		return "a text or a list"
	}
	return "a whole number"
}

// choices are the words that a key of type t may be, nil if it is free.
func (f *field) choices(t reflect.Type) []string {
	if all := words(t); all != nil {
		return all
	}
	if f.oneof != "" && t.Kind() == reflect.String {
		return strings.Split(f.oneof, "|")
	}
	return nil
}

// format is a value as it would be written in the file, "" for the zero value
// of a type that has no useful one.
func (f *field) format(v reflect.Value) string {
	if v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			return ""
		}
		v = v.Elem()
	}
	t := v.Type()
	if all := words(t); all != nil {
		return strconv.Quote(all[v.Uint()])
	}
	if s, ok := v.Interface().(fmt.Stringer); ok && t != reflect.TypeFor[time.Duration]() {
		if v.IsZero() {
			return ""
		}
		return s.String()
	}
	switch {
	case t == reflect.TypeFor[time.Duration]():
		if v.Int() == 0 {
			return ""
		}
		return strconv.Quote(formatDuration(time.Duration(v.Int())))
	case f.unit == "bytes" && v.CanInt():
		if s := formatSize(v.Int()); strings.Contains(s, " ") {
			return strconv.Quote(s)
		}
	case v.Kind() == reflect.String:
		if v.Len() == 0 {
			return ""
		}
		return strconv.Quote(v.String())
	case v.Kind() == reflect.Slice:
		if v.IsNil() {
			return ""
		}
		items := make([]string, v.Len())
		for i := range items {
			items[i] = f.format(v.Index(i))
		}
		return "[" + strings.Join(items, ", ") + "]"
	case v.Kind() == reflect.Map, v.Kind() == reflect.Struct:
		return ""
	}
	return fmt.Sprint(v.Interface())
}

// formatDuration is time.Duration's text without parts that are zero.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}
