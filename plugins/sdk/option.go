package sdk

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern-mta/postern/plugins/wire"
)

// Size is an option of a number of bytes, which the administrator may write as
// "10MB"; KB, MB and GB are 1024, 1024² and 1024³.
type Size int64

// Wrong says what is wrong with an option, by its key, so that the administrator
// hears of it with the line of the configuration where it stands.
func Wrong(option, format string, args ...any) error {
	return &optionError{option, fmt.Errorf(format, args...)}
}

type optionError struct {
	option string
	err    error
}

func (e *optionError) Error() string { return e.option + ": " + e.err.Error() }
func (e *optionError) Unwrap() error { return e.err }

// option is one key, as the tags of a struct's field declare it; see the package's
// document.
type option struct {
	name, doc string
	index     int
	typ       reflect.Type
	wire      wire.OptionType
	unset     json.RawMessage
	required  bool
}

type schema []option

const (
	maxOptions     = 64
	maxOptionsJSON = 1 << 20
)

// taken are the keys that every filter has.
var taken = []string{"kind", "when", "timeout", "on_error", "always", "mode"}

// schemaOf reads the tags of the struct that p points to.
func schemaOf(p any) (schema, error) {
	t := reflect.TypeOf(p).Elem()
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("sdk.Plugin: the options are a %s; they must be a struct", t)
	}
	var all schema
	for i := range t.NumField() {
		f := t.Field(i)
		o := option{name: f.Tag.Get("key"), doc: f.Tag.Get("doc"), index: i, typ: f.Type, required: f.Tag.Get("required") == "true"}
		if o.name == "" {
			continue
		}
		wrong := func(what string) error { return fmt.Errorf("sdk.Plugin: the option %s.%s: %s", t, f.Name, what) }
		var known bool
		switch o.wire, known = typeOnWire(f.Type); {
		case !f.IsExported():
			return nil, wrong("its field must begin with a capital letter")
		case !known:
			return nil, wrong("no option can have the type " + f.Type.String())
		case len(o.name) > maxName || o.name[0] < 'a' || o.name[0] > 'z' || strings.Trim(o.name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "":
			return nil, wrong("a key has small letters, digits and _, a letter first")
		case slices.Contains(taken, o.name):
			return nil, wrong("every filter has an option " + o.name + ": take another key")
		case slices.ContainsFunc(all, func(other option) bool { return other.name == o.name }):
			return nil, wrong("there are two options " + o.name)
		}
		if text, ok := f.Tag.Lookup("default"); ok {
			var err error
			if o.required {
				return nil, wrong("what is required has no default")
			}
			if o.unset, err = o.parse(text); err != nil {
				return nil, wrong("its default: " + err.Error())
			}
		}
		all = append(all, o)
	}
	if len(all) > maxOptions {
		return nil, fmt.Errorf("sdk.Plugin: %d options; at most %d", len(all), maxOptions)
	}
	return all, nil
}

func typeOnWire(t reflect.Type) (wire.OptionType, bool) {
	switch {
	case isText(t):
		return wire.OptionType_OPTION_TYPE_STRING, true
	case t == reflect.TypeFor[time.Duration]():
		return wire.OptionType_OPTION_TYPE_DURATION, true
	case t == reflect.TypeFor[Size]():
		return wire.OptionType_OPTION_TYPE_SIZE, true
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.String:
		return wire.OptionType_OPTION_TYPE_STRINGS, true
	case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String && t.Elem().Kind() == reflect.String:
		return wire.OptionType_OPTION_TYPE_TABLE, true
	case t.Kind() == reflect.String:
		return wire.OptionType_OPTION_TYPE_STRING, true
	case t.Kind() == reflect.Bool:
		return wire.OptionType_OPTION_TYPE_BOOL, true
	case t.Kind() == reflect.Float32, t.Kind() == reflect.Float64:
		return wire.OptionType_OPTION_TYPE_FLOAT, true
	case reflect.Zero(t).CanInt(), reflect.Zero(t).CanUint():
		return wire.OptionType_OPTION_TYPE_INT, true
	}
	return 0, false
}

// isText reports whether a type reads itself from a text.
func isText(t reflect.Type) bool {
	unmarshaler := reflect.TypeFor[encoding.TextUnmarshaler]()
	return t.Kind() != reflect.Interface && (t.Implements(unmarshaler) || reflect.PointerTo(t).Implements(unmarshaler))
}

// parse is a default as JSON.
func (o option) parse(text string) (json.RawMessage, error) {
	var v any = text
	switch o.wire {
	case wire.OptionType_OPTION_TYPE_DURATION:
		d, err := time.ParseDuration(text)
		if err != nil {
			return nil, err
		}
		v = int64(d)
	case wire.OptionType_OPTION_TYPE_SIZE:
		n, err := ParseSize(text)
		if err != nil {
			return nil, err
		}
		v = n
	case wire.OptionType_OPTION_TYPE_STRINGS:
		list := []string{}
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list = append(list, item)
			}
		}
		v = list
	case wire.OptionType_OPTION_TYPE_STRING:
	default:
		v = json.RawMessage(text)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("it must be %s", o.word())
	}
	return b, o.set(reflect.New(o.typ).Elem(), b)
}

var sizeUnits = map[string]int64{"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}

// ParseSize reads a size as an administrator writes it, "10MB".
func ParseSize(text string) (Size, error) {
	digits := strings.TrimRight(text, "BKMGT ")
	n, err := strconv.ParseInt(digits, 10, 64)
	unit, ok := sizeUnits[strings.TrimSpace(text[len(digits):])]
	if err != nil || !ok || n < 0 || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is no size, like 10MB", text)
	}
	return Size(n * unit), nil
}

// word is the option's type for people.
func (o option) word() string {
	return [...]string{"a text", "true or false", "a whole number", "a number", "a length of time", "a size", "a list of texts", "a table of texts"}[o.wire]
}

// decode reads the options of a filter into the struct that into points to. What
// is wrong is a Problem each.
func (s schema) decode(text []byte, into any) []*wire.Problem {
	var given map[string]json.RawMessage
	if len(text) > maxOptionsJSON {
		return []*wire.Problem{{Text: fmt.Sprintf("the options have %d bytes, more than %d", len(text), maxOptionsJSON)}}
	}
	if len(text) > 0 {
		if err := json.Unmarshal(text, &given); err != nil {
			return []*wire.Problem{{Text: "the options cannot be read: " + err.Error()}}
		}
	}
	var wrong []*wire.Problem
	target := reflect.ValueOf(into).Elem()
	for _, o := range s {
		value, found := given[o.name]
		delete(given, o.name)
		if !found || string(value) == "null" {
			if value = o.unset; o.required {
				wrong = append(wrong, &wire.Problem{Option: o.name, Text: "it is missing"})
			}
		}
		if value == nil {
			continue
		}
		if err := o.set(target.Field(o.index), value); err != nil {
			wrong = append(wrong, &wire.Problem{Option: o.name, Text: err.Error()})
		}
	}
	for name := range given {
		wrong = append(wrong, &wire.Problem{Option: name, Text: "there is no such option"})
	}
	return wrong
}

// set reads a value into a field.
func (o option) set(field reflect.Value, value json.RawMessage) error {
	if isText(o.typ) {
		return o.setText(field, value)
	}
	into := reflect.New(o.typ)
	if err := json.Unmarshal(value, into.Interface()); err != nil {
		return fmt.Errorf("it must be %s", o.word())
	}
	field.Set(into.Elem())
	return nil
}

// setText reads a type that reads itself; one that has no value stays zero.
func (o option) setText(field reflect.Value, value json.RawMessage) error {
	var text string
	if err := json.Unmarshal(value, &text); err != nil {
		return errors.New("it must be a text")
	}
	if text == "" {
		return nil
	}
	into := reflect.New(o.typ)
	if o.typ.Kind() == reflect.Pointer {
		into.Elem().Set(reflect.New(o.typ.Elem()))
		into = into.Elem()
	}
	if err := into.Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text)); err != nil {
		return err
	}
	if o.typ.Kind() == reflect.Pointer {
		field.Set(into)
	} else {
		field.Set(into.Elem())
	}
	return nil
}

// problems are what a Configure function found wrong.
func problems(err error) []*wire.Problem {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var all []*wire.Problem
		for _, one := range many.Unwrap() {
			all = append(all, problems(one)...)
		}
		return all
	}
	var o *optionError
	if errors.As(err, &o) {
		return []*wire.Problem{{Option: o.option, Text: clean(o.err.Error())}}
	}
	return []*wire.Problem{{Text: clean(err.Error())}}
}
