package filters_test

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/postern-mta/postern/filters"
	"github.com/postern-mta/postern/pipeline"
)

// Every built-in filter has a name of its own and says what each of its keys
// is: manuals are made of that.
func TestKinds(t *testing.T) {
	env := pipeline.Env{Secret: func(string) []byte { return make([]byte, 32) }}
	refused := errors.New("line 7: unknown key")
	var names []string
	for _, k := range filters.Kinds() {
		names = append(names, k.Name)
		var options reflect.Type
		f, err := k.New(env, func(into any) error {
			options = reflect.TypeOf(into)
			return refused
		})
		if f != nil || !errors.Is(err, refused) {
			t.Errorf("%s: a configuration that is refused gives %v, %v", k.Name, f, err)
		}
		if options == nil || options.Kind() != reflect.Pointer || options.Elem().Kind() != reflect.Struct {
			t.Errorf("%s decodes into %v, not into a struct", k.Name, options)
			continue
		}
		documented(t, k.Name, options.Elem())
	}
	if want := []string{"badaddress", "clamav", "dkim-sign", "dkim-verify", "dnsbl", "execban", "greylist", "header", "pattern", "ratelimit", "rcptcheck", "recipients", "rewrite", "rspamd", "rule", "score", "sender", "spamassassin", "tap"}; !slices.Equal(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
}

func documented(t *testing.T, path string, options reflect.Type) {
	for i := range options.NumField() {
		f := options.Field(i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			documented(t, path, f.Type) // its keys are this table's
			continue
		}
		key := f.Tag.Get("toml")
		if key == "" || f.Tag.Get("doc") == "" || !f.IsExported() {
			t.Errorf("%s.%s lacks a tag toml or doc, or is not exported", path, f.Name)
		}
		inner := f.Type
		for inner.Kind() == reflect.Slice || inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			documented(t, path+"."+key, inner)
		}
	}
}
