package config

import (
	"encoding"
	"fmt"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/postern-mta/postern/rules"
)

// decoder fills structs from the tree: strictly, and telling everything that is
// wrong and not only the first.
type decoder struct {
	*problems
	folder string // that relative paths are from
	// set has the place of every key that was written, by path.
	set map[string]place
	// bad has the paths of values that were wrong, and of all that they are in.
	bad map[string]bool
	// unknown is asked about the keys that a table does not have, before they
	// are reported; true means that it has done so.
	unknown func(p *problems, path, key string, at place) bool
	// more are further keys to suggest.
	more []string
	// users, if it is not nil, gets the users that programs are run as, by path.
	users map[string]string
}

// keeper is a struct that takes the keys that it has no fields for.
type keeper interface{ keep(others *node) }

// table decodes a table into a struct. Keys that are not there leave their
// fields alone.
func (d *decoder) table(n *node, path string, into reflect.Value) {
	fields := fieldsOf(into.Type())
	byName := make(map[string]*field, len(fields))
	known := make(map[string]bool, len(fields))
	for i := range fields {
		byName[fields[i].name], known[fields[i].name] = &fields[i], true
	}
	keeper, keeps := into.Addr().Interface().(keeper)
	if keeps {
		keeper.keep(n.without(known))
	}
	for _, key := range n.keys {
		kid, f := n.kids[key], byName[key]
		switch {
		case f != nil:
			d.set[join(path, key)] = kid.place
			d.value(kid, join(path, key), f, into.FieldByIndex(f.index))
		case keeps:
		case d.unknown != nil && d.unknown(d.problems, path, key, kid.place):
		default:
			d.strange(kid, path, key, append(names(fields), d.more...))
		}
	}
}

// strange reports a key that a table does not have.
func (d *decoder) strange(n *node, path, key string, known []string) {
	what := "key"
	if isTableValue(n.value) {
		what = "table"
	}
	where := ""
	if path != "" {
		where = " in [" + shown(path) + "]"
	}
	suggestion := rules.Suggest(key, known)
	if suggestion == "" {
		where += "; " + listing("known are ", known)
	}
	d.suggest(n.place, suggestion, "unknown %s %s%s", what, show(key), where)
}

// listing is a list for the end of a sentence.
func listing(lead string, all []string) string {
	if len(all) == 0 {
		return "it takes none"
	}
	return lead + strings.Join(all, ", ")
}

// value decodes one value. The path names it in messages.
func (d *decoder) value(n *node, path string, f *field, v reflect.Value) {
	before := len(d.errors) + d.problems.more
	d.decode(n, path, f, v)
	if len(d.errors)+d.problems.more > before && d.bad != nil {
		d.bad[path] = true
	}
}

func (d *decoder) decode(n *node, path string, f *field, v reflect.Value) {
	if v.Kind() == reflect.Pointer {
		p := reflect.New(v.Type().Elem())
		d.decode(n, path, f, p.Elem())
		v.Set(p)
		return
	}
	t := v.Type()
	switch {
	case words(t) != nil:
		if i, ok := d.word(n, path, f, words(t)); ok {
			v.SetUint(uint64(i))
		}
	case t == reflect.TypeFor[time.Duration]():
		d.duration(n, path, f, v)
	case isText(t) && !(isTableValue(n.value) && len(tableFields(t)) > 0):
		d.text(n, path, f, v)
	case v.Kind() == reflect.Slice:
		d.list(n, path, f, v)
	case v.Kind() == reflect.Map:
		d.mapping(n, path, f, v)
	case v.Kind() == reflect.Struct:
		if !isTableValue(n.value) {
			d.mismatch(n, path, f, t)
			return
		}
		d.table(n, path, v)
	default:
		d.scalar(n, path, f, v)
	}
}

func (d *decoder) mismatch(n *node, path string, f *field, t reflect.Type) {
	d.add(n.place, "%s must be %s, not %s", shown(path), f.wanted(t), typeName(n.value))
}

func (d *decoder) word(n *node, path string, f *field, all []string) (int, bool) {
	s, ok := n.value.(string)
	if !ok {
		d.add(n.place, "%s must be one of %s, not %s", shown(path), strings.Join(all, ", "), typeName(n.value))
		return 0, false
	}
	for i, w := range all {
		if s == w {
			return i, true
		}
	}
	d.suggest(n.place, rules.Suggest(s, all), "%s = %s: use one of %s", shown(path), show(s), strings.Join(all, ", "))
	return 0, false
}

func (d *decoder) duration(n *node, path string, f *field, v reflect.Value) {
	s, ok := n.value.(string)
	if !ok {
		d.mismatch(n, path, f, v.Type())
		return
	}
	length, err := ParseDuration(s)
	if err != nil {
		d.add(n.place, "%s = %s: %v", shown(path), show(s), err)
		return
	}
	v.SetInt(int64(length))
}

// isText reports whether values of the type read themselves from text.
func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// tableFields are the keys of a struct; of a type that reads itself from text
// too, they are its long form.
func tableFields(t reflect.Type) []field {
	if t.Kind() != reflect.Struct {
		return nil
	}
	return fieldsOf(t)
}

// text gives a text, or a number as text, to a type that reads itself.
func (d *decoder) text(n *node, path string, f *field, v reflect.Value) {
	var s string
	switch value := n.value.(type) {
	case string:
		s = value
	case int64:
		s = strconv.FormatInt(value, 10)
	case toml.LocalDate:
		s = value.String()
	case []any:
		d.texts(n, path, f, v)
		return
	default:
		d.mismatch(n, path, f, v.Type())
		return
	}
	if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
		d.add(n.place, "%s = %s: %v", shown(path), show(s), err)
	}
}

// texts gives a list of texts to a type that reads itself from one, too.
func (d *decoder) texts(n *node, path string, f *field, v reflect.Value) {
	to, ok := v.Addr().Interface().(interface{ UnmarshalTexts(all []string) error })
	all := make([]string, len(n.elems))
	for i, elem := range n.elems {
		if all[i], _ = elem.value.(string); all[i] == "" {
			ok = false
		}
	}
	if !ok {
		d.mismatch(n, path, f, v.Type())
		return
	}
	if err := to.UnmarshalTexts(all); err != nil {
		d.add(n.place, "%s: %v", shown(path), err)
	}
}

func (d *decoder) list(n *node, path string, f *field, v reflect.Value) {
	if _, ok := n.value.([]any); !ok {
		d.mismatch(n, path, f, v.Type())
		return
	}
	all := reflect.MakeSlice(v.Type(), len(n.elems), len(n.elems))
	for i, elem := range n.elems {
		at := fmt.Sprintf("%s[%d]", path, i)
		d.set[at] = elem.place
		d.value(elem, at, f, all.Index(i))
	}
	v.Set(all)
}

func isTableValue(v any) bool {
	_, ok := v.(map[string]any)
	return ok
}

func isTable(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Kind() == reflect.Struct && !isText(t)
}

// prepared is a struct that has defaults of its own before it is decoded.
type prepared interface{ prepare() }

func (d *decoder) mapping(n *node, path string, f *field, v reflect.Value) {
	if !isTableValue(n.value) {
		d.mismatch(n, path, f, v.Type())
		return
	}
	all := reflect.MakeMapWithSize(v.Type(), len(n.keys))
	for _, key := range n.keys {
		kid := n.kids[key]
		if f.keys == "names" && !nameRule.MatchString(key) {
			d.add(kid.place, "%s: the name %s must be letters, digits, - and _, at most 64", shown(path), show(key))
			continue
		}
		item := reflect.New(v.Type().Elem()).Elem()
		if isTable(item.Type()) && !isTableValue(kid.value) {
			d.set[join(path, key)] = kid.place
			d.mismatch(kid, join(path, key), f, item.Type())
			continue
		}
		if item.Kind() == reflect.Pointer {
			item.Set(reflect.New(item.Type().Elem()))
			if p, ok := item.Interface().(prepared); ok {
				p.prepare()
			}
		}
		d.set[join(path, key)] = kid.place
		if item.Kind() == reflect.Pointer {
			d.value(kid, join(path, key), f, item.Elem())
		} else {
			d.value(kid, join(path, key), f, item)
		}
		all.SetMapIndex(reflect.ValueOf(key), item)
	}
	v.Set(all)
}

// nameRule is what listeners, chains and filters may be called: their names go
// into logs, metrics and headers.
var nameRule = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func (d *decoder) scalar(n *node, path string, f *field, v reflect.Value) {
	switch value := n.value.(type) {
	case string:
		if f.unit == "bytes" && v.CanInt() {
			size, err := ParseSize(value)
			if err != nil {
				d.add(n.place, "%s = %s: %v", shown(path), show(value), err)
				return
			}
			d.integer(n, path, f, v, size)
			return
		}
		if v.Kind() == reflect.String {
			d.str(n, path, f, v, value)
			return
		}
	case bool:
		if v.Kind() == reflect.Bool {
			v.SetBool(value)
			return
		}
	case int64:
		if v.CanFloat() {
			v.SetFloat(float64(value))
			return
		}
		if v.CanInt() || v.CanUint() {
			d.integer(n, path, f, v, value)
			return
		}
	case float64:
		if v.CanFloat() {
			v.SetFloat(value)
			return
		}
	}
	if v.Kind() == reflect.Interface && v.NumMethod() == 0 {
		v.Set(reflect.ValueOf(n.value))
		return
	}
	d.mismatch(n, path, f, v.Type())
}

func (d *decoder) integer(n *node, path string, f *field, v reflect.Value, value int64) {
	if least, err := strconv.ParseInt(f.min, 10, 64); err == nil && value < least {
		d.add(n.place, "%s = %d: it must be at least %d", shown(path), value, least)
		return
	}
	switch {
	case v.CanInt() && !v.OverflowInt(value):
		v.SetInt(value)
	case v.CanUint() && value >= 0 && !v.OverflowUint(uint64(value)):
		v.SetUint(uint64(value))
	default:
		d.add(n.place, "%s = %d: it is out of range", shown(path), value)
	}
}

func (d *decoder) str(n *node, path string, f *field, v reflect.Value, value string) {
	if all := f.choices(v.Type()); all != nil {
		if i, ok := d.word(n, path, f, all); ok {
			v.SetString(all[i])
		}
		return
	}
	if f.path != "" && value != "" {
		if strings.IndexByte(value, 0) >= 0 {
			d.add(n.place, "%s = %s: a path has no NUL byte", shown(path), show(value))
			return
		}
		if !filepath.IsAbs(value) {
			value = filepath.Join(d.folder, value)
		}
		value = filepath.Clean(value)
	}
	v.SetString(value)
	if f.runs != "" && value != "" && d.users != nil {
		d.users[path] = value
	}
}

// join makes the path of a key.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
