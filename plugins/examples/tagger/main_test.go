package main

import (
	"testing"

	"github.com/postern-mta/postern/plugins/sdk/sdktest"
)

var cases = []sdktest.Case{
	{Name: "plain", File: "testdata/hello.eml", Want: sdktest.Want{Fields: []string{"Subject: [list] hello"}, Reason: "tagged"}},
	{Name: "every byte but the tag", Text: "X: 1\nsubject:  a\n  b\nX: 2\n\nbody\n", Want: sdktest.Want{Message: "X: 1\nSubject: [list] a  b\nX: 2\n\nbody\n"}},
	{Name: "tagged already", Text: "Subject: Re: [list] hello\n\nx\n"},
	{Name: "tagged in another's way", Text: "Subject: =?utf-8?q?=5Blist=5D_gr=C3=BC=C3=9Fe?=\n\nx\n"},
	{Name: "no subject", Text: "From: a@example.net\n\nx\n", Want: sdktest.Want{Message: "Subject: [list] \nFrom: a@example.net\n\nx\n"}},
	{Name: "another tag", Text: "Subject: hello\n\n", Options: map[string]any{"tag": "(x)"}, Want: sdktest.Want{Fields: []string{"Subject: (x) hello"}}},
	{Name: "no tag", Text: "\n", Options: map[string]any{"tag": " "}, Want: sdktest.Want{Problem: "tag: it is empty"}},
}

func TestPlugin(t *testing.T) { sdktest.Run(t, plugin, cases...) }

func TestProgram(t *testing.T) { sdktest.RunProgram(t, []string{sdktest.Build(t, ".")}, cases...) }
