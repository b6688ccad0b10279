package smtp_test

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/postern-mta/postern/pipeline/envelope"
	"github.com/postern-mta/postern/pipeline/smtp"
)

// chatter is a connection to a server that has said everything before it was asked.
type chatter struct {
	net.Conn
	said  *strings.Reader
	heard bytes.Buffer
}

func (c *chatter) Read(p []byte) (int, error)       { return c.said.Read(p) }
func (c *chatter) Write(p []byte) (int, error)      { return c.heard.Write(p) }
func (c *chatter) Close() error                     { return nil }
func (c *chatter) SetDeadline(time.Time) error      { return nil }
func (c *chatter) SetReadDeadline(time.Time) error  { return nil }
func (c *chatter) SetWriteDeadline(time.Time) error { return nil }

// FuzzConversation speaks to a server that listens to nobody. Whatever it says, it
// never has the message, and is asked for no more than it was told.
func FuzzConversation(f *testing.F) {
	for _, s := range []string{
		"220 x\r\n250 x\r\n250 x\r\n250 x\r\n250 x\r\n354 x\r\n250 x\r\n",
		"220 x\r\n250-x\r\n250 PIPELINING\r\n250 x\r\n250 x\r\n250 x\r\n354 x\r\n250 x\r\n250 x\r\n221 x\r\n",
		"220 x\r\n250-x\r\n250 CHUNKING\r\n250 x\r\n250 x\r\n250 x\r\n250 x\r\n",
		"220 x\r\n250-x\r\n250 PIPELINING\r\n250 x\r\n550 x\r\n550 x\r\n354 x\r\n554 x\r\n",
		"220 x\r\n500 x\r\n250 x\r\n421 x\r\n", "554 x\r\n", "220-x\r\n",
	} {
		f.Add(s, uint8(0))
		f.Add(s, uint8(7))
	}
	f.Fuzz(func(t *testing.T, said string, how uint8) {
		if len(said) > 2000 { // what does not fit the client's buffer cannot be seen in time here
			return
		}
		conn := &chatter{said: strings.NewReader(said)}
		c := smtp.NewClient(conn, smtp.ClientOptions{LockStep: how&1 != 0, Chunking: how&2 != 0, LMTP: how&4 != 0})
		defer c.Close()
		if _, err := c.Greet(t.Context()); err != nil {
			return
		}
		if _, err := c.Hello(t.Context()); err != nil {
			return
		}
		out, err := c.Transaction(t.Context(), envelope.To("a@x.test", "b@y.test", "c@y.test"), smtp.Content{From: strings.NewReader(sample), Size: int64(len(sample) + strings.Count(sample, "\n"))})
		var failed *smtp.Error
		if !errors.As(err, &failed) {
			t.Fatalf("the server has the message: %+v, %v", out, err)
		}
		heard := conn.heard.String()
		sent := strings.HasSuffix(heard, "\r\n.\r\n") && strings.Contains(heard, "Subject:") || strings.Contains(heard, "BDAT ")
		if failed.Perhaps && !sent {
			t.Fatalf("in doubt, and nothing was sent: %v\n%s", failed, heard)
		}
		if sent && !failed.Perhaps && out.Final.Code < 400 && failed.Phase != smtp.Data {
			t.Fatalf("the message was sent, and nobody is in doubt: %v\n%s", failed, heard)
		}
		if strings.ContainsAny(failed.Error(), "\r\n\x00") || len(failed.Reply.Text) > 4<<10 || len(out.Recipients) != 2 {
			t.Fatalf("%q", failed.Error())
		}
	})
}
