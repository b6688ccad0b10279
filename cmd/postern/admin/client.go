package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/postern-mta/postern/cmd/postern/admin/api"
)

// Client asks a daemon over its admin socket.
type Client struct {
	socket string
	http   http.Client
}

// maxAnswer bounds what a client reads of an answer, in bytes.
const maxAnswer = 64 << 20

// NewClient returns a client of the socket at path. Each request has two
// minutes at most.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{socket: path, http: http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status asks for the daemon's state.
func (c *Client) Status(ctx context.Context) (s api.Status, err error) {
	err = c.call(ctx, "GET", "/v1/status", nil, &s)
	return s, err
}

// Filters asks for the filters and their modes.
func (c *Client) Filters(ctx context.Context) (f []api.Filter, err error) {
	err = c.call(ctx, "GET", "/v1/filters", nil, &f)
	return f, err
}

// SetFilter sets a filter's mode.
func (c *Client) SetFilter(ctx context.Context, name string, s api.SetFilter) (f api.Filter, err error) {
	err = c.call(ctx, "PUT", "/v1/filters/"+url.PathEscape(name), s, &f)
	return f, err
}

// Reload has the daemon read its configuration again.
func (c *Client) Reload(ctx context.Context) (r api.Reload, err error) {
	err = c.call(ctx, "POST", "/v1/reload", nil, &r)
	return r, err
}

func (c *Client) call(ctx context.Context, method, path string, body, into any) error {
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return err
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://postern"+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return fmt.Errorf("no daemon answers on %s (is postern serve running, and may you open the socket?): %w", c.socket, err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		var e api.Error
		if json.Unmarshal(content, &e) == nil && e.Error != "" {
			return errors.New(e.Error)
		}
		return fmt.Errorf("daemon answered %s", resp.Status)
	}
	return json.Unmarshal(content, into)
}
