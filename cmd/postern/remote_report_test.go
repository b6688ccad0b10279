package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/postern-mta/postern/pipeline/ingress/handoff/wire"
	"github.com/postern-mta/postern/pipeline/reply"
	esmtp "github.com/postern-mta/postern/pipeline/smtp"
	"github.com/postern-mta/postern/queue/egress/smtp"
)

// TestRemoteReport: byte for byte what qmail-remote.c writes.
func TestRemoteReport(t *testing.T) {
	here := netip.MustParseAddr("192.0.2.1")
	said := func(phase esmtp.Phase, code int, text string) smtp.Result {
		a := esmtp.Reply{Code: code, Text: text}
		return smtp.Result{Reply: a.Reply(), Remote: true, Said: a, Phase: phase, Address: here, Where: "mx [192.0.2.1]"}
	}
	own := func(phase esmtp.Phase, code int, s, d uint16, text string) smtp.Result {
		return smtp.Result{Reply: reply.Make(code, reply.Enhanced{Subject: s, Detail: d}, text), Phase: phase, Address: here}
	}
	ok := said(esmtp.Dot, 250, "ok 3")
	no := said(esmtp.RcptTo, 550, "no such user")
	later := said(esmtp.RcptTo, 450, "mailbox busy")
	const (
		accepted = "K192.0.2.1 accepted message.\nRemote host said: 250 ok 3\n\x00"
		noUser   = "h192.0.2.1 does not like recipient.\nRemote host said: 550 no such user\n\x00"
		busy     = "s192.0.2.1 does not like recipient.\nRemote host said: 450 mailbox busy\n\x00"
		givingUp = "DGiving up on 192.0.2.1.\n\x00"
	)
	greeting, name := own(esmtp.Greeting, 451, 4, 2, "x"), own(esmtp.Hello, 451, 4, 2, "x")
	greeting.Said, name.Said = esmtp.Reply{Code: 554, Text: "go away"}, esmtp.Reply{Code: 501, Text: "who?"}
	coded := ok
	coded.Said = esmtp.Reply{Code: 250, Coded: true, Enhanced: reply.Enhanced{Subject: 0, Detail: 0}, Text: "one\ntwo"}
	gone := own(esmtp.Dot, 451, 4, 2, "Connected to 192.0.2.1 but connection died. Possible duplicate!")
	for name, row := range map[string]struct {
		results []smtp.Result
		want    string
	}{
		"accepted":        {[]smtp.Result{ok}, "r\x00" + accepted},
		"two accepted":    {[]smtp.Result{ok, ok}, "r\x00r\x00" + accepted},
		"several lines":   {[]smtp.Result{coded}, "r\x00K192.0.2.1 accepted message.\nRemote host said: 250-2.0.0 one\n250 2.0.0 two\n\x00"},
		"partly":          {[]smtp.Result{no, ok, later}, noUser + "r\x00" + busy + accepted},
		"all refused":     {[]smtp.Result{no, no}, noUser + noUser + givingUp},
		"all put off":     {[]smtp.Result{later}, busy + givingUp},
		"refused and not": {[]smtp.Result{later, no}, busy + noUser + givingUp},
		"sender refused":  {[]smtp.Result{said(esmtp.MailFrom, 550, "no"), said(esmtp.MailFrom, 550, "no")}, "DConnected to 192.0.2.1 but sender was rejected.\nRemote host said: 550 no\n\x00"},
		"sender put off":  {[]smtp.Result{said(esmtp.MailFrom, 451, "no")}, "ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: 451 no\n\x00"},
		"greeting":        {[]smtp.Result{greeting}, "ZConnected to 192.0.2.1 but greeting failed.\nRemote host said: 554 go away\n\x00"},
		"name":            {[]smtp.Result{name}, "ZConnected to 192.0.2.1 but my name was rejected.\nRemote host said: 501 who?\n\x00"},
		"data":            {[]smtp.Result{said(esmtp.Data, 554, "no"), no}, "r\x00" + noUser + "D192.0.2.1 failed on DATA command.\nRemote host said: 554 no\n\x00"},
		"data later":      {[]smtp.Result{said(esmtp.Data, 451, "no")}, "r\x00Z192.0.2.1 failed on DATA command.\nRemote host said: 451 no\n\x00"},
		"after the dot":   {[]smtp.Result{said(esmtp.Dot, 554, "spam")}, "r\x00D192.0.2.1 failed after I sent the message.\nRemote host said: 554 spam\n\x00"},
		"dot, later":      {[]smtp.Result{said(esmtp.Dot, 451, "busy")}, "r\x00Z192.0.2.1 failed after I sent the message.\nRemote host said: 451 busy\n\x00"},
		"in the body":     {[]smtp.Result{said(esmtp.Body, 552, "too much")}, "r\x00D192.0.2.1 failed after I sent the message.\nRemote host said: 552 too much\n\x00"},
		"no connection":   {[]smtp.Result{own(esmtp.Connect, 451, 4, 1, "Sorry, I wasn't able to establish an SMTP connection.")}, "ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\x00"},
		"no host":         {[]smtp.Result{own(esmtp.Connect, 550, 1, 2, "Sorry, I couldn't find any host named x.")}, "DSorry, I couldn't find any host named x. (#5.1.2)\n\x00"},
		"DNS":             {[]smtp.Result{own(esmtp.Connect, 451, 1, 2, "Sorry, I couldn't find any host by that name.")}, "ZSorry, I couldn't find any host by that name. (#4.1.2)\n\x00"},
		"died":            {[]smtp.Result{no, own(esmtp.Body, 451, 4, 2, "Connected to 192.0.2.1 but connection died.")}, noUser + "r\x00ZConnected to 192.0.2.1 but connection died. (#4.4.2)\n\x00"},
		"duplicate":       {[]smtp.Result{gone}, "r\x00ZConnected to 192.0.2.1 but connection died. Possible duplicate! (#4.4.2)\n\x00"},
		"died before":     {[]smtp.Result{no, own(esmtp.After, 451, 4, 2, "Connected to 192.0.2.1 but connection died.")}, noUser + "ZConnected to 192.0.2.1 but connection died. (#4.4.2)\n\x00"},
		"cannot be named": {[]smtp.Result{own(esmtp.RcptTo, 553, 1, 3, "The recipient address cannot be used in SMTP."), ok}, "hThe recipient address cannot be used in SMTP. (#5.1.3)\n\x00r\x00" + accepted},
		// Recipients in several transactions that ended differently.
		"two ends":          {[]smtp.Result{ok, said(esmtp.Dot, 451, "busy")}, "r\x00s192.0.2.1 failed after I sent the message.\nRemote host said: 451 busy\n\x00" + accepted},
		"two failures":      {[]smtp.Result{said(esmtp.Dot, 554, "spam"), said(esmtp.Dot, 451, "busy")}, "h192.0.2.1 failed after I sent the message.\nRemote host said: 554 spam\n\x00r\x00Z192.0.2.1 failed after I sent the message.\nRemote host said: 451 busy\n\x00"},
		"lost in between":   {[]smtp.Result{ok, gone}, "r\x00sConnected to 192.0.2.1 but connection died. Possible duplicate! (#4.4.2)\n\x00" + accepted},
		"nothing to report": {nil, "Ztemporary trouble here, please try again later (#4.3.0)\n\x00"},
	} {
		if got := string(remoteReport(row.results)); got != row.want {
			t.Errorf("%s:\n%q, want\n%q", name, got, row.want)
		}
	}
}

// TestRemoteReportLostAtTheEnd: of those nobody was asked about after a
// delivery, none passes for delivered.
func TestRemoteReportLostAtTheEnd(t *testing.T) {
	ok := smtp.Result{Reply: reply.OK, Remote: true, Said: esmtp.Reply{Code: 250, Text: "ok"}, Phase: esmtp.Dot}
	lost := smtp.Result{Reply: reply.Trouble, Phase: esmtp.After}
	got := string(remoteReport([]smtp.Result{ok, lost, lost}))
	if want := "r\x00" + strings.Repeat("stemporary trouble here, please try again later (#4.3.0)\n\x00", 2) + "Kthe server accepted message.\nRemote host said: 250 ok\n\x00"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestRemoteReportFits: however many recipients, however much a server says.
func TestRemoteReportFits(t *testing.T) {
	long := esmtp.Reply{Code: 550, Text: strings.Repeat(strings.Repeat("x", 500)+"\n", 100)}
	x := smtp.Result{Reply: long.Reply(), Remote: true, Said: long, Phase: esmtp.RcptTo, Address: netip.MustParseAddr("192.0.2.1")}
	for _, n := range []int{1, 100, 1000, 10_000, 100_000} {
		got := remoteReport(slices.Repeat([]smtp.Result{x}, n))
		if len(got) > wire.MaxReport {
			t.Errorf("%d recipients: %d bytes", n, len(got))
		}
		if strings.Count(string(got), "\x00") != n+1 || !strings.HasSuffix(string(got), ".\n\x00") {
			t.Errorf("%d recipients: %d reports", n, strings.Count(string(got), "\x00"))
		}
	}
}
