package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/postern-mta/postern/cmd/postern/config"
	"github.com/postern-mta/postern/pipeline/ingress/certs"
)

// vault holds the certificates of the SMTP entrances: one store for those that
// use all there are, which alone asks an ACME server, and one for each list of
// names that an entrance gives instead. It is made while the daemon may still
// be root, and again when a reload changes what it is made of.
type vault struct {
	number int // of the vaults of this daemon
	of     vaultSettings
	stores map[string]*certs.Store
	cancel context.CancelFunc
	done   sync.WaitGroup
	// managed is set once somebody looks after the certificates.
	managed bool
}

// vaultSettings are what a vault is made of.
type vaultSettings struct {
	hostname, state string
	certificates    map[string]*config.Certificate
	acme            config.ACME
	lists           map[string][]string
}

func vaultSettingsOf(c *config.Config) vaultSettings {
	s := vaultSettings{hostname: c.Hostname, state: c.State, certificates: c.Certificate, acme: c.ACME, lists: map[string][]string{}}
	for _, l := range c.Listen {
		if usesTLS(l) {
			s.lists[storeOf(c, l)] = l.Certificates
		}
	}
	return s
}

// tlsDir is where certificates of our own making and of an ACME server are kept.
func tlsDir(c *config.Config) string { return filepath.Join(c.State, "tls") }

func usesTLS(l *config.Listen) bool { return l.IsSMTP() && l.TLS != "off" }

// storeOf names the store of an entrance: "" for the one of all certificates.
func storeOf(c *config.Config, l *config.Listen) string {
	if slices.Equal(l.Certificates, sortedKeys(c.Certificate)) {
		return ""
	}
	return strings.Join(l.Certificates, " ")
}

// openVault reads every certificate that an entrance uses. What can no longer
// be read without root is taken over from the vault before.
func openVault(c *config.Config, before *vault, log *slog.Logger) (*vault, error) {
	v := &vault{of: vaultSettingsOf(c), stores: map[string]*certs.Store{}}
	if before != nil {
		v.number = before.number + 1
	}
	if len(v.of.lists) > 0 {
		if err := os.MkdirAll(tlsDir(c), 0o700); err != nil {
			return nil, fmt.Errorf("certificates: %w", err)
		}
	}
	for _, name := range sortedKeys(v.of.lists) {
		o := certs.Options{Hostname: c.Hostname, State: tlsDir(c), Log: log, Pairs: pairsOf(c, v.of.lists[name])}
		if before != nil {
			o.From = before.stores[name]
		}
		if a := c.ACME; name == "" && len(a.Names) > 0 {
			o.Fallback = a.Fallback
			o.ACME = &certs.ACME{
				Where: "acme", Names: a.Names, Directory: a.Directory, Roots: a.CA, Email: a.Email, Agreed: a.Agree, HTTP: a.Address,
			}
		}
		s, err := certs.New(o)
		if err != nil {
			v.close()
			return nil, fmt.Errorf("certificates: %w", err)
		}
		v.stores[name] = s
	}
	return v, nil
}

// pairsOf are the certificates of some names.
func pairsOf(c *config.Config, names []string) (all []certs.Pair) {
	for _, name := range names {
		from := c.Certificate[name]
		all = append(all, certs.Pair{Cert: from.Cert, Key: from.Key, Where: "certificate." + name})
	}
	return all
}

// manage obtains, renews and warns, until the vault is closed.
func (v *vault) manage(log *slog.Logger) {
	ctx, cancel := context.WithCancel(context.Background())
	v.cancel, v.managed = cancel, true
	for _, s := range v.stores {
		v.done.Add(1)
		go func() {
			defer v.done.Done()
			if err := s.Manage(ctx); err != nil {
				log.Error("certificates are no longer looked after", "error", err)
			}
		}()
	}
}

// reload looks at the files. A broken pair leaves the old one in force.
func (v *vault) reload(log *slog.Logger) {
	for _, s := range v.stores {
		if err := s.Reload(); err != nil {
			log.Error("certificates", "error", err)
		}
	}
}

// close ends the looking after; configurations made before go on serving.
func (v *vault) close() {
	if v == nil {
		return
	}
	if v.cancel != nil {
		v.cancel()
	}
	for _, s := range v.stores {
		s.Close() //nolint:errcheck // there is nothing left to do about it
	}
	v.done.Wait()
}

// policy is what an entrance wants of TLS.
func policy(l *config.Listen) certs.Policy {
	p := certs.Policy{Where: "listen." + l.Name, MinVersion: "tls" + l.TLSMin, Ciphers: l.TLSCiphers}
	if l.TLSClient {
		p.ClientCerts = certs.ClientRequest
	}
	return p
}

// same reports whether a vault for a configuration would be this one.
func (v *vault) same(c *config.Config) bool {
	return v != nil && reflect.DeepEqual(v.of, vaultSettingsOf(c))
}
