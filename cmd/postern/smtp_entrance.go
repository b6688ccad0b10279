package main

import (
	"errors"

	"github.com/postern-mta/postern/cmd/postern/config"
)

// smtpSettings is what an SMTP server depends on besides its own table.
type smtpSettings struct{ hostname string }

func smtpSettingsOf(c *config.Config, l *config.Listen) smtpSettings {
	return smtpSettings{hostname: c.Hostname}
}

func (d *daemon) equipSMTP(c *config.Config, l *config.Listen, listener socket, ch *change) error {
	return errors.New("not yet")
}
