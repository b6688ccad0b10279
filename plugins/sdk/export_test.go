package sdk

// BodyPath is the file that a message's body came in.
func BodyPath(m *Message) string { return m.body.from.Path }
