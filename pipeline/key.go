package pipeline

// KeyError is an error about one key of a filter's table. The configuration tells
// it with the key's file and line. It is immutable.
type KeyError struct {
	key string
	error
}

// AtKey makes an error one about a key, which is written as it stands in the
// filter's table: "headers[2]", "rule[1].when".
func AtKey(key string, err error) KeyError { return KeyError{key, err} }

// Below is the error with a table's name in front of its key: what is wrong with
// ".when" below "rule[1]" is about "rule[1].when".
func (e KeyError) Below(table string) KeyError { return KeyError{table + e.key, e.error} }

// Key is the key.
func (e KeyError) Key() string { return e.key }

// Unwrap is the error itself.
func (e KeyError) Unwrap() error { return e.error }
