package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/postern-mta/postern/plugins/sdk"
)

// verdicts are the lines that decide. Their text is what follows the word.
var verdicts = map[string]func(text string) sdk.Verdict{
	"continue":   func(string) sdk.Verdict { return sdk.Continue() },
	"accept":     func(string) sdk.Verdict { return sdk.Accept() },
	"discard":    func(string) sdk.Verdict { return sdk.Discard() },
	"quarantine": sdk.Quarantine,
	"reject":     func(text string) sdk.Verdict { return sdk.Reject(code(text)) },
	"defer":      func(text string) sdk.Verdict { return sdk.Defer(code(text)) },
}

// edits are the lines that change a field.
var edits = map[string]func(name, value string) sdk.FieldEdit{
	"add":     sdk.Add,
	"append":  sdk.Append,
	"replace": func(name, value string) sdk.FieldEdit { return sdk.Replace(name, 0, value) },
}

// code divides "5.7.1 text".
func code(text string) (enhanced, rest string) {
	first, rest, _ := strings.Cut(text, " ")
	if len(first) > 1 && first[1] == '.' && strings.Trim(first, "0123456789.") == "" {
		return first, strings.TrimSpace(rest)
	}
	return "", text
}

// parse is the verdict of what a program printed.
func parse(output string) (sdk.Verdict, error) {
	var decided string
	var v sdk.Verdict
	var changes []sdk.FieldEdit
	var more []func(sdk.Verdict) sdk.Verdict
	for line := range strings.Lines(output) {
		word, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		text = strings.TrimSpace(text)
		switch {
		case word == "":
		case verdicts[word] != nil:
			if decided != "" {
				return v, fmt.Errorf("it printed two verdicts, %s and %s", decided, word)
			}
			decided, v = word, verdicts[word](text)
		case edits[word] != nil:
			name, value, found := strings.Cut(text, ":")
			if !found {
				return v, fmt.Errorf("the line %.100q has no colon after the field's name", line)
			}
			changes = append(changes, edits[word](name, strings.TrimSpace(value)))
		case word == "remove":
			changes = append(changes, sdk.Remove(text, 0))
		case word == "because":
			more = append(more, func(v sdk.Verdict) sdk.Verdict { return v.Because(text) })
		case word == "symbol":
			f, err := symbol(text)
			if err != nil {
				return v, err
			}
			more = append(more, f)
		default:
			return v, fmt.Errorf("it printed %.100q, which is no verdict", strings.TrimSpace(line))
		}
	}
	v = v.Edit(changes...)
	for _, f := range more {
		v = f(v)
	}
	return v, nil
}

func symbol(text string) (func(sdk.Verdict) sdk.Verdict, error) {
	name, number, _ := strings.Cut(text, " ")
	score, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil {
		return nil, errors.New("a symbol has a name and a number, like symbol LOTTERY 2.5")
	}
	return func(v sdk.Verdict) sdk.Verdict { return v.Symbol(name, score, "") }, nil
}
