package host

import (
	"encoding/hex"
	"encoding/json"
	"strings"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/plugins/wire"
)

// Description is what a plugin says of itself, for people.
type Description struct {
	Name    string   `json:"name"`
	Version string   `json:"version"`
	Doc     string   `json:"doc"`
	Stages  []string `json:"stages"`
	// Needs is "nothing", "envelope", "head" or "body"; Edits are of "head", "body"
	// and "envelope".
	Needs         string   `json:"needs"`
	Edits         []string `json:"edits,omitempty"`
	OnError       string   `json:"on_error"`
	StrangersOnly bool     `json:"strangers_only,omitempty"`
	// SHA256 is that of the program's file as it is now, "" if it cannot be read.
	SHA256  string              `json:"sha256"`
	Options []OptionDescription `json:"options,omitempty"`
}

// OptionDescription is one key of a plugin's filters.
type OptionDescription struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Doc      string `json:"doc"`
	Default  string `json:"default,omitempty"` // as JSON
	Required bool   `json:"required,omitempty"`
}

// Describe is the plugin of that name, in the configuration that is being read or
// else in that in force.
func (h *Host) Describe(name string) (d Description, ok bool) {
	h.mu.Lock()
	v := h.coming[name]
	if v == nil {
		v = h.current[name]
	}
	h.mu.Unlock()
	if v == nil {
		return d, false
	}
	d = v.declared.describe()
	if sum, err := sumOf(v.settings.Command[0]); err == nil {
		d.SHA256 = hex.EncodeToString(sum)
	}
	return d, true
}

func (d *declaration) describe() Description {
	w := Description{
		Name: d.name, Version: d.version, Doc: d.doc, Needs: strings.ToLower(strings.TrimPrefix(d.needs.String(), "NEEDS_")),
		OnError: d.traits().OnError.String(), StrangersOnly: d.strangersOnly,
	}
	for _, s := range d.stages {
		w.Stages = append(w.Stages, s.String())
	}
	for _, e := range []struct {
		may  bool
		what string
	}{{d.editsHead, "head"}, {d.editsBody, "body"}, {d.editsEnvelope, "envelope"}} {
		if e.may {
			w.Edits = append(w.Edits, e.what)
		}
	}
	for _, o := range d.options {
		w.Options = append(w.Options, o.describe())
	}
	return w
}

// optionTypes are the words for the types of options.
var optionTypes = map[wire.OptionType]string{
	wire.OptionType_OPTION_TYPE_STRING: "text", wire.OptionType_OPTION_TYPE_BOOL: "true or false", wire.OptionType_OPTION_TYPE_INT: "a number",
	wire.OptionType_OPTION_TYPE_FLOAT: "a number, whole or not", wire.OptionType_OPTION_TYPE_DURATION: `a duration, "30s"`, wire.OptionType_OPTION_TYPE_SIZE: `a size, "10 MB"`,
	wire.OptionType_OPTION_TYPE_STRINGS: "a list of texts", wire.OptionType_OPTION_TYPE_TABLE: "a table of texts",
}

func (o *option) describe() OptionDescription {
	w := OptionDescription{Name: o.name, Doc: o.doc, Required: o.required}
	for kind, word := range optionTypes {
		if optionKinds[kind] == o.kind {
			w.Type = word
		}
	}
	if o.initial.IsValid() {
		if b, err := json.Marshal(o.initial.Interface()); err == nil {
			w.Default = string(b)
		}
	}
	return w
}

// Judges reports whether a description names a stage.
func (d *Description) Judges(s pipeline.Stage) bool {
	for _, name := range d.Stages {
		if name == s.String() {
			return true
		}
	}
	return false
}
