package spp

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/message"
	"github.com/postern-mta/postern/pipeline/reply"
	"github.com/postern-mta/postern/rules"
)

// stageOf is where an event's verdict is given.
var stageOf = [events]pipeline.Stage{
	pipeline.AtConnect, pipeline.AtHelo, pipeline.AtHelo, pipeline.AtSender, pipeline.AtRecipient, pipeline.AtRecipient, pipeline.AtMessage,
}

// FuzzCommands: whatever a program writes, what comes of it is bounded, legal at
// the stage, and clean; and a program that fails changes nothing.
func FuzzCommands(f *testing.F) {
	for e := range events {
		f.Add(uint8(e), []byte("HX-A: b\nH\tc\nSa=b\nUa\nCx@y\nP250-hello\nLM550 no\nE550 5.7.1 no (#5.1.1)\n"))
		f.Add(uint8(e), []byte("R221 bye\nD\nA"))
		f.Add(uint8(e), []byte("E250-ok\r\n\x00\nO\nN\n"))
	}
	f.Fuzz(func(t *testing.T, which uint8, output []byte) {
		e := event(which % uint8(events))
		commands, _, err := parseCommands(output)
		if err != nil {
			return
		}
		if len(commands) > maxCommands || bytes.Count(output, []byte{'\n'})+1 < len(commands) {
			t.Fatalf("%d commands of %q", len(commands), output)
		}
		for i, c := range commands {
			if c.last() != (i == len(commands)-1) && c.last() {
				t.Fatalf("%q is read on behind its last command", output)
			}
		}
		o := occasion{event: e, about: map[string]string{"SMTPMAILFROM": "a@b"}}
		if e >= atMail && e < atData {
			o.address = "SMTPMAILFROM"
		}
		before := state{vars: variables{set: map[string]*string{"X": nil}, size: 2}}
		p := turn{state: before, occasion: o}
		if _, err := p.carryOut(commands); err != nil {
			p.state = before
		}
		if len(before.vars.set) != 1 || len(before.session.fields)+len(before.message.errors) != 0 || o.about["SMTPMAILFROM"] != "a@b" {
			t.Fatal("it changed what it was given")
		}
		checkTurn(t, e, &p)
	})
}

func checkTurn(t *testing.T, e event, p *turn) {
	v := p.verdict
	if !pipeline.Legal(stageOf[e], v.Action) {
		t.Fatalf("%v at %v", v.Action, e)
	}
	no := v.Action == pipeline.Reject || v.Action == pipeline.Defer
	if v.HangUp != pipeline.StayOn && !no || v.StageOnly && v.Action != pipeline.Accept || len(v.Remarks) > pipeline.MaxRemarks {
		t.Fatalf("%+v", v)
	}
	if v.Reply.Text != reply.Clean(v.Reply.Text, reply.MaxText) || no && (v.Reply.Class == reply.Success || (v.Reply.Class == reply.Permanent) != (v.Action == pipeline.Reject)) {
		t.Fatalf("%v with %+v", v.Action, v.Reply)
	}
	for _, r := range v.Remarks {
		if r != reply.Clean(r, reply.MaxText) {
			t.Fatalf("%q", r)
		}
	}
	h, _ := message.ParseHead("Subject: x\n\n")
	fields := slices.Concat(p.session.fields, p.helo.fields, p.state.message.fields)
	edited, err := h.Edit(fields...)
	if err != nil || edited.Len() != 1+len(fields) {
		t.Fatalf("%v: %q", err, fields)
	}
	if again, rest := message.ParseHead(edited.String()); again.Len() != edited.Len() || rest != "" {
		t.Fatalf("fields break out: %q", edited.String())
	}
	for _, variable := range environment(&pipeline.Session{}, p.vars, nil) {
		if strings.Contains(variable, "\x00") || strings.Index(variable, "=") < 1 {
			t.Fatalf("%q", variable)
		}
	}
	if p.vars.size > maxEnvironment || len(p.vars.set) > maxVariables || len(fields) > maxFields {
		t.Fatal("it is not bounded")
	}
}

// FuzzPlugins: every program comes of a line of its section, in order, and is
// none that cannot be started.
func FuzzPlugins(f *testing.F) {
	f.Add([]byte("[connection]\n/a b\n# c\n[h]\n:d\n[pass]\n/e\n[x]\n/f\n[rcpt]\ng/h\n"), uint8(0))
	f.Add([]byte("/a\n[auth\n:\n"), uint8(1))
	f.Add([]byte("[\n[]\n[data]\r\n/x \t\r\n[mail]"), uint8(2))
	f.Fuzz(func(t *testing.T, file []byte, which uint8) {
		v := variants[int(which)%len(variants)]
		lines, err := rules.ControlLines(bytes.NewReader(file), maxFile)
		if err != nil {
			return
		}
		p, err := parsePlugins(lines, v)
		if err != nil {
			return
		}
		var want [events][]string
		ignored, section := 0, ""
		for _, l := range lines {
			if strings.HasPrefix(l.Text, "[") {
				section = (l.Text + "?")[1:2]
				continue
			}
			at := strings.Index("chamrpd", section)
			if section == "" || at < 0 || section == "p" && !v.pass {
				ignored++
				continue
			}
			want[at] = append(want[at], l.Text)
		}
		if p.ignored != ignored {
			t.Fatalf("%d lines ignored, want %d", p.ignored, ignored)
		}
		for e := range events {
			if strings.Join(p.of[e], "\n") != strings.Join(want[e], "\n") {
				t.Fatalf("%v: %q, want %q", e, p.of[e], want[e])
			}
			for _, line := range p.of[e] {
				path, args := resolve(line, "/var/qmail")
				if path[0] != '/' || len(args) == 0 || strings.Contains(path, "\x00") {
					t.Fatalf("%q is %q %q", line, path, args)
				}
			}
		}
	})
}
