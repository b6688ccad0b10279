package config

import (
	"reflect"
	"strings"
)

// field is a key as a struct's tags declare it:
//
//	toml:"name"      the key; a field without it is no key
//	doc:"..."        what it is, for manuals; every key has one
//	unset:"..."      what happens if it is not written, where the field's value before decoding does not say it
//	oneof:"a|b"      the words that a string may be
//	unit:"bytes"     an integer that may be written as a size, "50 MB"
//	path:"file"      a path: made absolute, from the configuration file's folder
//	min:"1"          the least integer
//	runs:"user"      a string: the name or number of a user that a program is run as, see Config.RunsAs
//	keys:"names"     a table whose keys are names that the administrator chooses
type field struct {
	name                          string
	index                         []int
	typ                           reflect.Type
	doc, unset, oneof, unit, path string
	min, keys, runs               string
}

// fieldsOf lists the keys of a struct type, those of embedded structs among
// them, in order.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			for _, in := range fieldsOf(f.Type) {
				in.index = append([]int{i}, in.index...)
				fields = append(fields, in)
			}
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		if f.IsExported() && name != "" && name != "-" {
			get := f.Tag.Get
			fields = append(fields, field{
				name: name, index: []int{i}, typ: f.Type,
				doc: get("doc"), unset: get("unset"), oneof: get("oneof"), unit: get("unit"), path: get("path"), min: get("min"), keys: get("keys"), runs: get("runs"),
			})
		}
	}
	return fields
}

func names(fields []field) []string {
	all := make([]string, len(fields))
	for i, f := range fields {
		all[i] = f.name
	}
	return all
}
