package spp

import (
	"fmt"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/reply"
)

// pass is what one program's commands come to. It counts when all of them have
// been carried out.
type pass struct {
	state
	occasion
	verdict pipeline.Verdict
	current string // the address in question
	lines   []string
}

// scope is where what is said with H and L goes: to the session until there is a
// sender.
func (p *pass) scope() *left {
	if p.event < atMail {
		return &p.session
	}
	return &p.state.message
}

// carryOut carries commands out. last is the one that ended them, for log and
// trace; "" if the next program is to be run.
func (p *pass) carryOut(commands []command) (last string, err error) {
	p.current = p.about[p.address]
	for _, c := range commands {
		do, ok := carry[c.letter]
		if !ok {
			continue
		}
		if err := do(p, c); err != nil {
			return "", err
		}
		if c.last() {
			last = reply.Clean(string(c.letter)+c.text, 200)
		}
	}
	fields, err := headerFields(p.lines)
	if err != nil {
		return "", err
	}
	to := p.scope()
	if to.fields = append(to.fields[:len(to.fields):len(to.fields)], fields...); len(to.fields) > maxFields {
		return "", fmt.Errorf("more than %d header fields for one message", maxFields)
	}
	return last, nil
}

// carry is the table of commands.
var carry = map[byte]func(*pass, command) error{
	cmdAccept: func(p *pass, _ command) error {
		p.off = true
		return nil
	},
	cmdNext: func(*pass, command) error { return nil },
	cmdOK: func(p *pass, _ command) error {
		if p.event == atMail || p.event == atRcpt {
			p.verdict.Action, p.verdict.StageOnly = pipeline.Accept, true
		}
		return nil
	},
	cmdDrop: func(p *pass, _ command) error {
		p.verdict.Action, p.verdict.HangUp = pipeline.Defer, pipeline.HangUpAtOnce
		p.verdict.Reply = reply.Make(421, reply.Enhanced{Subject: 7}, "closing the connection")
		return nil
	},
	cmdError:  (*pass).refuse,
	cmdReject: (*pass).refuse,
	cmdLater:  (*pass).later,
	cmdPrint: func(p *pass, c command) error {
		said := p.verdict.Remarks
		if len(said) == pipeline.MaxRemarks {
			return fmt.Errorf("it prints more than %d lines", pipeline.MaxRemarks)
		}
		if text := parseRemark(c.text); text != "" {
			p.verdict.Remarks = append(said[:len(said):len(said)], text)
		}
		return nil
	},
	cmdSet: func(p *pass, c command) error {
		name, value, err := variable(c.text)
		if err == nil {
			p.vars, err = p.vars.with(name, &value)
		}
		return err
	},
	cmdUnset: func(p *pass, c command) error {
		if c.text == "" {
			return nil
		}
		var err error
		p.vars, err = p.vars.with(c.text, nil)
		return err
	},
	cmdHeader: func(p *pass, c command) error {
		if c.text != "" {
			p.lines = append(p.lines, c.text)
		}
		return nil
	},
	cmdChange: (*pass).change,
}

func (p *pass) refuse(c command) error {
	v, refused, err := refusal(p.event, c)
	if err != nil || !refused {
		return err
	}
	v.Remarks = p.verdict.Remarks
	p.verdict = v
	return nil
}

// later leaves a refusal for a later command.
func (p *pass) later(c command) error {
	if c.text == "" || c.text[0] != 'M' && c.text[0] != 'R' && c.text[0] != 'D' {
		return nil // as qmail-spp does
	}
	to := p.scope()
	if len(to.errors) == maxLater {
		return fmt.Errorf("more than %d errors for later", maxLater)
	}
	to.errors = append(to.errors[:len(to.errors):len(to.errors)], later{c.text[0], c.text[1:]})
	return nil
}

// change puts another address into the place of the client's.
func (p *pass) change(c command) error {
	switch {
	case p.address == "":
		return nil // there is none to change
	case len(c.text) > envelope.MaxAddress || !envelope.ValidBytes(c.text) || c.text == "" && p.event != atMail:
		return fmt.Errorf("%q is no address", reply.Clean(c.text, 80))
	}
	p.current = c.text
	return nil
}
