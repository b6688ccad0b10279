package mime

import "testing"

func TestDecodeText(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                                  "plain",
		"=?utf-8?B?bG90dA==?= =?UTF-8?Q?ery?= x": "lottery x",
		"\"=?koi8-r?B?8NLJ18XU?=\"":              "\"Привет\"",
		"=?x?q?":                                 "",
	} {
		if got := DecodeWords(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
	for charset, in := range map[string]string{"utf-16le": "\xe9\x00", "ISO-8859-1": "\xe9", "utf-8": "é", "": "\xe9", "no-such": "é", "utf-7": "+AOk-"} {
		if got := DecodeCharset(charset, in); got != "é" {
			t.Errorf("%s: %q is %q", charset, in, got)
		}
	}
}
