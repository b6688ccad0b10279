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

// requestTime is how long a request may take that does not say otherwise.
const requestTime = 2 * time.Minute

// NewClient returns a client of the socket at path. Each request has two
// minutes at most, those that may go through the whole queue an hour.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{socket: path, http: http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
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
	content, err := c.fetch(ctx, requestTime, method, path, body)
	if err != nil {
		return err
	}
	return json.Unmarshal(content, into)
}

// fetch is an answer as it came.
func (c *Client) fetch(ctx context.Context, limit time.Duration, method, path string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://postern"+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, c.silence(err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if len(content) == maxAnswer {
		return nil, fmt.Errorf("daemon answered more than %d MiB", maxAnswer>>20)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, refused(resp.Status, content)
	}
	return content, nil
}

// refusal is the error that an answer other than 200 tells.
func refusal(resp *http.Response) error {
	content, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return err
	}
	return refused(resp.Status, content)
}

func refused(status string, content []byte) error {
	var e api.Error
	if json.Unmarshal(content, &e) == nil && e.Error != "" {
		return errors.New(e.Error)
	}
	return fmt.Errorf("daemon answered %s", status)
}

// ErrNoDaemon is wrapped by the errors of a Client that finds nobody at its
// socket.
var ErrNoDaemon = errors.New("no daemon answers")

// silence puts into words that no answer came.
func (c *Client) silence(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return fmt.Errorf("%w on %s (is postern serve running, and may you open the socket?): %w", ErrNoDaemon, c.socket, err)
	}
	return fmt.Errorf("the daemon on %s gave no answer: %w", c.socket, err)
}
