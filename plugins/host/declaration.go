package host

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/plugins/wire"
)

const (
	maxName    = 64 // bytes of a plugin's name, of its version, of an option's
	maxOptions = 64
)

// declaration is what a plugin said of itself, checked.
type declaration struct {
	name, version, doc string
	stages             []pipeline.Stage
	needs              wire.Needs
	editsHead          bool
	editsBody          bool
	editsEnvelope      bool
	advises            bool
	strangersOnly      bool
	options            []option
}

// stages is the table from the wire's stages to ours.
var stages = map[wire.Stage]pipeline.Stage{
	wire.Stage_STAGE_CONNECT:   pipeline.AtConnect,
	wire.Stage_STAGE_HELO:      pipeline.AtHelo,
	wire.Stage_STAGE_SENDER:    pipeline.AtSender,
	wire.Stage_STAGE_RECIPIENT: pipeline.AtRecipient,
	wire.Stage_STAGE_MESSAGE:   pipeline.AtMessage,
	wire.Stage_STAGE_DELIVERY:  pipeline.AtDelivery,
}

// wireStages is its inverse.
var wireStages = [pipeline.Stages]wire.Stage{
	pipeline.AtConnect:   wire.Stage_STAGE_CONNECT,
	pipeline.AtHelo:      wire.Stage_STAGE_HELO,
	pipeline.AtSender:    wire.Stage_STAGE_SENDER,
	pipeline.AtRecipient: wire.Stage_STAGE_RECIPIENT,
	pipeline.AtMessage:   wire.Stage_STAGE_MESSAGE,
	pipeline.AtDelivery:  wire.Stage_STAGE_DELIVERY,
}

// readDeclaration checks what a plugin says of itself.
func readDeclaration(w *wire.Declaration) (*declaration, error) {
	d := &declaration{
		needs: w.GetNeeds(), editsHead: w.GetEditsHead(), editsBody: w.GetEditsBody(), editsEnvelope: w.GetEditsEnvelope(),
		advises: w.GetAdvises(), strangersOnly: w.GetStrangersOnly(),
	}
	var err1, err2, err3 error
	d.name, err1 = readText("name", w.GetName(), maxName)
	d.version, err2 = readText("version", w.GetVersion(), maxName)
	d.doc, err3 = readText("description", oneLine(w.GetDoc()), maxText)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	if d.name == "" {
		return nil, errors.New("no name")
	}
	if _, ok := wire.Needs_name[int32(d.needs)]; !ok {
		return nil, fmt.Errorf("needs %d, which there is not", d.needs)
	}
	for _, s := range w.GetStages() {
		stage, ok := stages[s]
		switch {
		case !ok:
			return nil, fmt.Errorf("stage %d, which there is not", s)
		case slices.Contains(d.stages, stage):
			return nil, fmt.Errorf("the %v stage twice", stage)
		}
		d.stages = append(d.stages, stage)
	}
	if len(d.stages) == 0 {
		return nil, errors.New("no stage at which it is to be asked")
	}
	slices.Sort(d.stages)
	return d, d.readOptions(w.GetOptions())
}

// oneLine joins the lines of a text, as a long one is written in a program.
func oneLine(s string) string { return lineEnds.ReplaceAllString(s, " ") }

var lineEnds = regexp.MustCompile(`[ \t]*\r?\n[ \t]*`)

func (d *declaration) readOptions(all []*wire.Option) error {
	if len(all) > maxOptions {
		return fmt.Errorf("%d options, at most %d", len(all), maxOptions)
	}
	for _, w := range all {
		o, err := readOption(w)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(d.options, func(other option) bool { return other.name == o.name }) {
			return fmt.Errorf("the option %s twice", o.name)
		}
		d.options = append(d.options, o)
	}
	return nil
}

// traits are the plugin's for the chain.
func (d *declaration) traits() pipeline.Traits {
	t := pipeline.Traits{Strangers: d.strangersOnly, Stages: d.stages}
	if d.advises {
		t.OnError = pipeline.ErrorContinues
	}
	return t
}

// same reports whether another process says the same of itself. Its version may
// be another one.
func (d *declaration) same(other *declaration) bool {
	if len(d.options) != len(other.options) {
		return false
	}
	for i, o := range d.options {
		if p := other.options[i]; o.name != p.name || o.kind != p.kind || o.required != p.required {
			return false
		}
	}
	return d.name == other.name && slices.Equal(d.stages, other.stages) && d.needs == other.needs && d.editsHead == other.editsHead &&
		d.editsBody == other.editsBody && d.editsEnvelope == other.editsEnvelope && d.advises == other.advises && d.strangersOnly == other.strangersOnly
}
