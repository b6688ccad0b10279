package config

import (
	"errors"
	"reflect"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/pipeline"
)

// Key is one key of the configuration, for manuals.
type Key struct {
	// Path is the key's full name; NAME stands for a name that the administrator
	// chooses: "listen.NAME.socket". The keys of a kind of filter are under the
	// kind's name: "filter.clamav.address".
	Path string
	// Type says what it takes, in words.
	Type string
	// Default is its value if it is not written, or says in words what is used.
	Default string
	Doc     string
}

// Reference lists the keys of the configuration in the order of the manual, and
// after them those of the kinds of filters.
func Reference(kinds []pipeline.Kind) []Key {
	s := defaults()
	keys := describe(nil, "", reflect.ValueOf(s))
	for _, kind := range kinds {
		if v := optionsOf(kind); v.IsValid() {
			keys = describe(keys, "filter."+kind.Name, v)
		}
	}
	return keys
}

var errProbe = errors.New("only asked for the keys")

// optionsOf is the struct that a kind decodes, with the defaults that it has
// before; invalid if it decodes none.
func optionsOf(kind pipeline.Kind) (options reflect.Value) {
	probe := func(into any) error {
		if v := reflect.ValueOf(into); v.Kind() == reflect.Pointer && v.Elem().Kind() == reflect.Struct {
			options = reflect.New(v.Elem().Type()).Elem()
			options.Set(v.Elem())
		}
		return errProbe
	}
	c := &Config{}
	if f, err := construct(&kind, c.env(kind.Name), probe); err == nil && f != nil {
		closeFilter(f)
	}
	return options
}

// describe adds the keys of a struct.
func describe(keys []Key, path string, v reflect.Value) []Key {
	for _, f := range fieldsOf(v.Type()) {
		value, name := v.FieldByIndex(f.index), join(path, f.name)
		key := Key{Path: name, Type: f.describe(f.typ), Default: f.format(value), Doc: f.doc}
		if f.unset != "" {
			key.Default = f.unset
		}
		keys = append(keys, key)
		if inner, at, ok := f.inner(value, name); ok {
			keys = describe(keys, at, inner)
		}
	}
	return keys
}

// inner is the struct that a key holds, with its defaults: a table, each of
// several tables with names, or each of a list.
func (f *field) inner(v reflect.Value, name string) (_ reflect.Value, path string, ok bool) {
	t := v.Type()
	switch {
	case isText(t) && len(tableFields(t)) == 0:
		return v, "", false
	case t.Kind() == reflect.Struct:
		return v, name, true
	case t.Kind() == reflect.Map:
		t, name = t.Elem(), name+".NAME"
	case t.Kind() == reflect.Slice:
		t = t.Elem()
	default:
		return v, "", false
	}
	item := reflect.New(t).Elem()
	if t.Kind() == reflect.Pointer {
		fresh := reflect.New(t.Elem())
		if p, ok := fresh.Interface().(prepared); ok {
			p.prepare()
		}
		item = fresh.Elem()
	}
	return item, name, item.Kind() == reflect.Struct && (!isText(item.Type()) || len(tableFields(item.Type())) > 0)
}

// describe says what a key of type t takes, for the manual.
func (f *field) describe(t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() == reflect.Slice && !isText(t) {
		if elem := t.Elem(); elem.Kind() == reflect.Struct && !isText(elem) {
			return "a list of tables"
		}
		return "a list: " + f.describe(t.Elem())
	}
	return f.wanted(t)
}

// Setting is one key with the value that it has.
type Setting struct {
	Key string
	// Value is as it would be written in the file; "" for a key that has none.
	Value string
	// From says where the value is from: "postern.toml:12",
	// "/var/qmail/control/me:1", "the system" or "default".
	From string
}

// Effective lists what is in force, in the order of the manual.
func (c *Config) Effective() []Setting {
	return c.settings(nil, "", reflect.ValueOf(c.Settings))
}

func (c *Config) settings(all []Setting, path string, v reflect.Value) []Setting {
	partial, _ := v.Interface().(partial)
	for _, f := range fieldsOf(v.Type()) {
		if partial == nil || partial.applies(f.name) {
			all = c.setting(all, join(path, f.name), &f, v.FieldByIndex(f.index))
		}
	}
	return all
}

// partial is a table of which not every key means something.
type partial interface{ applies(key string) bool }

func (c *Config) setting(all []Setting, path string, f *field, v reflect.Value) []Setting {
	t := v.Type()
	switch {
	case t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct:
		all = c.settings(all, path, v.Elem())
		if table, ok := v.Interface().(*Filter); ok && c.options[table.Name].IsValid() {
			all = c.settings(all, path, c.options[table.Name])
		}
		return all
	case isText(t), words(t) != nil:
	case t.Kind() == reflect.Struct:
		return c.settings(all, path, v)
	case t.Kind() == reflect.Map:
		for _, key := range v.MapKeys() {
			if key.Kind() != reflect.String {
				return all
			}
		}
		for _, key := range sortedKeys(v) {
			all = c.setting(all, join(path, key), f, v.MapIndex(reflect.ValueOf(key)))
		}
		return all
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct && !isText(t.Elem()):
		for i := range v.Len() {
			all = c.settings(all, path+"["+strconv.Itoa(i)+"]", v.Index(i))
		}
		return all
	}
	return append(all, Setting{Key: clean(path), Value: clean(f.format(v)), From: c.source(path)})
}

func sortedKeys(v reflect.Value) []string {
	m := map[string]bool{}
	for _, key := range v.MapKeys() {
		m[key.String()] = true
	}
	return sorted(m)
}

// source says where a value is from.
func (c *Config) source(path string) string {
	if from := c.from[path]; from != "" {
		return from
	}
	if at, ok := c.set[path]; ok {
		return c.where(at)
	}
	return "default"
}

// Describe is the reference as text: for each key its type, default and doc.
func Describe(keys []Key) string {
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(k.Path + " (" + k.Type + ")\n\t" + k.Doc + "\n")
		if k.Default != "" {
			b.WriteString("\tdefault: " + k.Default + "\n")
		}
	}
	return b.String()
}
