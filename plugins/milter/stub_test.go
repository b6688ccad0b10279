package milter

import (
	"encoding/binary"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	gomilter "github.com/emersion/go-milter"
	"go.uber.org/goleak"

	"github.com/postern-mta/postern/pipeline"
	"github.com/postern-mta/postern/pipeline/filtertest"
	"github.com/postern-mta/postern/pipeline/servers/serverstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a milter that does as its script says.
type fake struct {
	version uint32
	actions gomilter.OptAction
	flags   gomilter.OptProtocol
	lists   string // of macros, as they are sent
	// says is what it answers to a command: "E", or "R<a@b>" with its first
	// argument. What is not there it lets go on. An answer that is "-" closes.
	says map[string]string
	// quits has it forget QUIT_NC.
	quits bool

	mu    sync.Mutex
	heard []string // but macros
	given []string // macros, "M i=T1 {mail_addr}=a@b"
	dials int
}

// packet is one packet.
func packet(code byte, data string) string {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(data)+1))
	return string(append(b, code)) + data
}

// indexed is a modification with a number.
func indexed(code byte, n uint32, name, value string) string {
	return packet(code, string(binary.BigEndian.AppendUint32(nil, n))+name+"\x00"+value+"\x00")
}

// next reads a packet.
func next(r io.Reader) (code byte, data string, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, "", err
	}
	b := make([]byte, binary.BigEndian.Uint32(head[:])-1)
	_, err = io.ReadFull(r, b)
	return head[4], string(b), err
}

// terms is its answer to an offer.
func (f *fake) terms() string {
	b := binary.BigEndian.AppendUint32(nil, f.version)
	b = binary.BigEndian.AppendUint32(b, uint32(f.actions))
	return packet('O', string(binary.BigEndian.AppendUint32(b, uint32(f.flags)))+f.lists)
}

// mute are the flags by which a command has no answer.
var mute = map[byte]gomilter.OptProtocol{
	'C': gomilter.OptNoConnReply, 'H': gomilter.OptNoHeloReply, 'M': gomilter.OptNoMailReply, 'R': gomilter.OptNoRcptReply, 'T': gomilter.OptNoDataReply,
	'L': gomilter.OptNoHeaderReply, 'N': gomilter.OptNoEOHReply, 'B': gomilter.OptNoBodyReply,
}

// play has a conversation.
func (f *fake) play(c *serverstest.Conn) {
	f.mu.Lock()
	f.dials++
	f.mu.Unlock()
	for {
		code, data, err := next(c.R)
		if err != nil {
			return
		}
		first, _, _ := strings.Cut(data, "\x00")
		f.mu.Lock()
		switch code {
		case 'D':
			f.given = append(f.given, macrosGiven(data))
		default:
			f.heard = append(f.heard, string(rune(code))+strings.ReplaceAll(strings.TrimSuffix(data, "\x00"), "\x00", "|"))
		}
		answer, ok := f.says[string(rune(code))+first]
		if !ok {
			answer, ok = f.says[string(rune(code))]
		}
		f.mu.Unlock()
		switch {
		case answer == "-", code == 'Q', code == 'K' && f.quits:
			return
		case code == 'O' && !ok:
			answer = f.terms()
		case code == 'D' || code == 'A' || code == 'K' || f.flags&mute[code] != 0:
			continue
		case !ok:
			answer = packet('c', "")
		}
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
		c.Stub.Answers.Add(1)
	}
}

func macrosGiven(data string) string {
	s := data[:1]
	parts := strings.Split(strings.TrimSuffix(data[1:], "\x00"), "\x00")
	for i := 0; i+1 < len(parts); i += 2 {
		s += " " + parts[i] + "=" + parts[i+1]
	}
	return s
}

// words are what it heard, once.
func (f *fake) words() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.heard
	f.heard = nil
	return all
}

func (f *fake) macros() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.given
	f.given = nil
	return all
}

// newFake is one that does and wants everything.
func newFake(says map[string]string) *fake {
	return &fake{version: newest, actions: allActions &^ gomilter.OptSetSymList, flags: 0, says: says}
}

// start has it listen.
func (f *fake) start(t testing.TB) *serverstest.Stub { return serverstest.Start(t, "unix", f.play) }

func newFilter(t testing.TB, config string, addresses ...string) *Filter {
	t.Helper()
	env := pipeline.Env{Log: slog.New(slog.DiscardHandler), Host: "mx.example.org"}
	f, err := Kind().New(env, filtertest.Decode("address = [\""+strings.Join(addresses, `", "`)+"\"]\n"+config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.(*Filter).Close() })
	return f.(*Filter)
}

// open begins a session.
func (f *Filter) open(t testing.TB) *instance {
	t.Helper()
	i, err := f.Open(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return i.(*instance)
}

// edits are the edits of a verdict as a trace has them.
func edits(v pipeline.Verdict) (all []string) {
	for _, e := range v.Edits {
		all = append(all, e.String())
	}
	return all
}

func wantList(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// large is longer than what a socket holds.
var large = "Subject: large\n\n" + strings.Repeat(strings.Repeat("x", 70)+"\n", 9000)

// eom is a script of what is said at the end of a message, and then accept.
func eom(packets ...string) map[string]string {
	return map[string]string{"E": strings.Join(packets, "") + packet('a', "")}
}
