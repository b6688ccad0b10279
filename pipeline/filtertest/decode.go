package filtertest

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/postern-mta/postern/pipeline"
)

// Decode is a strict Decode of a filter's table, as TOML. Its errors carry the
// line, as those of the configuration do.
func Decode(config string) pipeline.Decode {
	return func(into any) error {
		err := toml.NewDecoder(strings.NewReader(config)).DisallowUnknownFields().Decode(into)
		var unknown *toml.StrictMissingError
		var wrong *toml.DecodeError
		switch {
		case errors.As(err, &unknown) && len(unknown.Errors) > 0:
			line, _ := unknown.Errors[0].Position()
			return fmt.Errorf("test.toml:%d: unknown key %q", line, strings.Join(unknown.Errors[0].Key(), "."))
		case errors.As(err, &wrong):
			line, _ := wrong.Position()
			return fmt.Errorf("test.toml:%d: %w", line, err)
		}
		return err
	}
}

// DecodeMap is a strict Decode of a filter's table, as a map.
func DecodeMap(config map[string]any) pipeline.Decode {
	return func(into any) error {
		text, err := toml.Marshal(config)
		if err != nil {
			return err
		}
		return Decode(string(text))(into)
	}
}
