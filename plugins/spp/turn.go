package spp

import (
	"fmt"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
)

// turn is what one program's commands come to. It counts when all of them have
// been carried out.
type turn struct {
	state
	occasion
	verdict pipeline.Verdict
	current string // the address in question
	lines   []string
}

// scope is where what is said with H and L goes: to the session until there is a
// sender, or to the name that the client gives itself.
func (t *turn) scope() *left {
	switch {
	case t.event == atHelo:
		return &t.helo
	case t.event < atMail:
		return &t.session
	}
	return &t.state.message
}

// carryOut carries commands out. last is the one that ended them, for log and
// trace; "" if the next program is to be run.
func (t *turn) carryOut(commands []command) (last string, err error) {
	t.current = t.about[t.address]
	for _, c := range commands {
		do, ok := carry[c.letter]
		if !ok {
			continue
		}
		if err := do(t, c); err != nil {
			return "", err
		}
		if c.last() {
			last = reply.Clean(string(c.letter)+c.text, 200)
		}
	}
	fields, err := headerFields(t.lines)
	if err != nil {
		return "", err
	}
	to := t.scope()
	if to.fields = append(to.fields[:len(to.fields):len(to.fields)], fields...); len(to.fields) > maxFields {
		return "", fmt.Errorf("more than %d header fields for one message", maxFields)
	}
	return last, nil
}

// carry is the table of commands.
var carry = map[byte]func(*turn, command) error{
	cmdAccept: func(t *turn, _ command) error {
		t.off = true
		return nil
	},
	cmdNext: func(*turn, command) error { return nil },
	cmdOK: func(t *turn, _ command) error {
		if t.event == atMail || t.event == atRcpt {
			t.verdict.Action, t.verdict.StageOnly = pipeline.Accept, true
		}
		return nil
	},
	cmdDrop: func(t *turn, _ command) error {
		t.verdict.Action, t.verdict.HangUp = pipeline.Defer, pipeline.HangUpAtOnce
		t.verdict.Reply = reply.Make(421, reply.Enhanced{Subject: 7}, "closing the connection")
		return nil
	},
	cmdError:  (*turn).refuse,
	cmdReject: (*turn).refuse,
	cmdLater:  (*turn).later,
	cmdPrint: func(t *turn, c command) error {
		said := t.verdict.Remarks
		if len(said) == pipeline.MaxRemarks {
			return fmt.Errorf("it prints more than %d lines", pipeline.MaxRemarks)
		}
		if text := parseRemark(c.text); text != "" {
			t.verdict.Remarks = append(said[:len(said):len(said)], text)
		}
		return nil
	},
	cmdSet: func(t *turn, c command) error {
		name, value, err := variable(c.text)
		if err == nil {
			t.vars, err = t.vars.with(name, &value)
		}
		return err
	},
	cmdUnset: func(t *turn, c command) error {
		if c.text == "" {
			return nil
		}
		var err error
		t.vars, err = t.vars.with(c.text, nil)
		return err
	},
	cmdHeader: func(t *turn, c command) error {
		if c.text != "" {
			t.lines = append(t.lines, c.text)
		}
		return nil
	},
	cmdChange: (*turn).change,
}

func (t *turn) refuse(c command) error {
	v, refused, err := refusal(t.event, c)
	if err != nil || !refused {
		return err
	}
	v.Remarks = t.verdict.Remarks
	t.verdict = v
	return nil
}

// later leaves a refusal for a later command.
func (t *turn) later(c command) error {
	if c.text == "" || c.text[0] != 'M' && c.text[0] != 'R' && c.text[0] != 'D' {
		return nil // as qmail-spp does
	}
	to := t.scope()
	if len(to.errors) == maxLater {
		return fmt.Errorf("more than %d errors for later", maxLater)
	}
	to.errors = append(to.errors[:len(to.errors):len(to.errors)], later{c.text[0], c.text[1:]})
	return nil
}

// change puts another address into the place of the client's.
func (t *turn) change(c command) error {
	switch {
	case t.address == "":
		return nil // there is none to change
	case len(c.text) > envelope.MaxAddress || !envelope.ValidBytes(c.text) || c.text == "" && t.event != atMail:
		return fmt.Errorf("%q is no address", reply.Clean(c.text, 80))
	}
	t.current = c.text
	return nil
}
