package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/plugins/wire"
)

// option is one key of the filters of a plugin.
type option struct {
	name, doc string
	kind      optionKind
	required  bool
	initial   reflect.Value // invalid: the zero value
}

// optionKind is a type of options, as the configuration decodes it.
type optionKind struct {
	typ  reflect.Type
	unit string // the tag of that name
}

var optionKinds = map[wire.OptionType]optionKind{
	wire.OptionType_OPTION_TYPE_STRING:   {typ: reflect.TypeFor[string]()},
	wire.OptionType_OPTION_TYPE_BOOL:     {typ: reflect.TypeFor[bool]()},
	wire.OptionType_OPTION_TYPE_INT:      {typ: reflect.TypeFor[int64]()},
	wire.OptionType_OPTION_TYPE_FLOAT:    {typ: reflect.TypeFor[float64]()},
	wire.OptionType_OPTION_TYPE_DURATION: {typ: reflect.TypeFor[time.Duration]()},
	wire.OptionType_OPTION_TYPE_SIZE:     {typ: reflect.TypeFor[int64](), unit: "bytes"},
	wire.OptionType_OPTION_TYPE_STRINGS:  {typ: reflect.TypeFor[[]string]()},
	wire.OptionType_OPTION_TYPE_TABLE:    {typ: reflect.TypeFor[map[string]string]()},
}

// reserved are the keys that every filter has.
var reserved = []string{"kind", "when", "timeout", "on_error", "always", "mode"}

var optionName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

func readOption(w *wire.Option) (o option, err error) {
	o = option{name: w.GetName(), required: w.GetRequired()}
	if !optionName.MatchString(o.name) {
		return o, fmt.Errorf("the option %.80q: small letters, digits and _, beginning with a letter, at most %d", o.name, maxName)
	}
	if slices.Contains(reserved, o.name) {
		return o, fmt.Errorf("the option %s, which every filter has", o.name)
	}
	kind, ok := optionKinds[w.GetType()]
	if !ok {
		return o, fmt.Errorf("the option %s of type %d, which there is not", o.name, w.GetType())
	}
	o.kind = kind
	if o.doc, err = readText("description of the option "+o.name, oneLine(w.GetDoc()), maxText); err != nil {
		return o, err
	}
	if o.doc == "" {
		o.doc = "an option of the plugin"
	}
	if w.GetDefaultJson() == "" {
		return o, nil
	}
	if o.required {
		return o, fmt.Errorf("the option %s, which is required and has a default", o.name)
	}
	if len(w.GetDefaultJson()) > maxText {
		return o, fmt.Errorf("the default of the option %s has %d bytes, at most %d", o.name, len(w.GetDefaultJson()), maxText)
	}
	v := reflect.New(kind.typ)
	if err := readDefault(w.GetDefaultJson(), v); err != nil {
		return o, fmt.Errorf("the default of the option %s, %.80q, is not of its type", o.name, w.GetDefaultJson())
	}
	o.initial = v.Elem()
	return o, nil
}

// readDefault reads a default; that of a duration may be a text, as in the
// configuration, beside nanoseconds.
func readDefault(text string, into reflect.Value) error {
	if d, ok := into.Interface().(*time.Duration); ok {
		var s string
		if json.Unmarshal([]byte(text), &s) == nil {
			var err error
			*d, err = time.ParseDuration(s)
			return err
		}
	}
	return json.Unmarshal([]byte(text), into.Interface())
}

// table makes the struct that the options are decoded into, as the
// configuration's decoder wants it: fields with tags, and their defaults. An
// option that is required is a pointer, so that it shows whether it is there.
func (d *declaration) table() reflect.Value {
	fields := make([]reflect.StructField, len(d.options))
	for i, o := range d.options {
		tag := `toml:` + strconv.Quote(o.name) + ` doc:` + strconv.Quote(o.doc)
		if o.kind.unit != "" {
			tag += ` unit:` + strconv.Quote(o.kind.unit) + ` min:"0"`
		}
		if o.required {
			tag += ` unset:"it must be written"`
		}
		fields[i] = reflect.StructField{Name: "Option" + strconv.Itoa(i), Type: o.kind.typ, Tag: reflect.StructTag(tag)}
		if o.required {
			fields[i].Type = reflect.PointerTo(o.kind.typ)
		}
	}
	table := reflect.New(reflect.StructOf(fields))
	for i, o := range d.options {
		if o.initial.IsValid() {
			table.Elem().Field(i).Set(o.initial)
		}
	}
	return table
}

var errMissing = errors.New("it must be written: the plugin has no default for it")

// encode is the options as JSON, all that are declared.
func (d *declaration) encode(table reflect.Value) ([]byte, error) {
	values := make(map[string]any, len(d.options))
	var errs []error
	for i, o := range d.options {
		v := table.Elem().Field(i)
		switch {
		case o.required && v.IsNil():
			errs = append(errs, pipeline.AtKey(o.name, errMissing))
			continue
		case o.required:
			v = v.Elem()
		}
		value := v.Interface()
		if (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.IsNil() {
			value = reflect.MakeMap(reflect.TypeFor[map[string]string]()).Interface()
			if v.Kind() == reflect.Slice {
				value = []string{}
			}
		}
		if _, err := json.Marshal(value); err != nil {
			errs = append(errs, pipeline.AtKey(o.name, errors.New("a plugin cannot be given this value")))
			continue
		}
		values[o.name] = value
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return json.Marshal(values)
}

// problems are what a plugin found wrong with its options, as errors that the
// configuration can place.
func (d *declaration) problems(all []*wire.Problem) error {
	var errs []error
	for i, p := range all {
		if i >= maxOptions {
			errs = append(errs, fmt.Errorf("and %d more", len(all)-i))
			break
		}
		err := errors.New(cleanText(p.GetText(), "the plugin says that it is wrong"))
		if optionPath.MatchString(p.GetOption()) {
			err = pipeline.AtKey(p.GetOption(), err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// optionPath is the name of an option, or of a part of it.
var optionPath = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}(\[[0-9]{1,6}\]|\.[A-Za-z0-9_-]{1,64})?$`)
