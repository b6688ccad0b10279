package limit

import (
	_ "embed"
	"fmt"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Warmup is the plan by which a new source address is brought into use. The zero
// Warmup is none.
type Warmup struct {
	// Since is the first day, midnight UTC; zero: there is no plan.
	Since time.Time
	// Plan is how many messages may be begun each day, from the first on, to each
	// provider, or site without one. After its last day there is no bound.
	Plan []int
}

// Date is the day of an instant, by UTC, midnight.
func Date(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

// Day is the number of the plan's day, from 1, and less before it begins; 0 and
// false where there is no plan, or none any more.
func (w Warmup) Day(now time.Time) (day int, going bool) {
	if w.Since.IsZero() || len(w.Plan) == 0 {
		return 0, false
	}
	day = int(Date(now).Sub(w.Since)/(24*time.Hour)) + 1
	if now.Before(w.Since) {
		day = min(day, 0)
	}
	if day > len(w.Plan) {
		return 0, false
	}
	return day, true
}

// Budget is how many messages may be begun on the day; bound is false where there
// is no bound. Before the first day it is 0.
func (w Warmup) Budget(now time.Time) (most int, bound bool) {
	switch day, going := w.Day(now); {
	case !going:
		return 0, false
	case day < 1:
		return 0, true
	default:
		return w.Plan[day-1], true
	}
}

// next is when there is a new budget: the first day, or the next.
func (w Warmup) next(now time.Time) time.Time {
	if now.Before(w.Since) {
		return w.Since
	}
	return Date(now).Add(24 * time.Hour)
}

//go:embed warmup.toml
var shippedWarmup string

// ShippedPlan is the plan that comes with Postern.
func ShippedPlan() ([]int, error) {
	var t struct {
		Plan   []int  `toml:"plan"`
		Source string `toml:"source"`
	}
	if err := toml.Unmarshal([]byte(shippedWarmup), &t); err != nil || len(t.Plan) == 0 {
		return nil, fmt.Errorf("the plan for new addresses: %w", err)
	}
	return t.Plan, nil
}
