package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
)

// printSources prints the addresses that mail leaves from.
func printSources(w io.Writer, all []api.Source) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SOURCE\tIPV4\tIPV6\tHELO\tPOOLS\tOPEN\tWARM-UP")
	for i := range all {
		s := &all[i]
		warm := "-"
		if s.Warmup != nil {
			warm = dayWords(s.Warmup) + ", " + strconv.Itoa(s.Warmup.Most) + " messages today to each provider"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", clean(s.Name), dash(s.IPv4), dash(s.IPv6), clean(s.Hello), clean(strings.Join(s.Pools, ", ")), s.Connections, warm)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for i := range all {
		s := &all[i]
		if s.Avoided != "" {
			fmt.Fprintf(w, "source %s is passed over until %s: its address cannot be used on this machine\n", clean(s.Name), s.Avoided)
		}
		for _, x := range s.Suspended {
			where := " at " + x.Level + " " + clean(x.Name)
			if x.Level == "source" {
				where = ""
			}
			if _, err := fmt.Fprintf(w, "source %s is suspended%s%s%s\n", clean(s.Name), where, optional(" until ", x.Until), optional(": ", clean(x.Why))); err != nil {
				return err
			}
		}
	}
	return nil
}

// dayWords is the day of a warm-up in words.
func dayWords(w *api.SourceWarmup) string {
	if w.Day < 1 {
		return "not begun"
	}
	return fmt.Sprintf("day %d of %d", w.Day, w.Days)
}

// printSiteSources prints what mail for a site may leave from.
func printSiteSources(w io.Writer, all []api.SiteSource) error {
	if len(all) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SOURCE\tPOOLS\tOPEN\tALLOWED\tWARM-UP\tSTATE")
	for i := range all {
		s := &all[i]
		warm, state := "-", "free"
		if s.Warmup != nil {
			warm = fmt.Sprintf("%s, %d of %d messages today to %s", dayWords(s.Warmup), s.Warmup.Used, s.Warmup.Most, clean(s.Warmup.To))
		}
		if b := s.Binding; b != nil {
			state = fmt.Sprintf("kept by %s %s: %s%s%s%s", b.Level, clean(b.Name), b.What, optional(" ", b.Limit), optional(" until ", b.Until), optional(": ", b.Why))
		}
		if s.Avoided != "" {
			state += "; passed over until " + s.Avoided + ", because its address could not be used"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%s\n", clean(s.Name), clean(strings.Join(s.Pools, ", ")), s.Connections, s.Allowed, warm, state)
	}
	return t.Flush()
}
