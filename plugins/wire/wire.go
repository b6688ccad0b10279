// Package wire is what goes between Postern and a plugin: the messages and the
// service of plugin.proto, and the constants that both ends must agree on.
//
// It promises that a plugin built against one version of it works with every
// later Postern that still speaks Version: fields are added to it and never
// change their numbers or their meaning.
package wire

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative plugin.proto
//go:generate protoc --python_out=../sdk/python/postern_plugin plugin.proto

// Version is the version of the calls, and of hashicorp/go-plugin's handshake.
const Version = 1

// The environment variable by which a program knows that it has been started as
// a plugin, and its value. It protects nobody: it is for a clear word to whoever
// runs a plugin by hand.
const (
	CookieName  = "POSTERN_PLUGIN"
	CookieValue = "postern.plugin.v1"
)

// Service is the name under which a plugin is known to go-plugin.
const Service = "filter"

const (
	// InlineBody is the greatest body in bytes that goes within a call.
	InlineBody = 16 << 10
	// MaxReply is the greatest answer in bytes: with a head of its own and a new
	// body of InlineBody, or many edits.
	MaxReply = 4 << 20
)
