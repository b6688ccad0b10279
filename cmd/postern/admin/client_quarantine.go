package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
)

// Quarantine calls f for the messages in quarantine that are wanted, as Queue
// does for those of the whole queue.
func (c *Client) Quarantine(ctx context.Context, q QueueQuery, f func(*api.QueueMessage) error) (QueueRest, error) {
	return c.walk(ctx, "/v1/quarantine?", q, f)
}

// QuarantineShow asks for one message in quarantine with all that is known of it.
func (c *Client) QuarantineShow(ctx context.Context, id string) (api.QueueMessage, error) {
	return c.showMessage(ctx, "/v1/quarantine/"+url.PathEscape(id))
}

// QuarantineRaw writes a message in quarantine to w, as it is stored.
func (c *Client) QuarantineRaw(ctx context.Context, id string, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, longWork)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", "http://postern/v1/quarantine/"+url.PathEscape(id)+"/raw", bytes.NewReader(nil))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return c.silence(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return refusal(resp)
	}
	n, err := io.Copy(w, resp.Body)
	if err == nil && resp.ContentLength >= 0 && n != resp.ContentLength {
		err = fmt.Errorf("the message ends after %d bytes of %d", n, resp.ContentLength)
	}
	return err
}

// QuarantineRelease has messages in quarantine go on.
func (c *Client) QuarantineRelease(ctx context.Context, r api.QuarantineRelease) (a api.QuarantineReleased, err error) {
	content, err := c.fetch(ctx, longWork, "POST", "/v1/quarantine/release", r)
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(content, &a)
}

// QuarantineDelete removes messages in quarantine for good.
func (c *Client) QuarantineDelete(ctx context.Context, s api.QueueSelect) (n api.QueueChanged, err error) {
	content, err := c.fetch(ctx, longWork, "POST", "/v1/quarantine/delete", s)
	if err != nil {
		return n, err
	}
	return n, json.Unmarshal(content, &n)
}
