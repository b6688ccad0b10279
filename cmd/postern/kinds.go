package main

import (
	"github.com/postern-mta/postern/filters"
	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/plugins/milter"
	"github.com/postern-mta/postern/plugins/qfilter"
	"github.com/postern-mta/postern/plugins/spp"
)

// kinds are all filters that a configuration can name without a plugin: the
// built-in ones, and those that drive programs and milters of others.
func kinds() []pipeline.Kind {
	return append(filters.Kinds(), milter.Kind(), qfilter.Kind(), spp.Kind())
}
