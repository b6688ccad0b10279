package pipeline

// KindOf is a kind of filter that is made of options. What is not written has the
// value that defaults gives, which is called for every filter; nil means zero
// values.
func KindOf[O any, F Filter](name string, defaults func() O, build func(Env, O) (F, error)) Kind {
	return Kind{Name: name, New: func(env Env, decode Decode) (Filter, error) {
		var o O
		if defaults != nil {
			o = defaults()
		}
		if err := decode(&o); err != nil {
			return nil, err
		}
		f, err := build(env, o)
		if err != nil {
			return nil, err // and not an F that is nil
		}
		return f, nil
	}}
}
