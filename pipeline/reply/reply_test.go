package reply

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// wantExit is the table of qmail.c:qmail_close as observed from outside, code
// by code; every code that is not named is temporary.
func wantExit(code int) (Class, string) {
	named := map[int]string{
		0:  "250 2.0.0 ok",
		11: "554 5.1.3 envelope address too long for qq", 115: "554 5.1.3 envelope address too long for qq",
		31: "554 5.3.0 mail server permanently rejected message",
		51: "451 4.3.0 qq out of memory", 52: "451 4.3.0 qq timeout", 53: "451 4.3.0 qq write error or disk full",
		54: "451 4.3.0 qq read error", 55: "451 4.3.0 qq unable to read configuration",
		56: "451 4.3.0 qq trouble making network connection", 61: "451 4.3.0 qq trouble in home directory",
		71: "451 4.3.0 mail server temporarily rejected message",
		72: "451 4.4.1 connection to mail server timed out", 73: "451 4.4.1 connection to mail server rejected",
		74: "451 4.4.2 communication with mail server failed",
		81: "451 4.3.0 qq internal bug", 91: "451 4.3.0 qq internal bug", 120: "451 4.3.0 unable to exec qq",
	}
	switch s, ok := named[code]; {
	case code == 0:
		return Success, s
	case code == 115 || code == 11 || code == 31:
		return Permanent, s
	case code > 11 && code <= 40:
		return Permanent, "554 5.3.0 qq permanent problem"
	case code >= 62 && code <= 66:
		return Temporary, "451 4.3.0 qq trouble creating files in queue"
	case ok:
		return Temporary, s
	}
	return Temporary, "451 4.3.0 qq temporary problem"
}

func TestEveryExitCode(t *testing.T) {
	for code := 0; code <= 255; code++ {
		r := FromExit(code, "")
		class, smtp := wantExit(code)
		if r.Class != class || r.SMTP() != smtp {
			t.Errorf("exit %d: %v %q, want %v %q", code, r.Class, r.SMTP(), class, smtp)
		}
		if got := int(r.QueueExit()); got != code {
			t.Errorf("exit %d comes back as %d", code, got)
		}
		letter := map[Class]byte{Success: 'K', Temporary: 'Z', Permanent: 'D'}[class]
		recipient := map[Class]byte{Success: 'r', Temporary: 's', Permanent: 'h'}[class]
		if r.RemoteReport()[0] != letter || r.RecipientReport() != recipient {
			t.Errorf("exit %d reports %q and %q", code, r.RemoteReport(), r.RecipientReport())
		}
	}
	if r := FromExit(-1, ""); r.Class != Temporary || r.Words() != "qq crashed" {
		t.Errorf("signal: %v", r)
	}
}

func TestCustomText(t *testing.T) {
	for _, c := range []struct {
		code       int
		text, want string
	}{
		{82, "Dno viruses here (#5.7.1)", "554 5.7.1 no viruses here"},
		{88, "Dno viruses here", "554 5.3.0 no viruses here"},
		{82, "Zcome back (#4.7.0)", "451 4.7.0 come back"},
		{82, "Xodd letter", "451 4.3.0 odd letter"},
		{82, "D", "451 4.3.0 qq temporary problem"},
		{82, "Da", "451 4.3.0 qq temporary problem"},
		{82, "", "451 4.3.0 qq temporary problem"},
		{82, "Dclass disagrees (#4.7.1)", "554 5.3.0 class disagrees (#4.7.1)"},
		{82, "Dline1\r\n250 ok injected", "554 5.3.0 line1 250 ok injected"},
		{31, "Dtext without the code", "554 5.3.0 mail server permanently rejected message"},
	} {
		if got := FromExit(c.code, c.text).SMTP(); got != c.want {
			t.Errorf("exit %d text %q: %q, want %q", c.code, c.text, got, c.want)
		}
	}
}

// rows are all answers of the table.
var rows = []Reply{
	OK, Refused, Deferred, Trouble, AddressTooLong, BadAddress, TooManyRecipients, TooBig, HeadTooBig, BadLines,
	Loop, ReadError, BadEnvelope, TimedOut, NoSpace, NoMemory, BadConfig, NoQueueFile, Internal, Crashed, CannotExec,
	RelayDenied, ClientDenied, SenderDenied,
}

func TestRowsAgreeInEveryTongue(t *testing.T) {
	for _, r := range rows {
		if FromExit(int(r.QueueExit()), "").Class != r.Class {
			t.Errorf("%v exits with %d, which is another class", r, r.QueueExit())
		}
		if classOf(r.SMTPCode()) != r.Class {
			t.Errorf("%v has code %d", r, r.SMTPCode())
		}
		if r.Class == Success {
			continue
		}
		back := FromExit(82, r.QueueText(255))
		if back.Class != r.Class || back.Words() != r.Words() || back.Enhanced != r.Enhanced {
			t.Errorf("%q comes back as %v", r.QueueText(255), back)
		}
		if Clean(r.Text, MaxText) != r.Text {
			t.Errorf("%v is not clean", r)
		}
	}
}

func TestFor(t *testing.T) {
	classes := [Actions]Class{Success, Success, Permanent, Temporary, Success, Success}
	for a := Action(0); int(a) < Actions; a++ {
		for _, given := range append(rows, Reply{}) {
			if got := For(a, given); got.Class != classes[a] {
				t.Errorf("%v with %v answers %v", a, given, got)
			}
		}
		if back, ok := ParseAction(a.String()); !ok || back != a {
			t.Errorf("%v does not parse back", a)
		}
	}
	if got := For(Reject, Reply{Class: Permanent, Text: "no"}).SMTP(); got != "554 5.7.1 no" {
		t.Error(got)
	}
	if For(Action(99), OK).Class != Temporary {
		t.Error("an invalid action must be temporary")
	}
}

func TestZeroReplyIsTemporary(t *testing.T) {
	var r Reply
	if r.SMTP() != "451 4.0.0 temporary trouble here, please try again later" || r.QueueExit() != 71 {
		t.Errorf("%v %d", r, r.QueueExit())
	}
	if lying := (Reply{Class: Temporary, Code: 554, Exit: 31}); lying.SMTPCode() != 451 || lying.QueueExit() != 71 {
		t.Errorf("class must rule: %v %d", lying, lying.QueueExit())
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"554 5.7.1 go away", "554 5.7.1 go away"},
		{"550 go away", "550 5.0.0 go away"},
		{"451", "451 4.0.0 temporary trouble here, please try again later"},
		{" 421 4.7.0  later ", "421 4.7.0 later"},
		{"554 4.7.1 classes disagree", ""},
		{"354 go", ""},
		{"999 x", ""},
		{"", ""},
		{"no", ""},
	} {
		r, ok := Parse(c.in)
		if ok != (c.want != "") || ok && r.SMTP() != c.want {
			t.Errorf("%q: %v %v", c.in, r, ok)
		}
	}
}

func TestClean(t *testing.T) {
	for _, c := range []struct {
		in   string
		max  int
		want string
	}{
		{"plain text", 100, "plain text"},
		{"a\r\nb\tc  d", 100, "a b c d"},
		{" edges ", 100, "edges"},
		{"nul\x00 esc\x1b[0m \xe4 \x7f", 100, "nul? esc?[0m ? ?"},
		{"abcdef", 3, "abc"},
		{"ab cd", 3, "ab"},
		{"ab\r\ncd", 4, "ab c"},
		{"", 5, ""},
		{"abc", 0, ""},
	} {
		got := Clean(c.in, c.max)
		if got != c.want {
			t.Errorf("Clean(%q, %d) = %q, want %q", c.in, c.max, got, c.want)
		}
		if again := Clean(got, c.max); again != got {
			t.Errorf("%q is not clean: %q", got, again)
		}
	}
}

func TestQueueTextKeepsCode(t *testing.T) {
	r := Make(554, Enhanced{7, 1}, strings.Repeat("long ", 200))
	got := r.QueueText(255)
	if len(got) > 255 || !strings.HasSuffix(got, "(#5.7.1)") || got[0] != 'D' {
		t.Errorf("%d %q", len(got), got)
	}
}

func TestOf(t *testing.T) {
	err := fmt.Errorf("reading: %w", With(TooBig, errors.New("101 MB")))
	if Of(err) != TooBig || Of(errors.New("x")) != Trouble || Of(nil) != OK {
		t.Error("Of")
	}
	if Of(With(OK, nil)).Class != Temporary {
		t.Error("an error is never success")
	}
	if err.Error() != "reading: 101 MB" || With(Loop, nil).Error() != Loop.Text {
		t.Error("text")
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\r\n250 ok", 20)
	f.Fuzz(func(t *testing.T, s string, max int) {
		if max < 0 || max > 1000 {
			return
		}
		got := Clean(s, max)
		if len(got) > max {
			t.Fatalf("%q is longer than %d", got, max)
		}
		for i := 0; i < len(got); i++ {
			if got[i] < 0x20 || got[i] > 0x7e {
				t.Fatalf("%q is not clean", got)
			}
		}
		if Clean(got, max) != strings.TrimRight(got, " ") && Clean(got, max) != got {
			t.Fatalf("%q is not stable", got)
		}
	})
}
