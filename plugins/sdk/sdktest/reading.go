package sdktest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/postern-mta/postern/plugins/sdk"
	"github.com/postern-mta/postern/plugins/wire"
)

// reading makes of an answer what Postern would do.
type reading struct {
	declared *wire.Declaration
	request  *wire.JudgeRequest
	message  saved
	dirs     []string // where a new body may lie
}

func (r *reading) read(t testing.TB, answer *wire.JudgeReply) Got {
	t.Helper()
	tx := r.request.GetTransaction()
	before := r.fate()
	got := Got{Fate: before, Fates: map[string]Fate{}, before: before.Head + "\n" + before.Body}
	named := map[uint32]Fate{}
	asked := map[uint32]bool{}
	for _, n := range tx.GetActive() {
		asked[n] = true
	}
	for i, v := range answer.GetVerdicts() {
		fate, err := r.verdict(v)
		if err != nil {
			t.Fatalf("Postern would not take the answer: %v", err)
		}
		if i == 0 {
			got.Fate = fate
		}
		about := v.GetRecipients()
		if len(about) == 0 {
			about = tx.GetActive()
		}
		for _, n := range about {
			if !asked[n] {
				t.Fatalf("Postern would not take the answer: a verdict is for recipient %d, about whom it was not asked", n)
			}
			if _, done := named[n]; !done {
				named[n] = fate
			}
		}
	}
	for i, n := range tx.GetActive() {
		fate, ok := named[n]
		if !ok {
			fate = before
		}
		if int(n) < len(tx.GetRecipients()) {
			fate = fate.of(string(tx.GetRecipients()[n]))
			got.Fates[string(tx.GetRecipients()[n])] = fate
		}
		if i == 0 {
			got.Fate = fate
		}
	}
	return got
}

// of is the fate for one recipient.
func (f Fate) of(address string) Fate {
	f.Recipients = slices.Clone(f.Recipients)
	for i, r := range f.Recipients {
		if r == itself {
			f.Recipients[i] = address
		}
	}
	return f
}

// itself stands for the recipient that a fate is about.
const itself = "\x00"

func (r *reading) fate() Fate {
	return Fate{Action: "continue", Head: r.message.head, Body: r.message.body, Sender: string(r.request.GetTransaction().GetSender()), Recipients: []string{itself}}
}

// verdict is what one verdict does.
func (r *reading) verdict(v *wire.Verdict) (Fate, error) {
	f := r.fate()
	f.Action, f.Reason = strings.ToLower(strings.TrimPrefix(v.GetAction().String(), "ACTION_")), v.GetReason()
	var err error
	if f.Reply, err = replyText(v); err != nil {
		return f, err
	}
	for _, s := range v.GetSymbols() {
		f.Symbols = append(f.Symbols, sdk.Symbol{Name: s.GetName(), Score: s.GetScore(), Detail: s.GetDetail()})
	}
	for _, a := range v.GetResults() {
		result := sdk.AuthResult{Method: a.GetMethod(), Result: a.GetResult(), Reason: a.GetReason()}
		for _, p := range a.GetProperties() {
			result.Properties = append(result.Properties, sdk.Property{Name: p.GetName(), Value: p.GetValue()})
		}
		f.Results = append(f.Results, result)
	}
	for _, e := range v.GetEdits() {
		if err := r.edit(&f, e); err != nil {
			return f, err
		}
	}
	return f, r.body(&f, v)
}

// replyText is what the peer hears, "" for the generic line.
func replyText(v *wire.Verdict) (string, error) {
	y := v.GetReply()
	if y == nil {
		return "", nil
	}
	class := map[wire.Action]uint32{wire.Action_ACTION_REJECT: 5, wire.Action_ACTION_DEFER: 4}[v.GetAction()]
	if class == 0 {
		class = 2
	}
	if y.GetCode()/100 != class {
		return "", fmt.Errorf("the reply %d contradicts the action", y.GetCode())
	}
	if y.GetEnhanced() != "" && !strings.HasPrefix(y.GetEnhanced(), strconv.Itoa(int(class))+".") {
		return "", fmt.Errorf("the enhanced code %s contradicts the action", y.GetEnhanced())
	}
	return strings.Join(strings.Fields(fmt.Sprint(y.GetCode(), " ", y.GetEnhanced(), " ", y.GetText())), " "), nil
}

func (r *reading) edit(f *Fate, e *wire.Edit) error {
	if head, ok := editHead(f.Head, e); ok {
		if !r.declared.GetEditsHead() {
			return fmt.Errorf("an edit of the head that was not declared: %v", e)
		}
		f.Head = head
		return nil
	}
	if !r.declared.GetEditsEnvelope() {
		return fmt.Errorf("an edit of the envelope that was not declared: %v", e)
	}
	switch e := e.GetEdit().(type) {
	case *wire.Edit_Sender:
		f.Sender = string(e.Sender)
	case *wire.Edit_Recipient:
		f.Recipients[0] = string(e.Recipient)
	case *wire.Edit_AddRecipient:
		f.Recipients = append(f.Recipients, string(e.AddRecipient))
	case *wire.Edit_Copy:
		c := Copy{Sender: string(e.Copy.GetSender()), Head: r.message.head}
		for _, to := range e.Copy.GetRecipients() {
			c.Recipients = append(c.Recipients, string(to))
		}
		for _, field := range e.Copy.GetFields() {
			head, ok := editHead(c.Head, field)
			if !ok {
				return fmt.Errorf("a copy has an edit that is none of its head: %v", field)
			}
			c.Head = head
		}
		f.Copies = append(f.Copies, c)
	default:
		return fmt.Errorf("an edit that is none: %v", e)
	}
	return nil
}

func (r *reading) body(f *Fate, v *wire.Verdict) error {
	if v.GetBody() != nil && !r.declared.GetEditsBody() {
		return errors.New("a new body that was not declared")
	}
	switch b := v.GetBody().(type) {
	case *wire.Verdict_Inline:
		f.Body = string(b.Inline)
	case *wire.Verdict_Path:
		if !slices.Contains(r.dirs, filepath.Dir(b.Path)) {
			return fmt.Errorf("a new body in %s, which is neither in the directory of the message's file nor in state_dir", b.Path)
		}
		content, err := os.ReadFile(b.Path)
		if err != nil {
			return err
		}
		f.Body = string(content)
		return os.Remove(b.Path)
	}
	if strings.ContainsAny(f.Body, "\x00\r") && v.GetBody() != nil {
		return errors.New("a new body with a NUL or CR")
	}
	return nil
}

// editHead makes an edit of a head; ok is false if it is another.
func editHead(head string, e *wire.Edit) (edited string, ok bool) {
	fields := fieldsOf(head)
	switch e := e.GetEdit().(type) {
	case *wire.Edit_Add:
		field := e.Add.GetName() + ": " + string(e.Add.GetValue()) + "\n"
		if e.Add.GetLast() {
			if head != "" && !strings.HasSuffix(head, "\n") {
				head += "\n"
			}
			return head + field, true
		}
		return onTop(fields, field), true
	case *wire.Edit_Change:
		field := e.Change.GetName() + ": " + string(e.Change.GetValue()) + "\n"
		return replace(fields, e.Change.GetName(), int(e.Change.GetNth()), field), true
	case *wire.Edit_Remove:
		return replace(fields, e.Remove.GetName(), int(e.Remove.GetNth()), ""), true
	}
	return head, false
}

// replace puts a field in the place of the nth of a name, or of all.
func replace(fields []string, name string, nth int, field string) string {
	total := 0
	for _, f := range fields {
		if named(f, name) {
			total++
		}
	}
	if nth < 0 {
		nth = total + 1 + nth
		if nth == 0 {
			nth = total + 1
		}
	}
	var out strings.Builder
	count, placed := 0, field == ""
	for _, f := range fields {
		if named(f, name) {
			if count++; nth == 0 || nth == count {
				if !placed {
					placed = true
					out.WriteString(field)
				}
				continue
			}
		}
		out.WriteString(f)
	}
	if !placed {
		return onTop(fieldsOf(out.String()), field)
	}
	return out.String()
}

// onTop adds a field above all others, but below a line that is none, as mbox files
// have it.
func onTop(fields []string, field string) string {
	i := 0
	for i < len(fields) && nameOf(fields[i]) == "" {
		i++
	}
	return strings.Join(slices.Insert(fields, i, field), "")
}

func named(field, name string) bool { return strings.EqualFold(nameOf(field), name) }

// fieldsOf splits a head, with continued lines.
func fieldsOf(head string) (fields []string) {
	for line := range strings.SplitAfterSeq(head, "\n") {
		switch {
		case line == "":
		case len(fields) > 0 && (line[0] == ' ' || line[0] == '\t'):
			fields[len(fields)-1] += line
		default:
			fields = append(fields, line)
		}
	}
	return fields
}
