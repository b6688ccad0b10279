package auth

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
)

// Cost is what it costs to make or to check an argon2id hash (RFC 9106 §3.1).
type Cost struct {
	Memory uint32 // KiB, at least 8 for each lane
	Passes uint32
	Lanes  uint8
}

// UsualCost is the cost of new hashes: 19 MiB and some tens of milliseconds. It
// is the least that OWASP's password storage cheat sheet recommends, because a
// mail client logs in for every message, and each login that is checked holds
// the memory.
func UsualCost() Cost { return Cost{Memory: 19 << 10, Passes: 2, Lanes: 1} }

// mostCost bounds what a line of a password file may ask for.
func mostCost() Cost { return Cost{Memory: 256 << 10, Passes: 10, Lanes: 16} }

// orElse fills in what was left out.
func (c Cost) orElse(d Cost) Cost {
	orNumber(&c.Memory, d.Memory)
	orNumber(&c.Passes, d.Passes)
	orNumber(&c.Lanes, d.Lanes)
	return c
}

// check reports a cost that cannot be, or exceeds most.
func (c Cost) check(most Cost) error {
	switch {
	case c.Passes < 1 || c.Lanes < 1 || c.Memory < 8*uint32(c.Lanes):
		return fmt.Errorf("m=%d,t=%d,p=%d is no cost: t and p must be at least 1, and m at least 8 times p", c.Memory, c.Passes, c.Lanes)
	case c.Memory > most.Memory:
		return fmt.Errorf("m=%d asks for more memory than the %d KiB that a login may take", c.Memory, most.Memory)
	case c.Passes > most.Passes:
		return fmt.Errorf("t=%d asks for more than the %d passes that a login may take", c.Passes, most.Passes)
	case c.Lanes > most.Lanes:
		return fmt.Errorf("p=%d asks for more than the %d lanes that a login may take", c.Lanes, most.Lanes)
	}
	return nil
}

// Sizes of salt and key, in bytes: of what we make, and of what we take.
const (
	newSalt, newKey   = 16, 32
	minSalt, maxSalt  = 8, 64
	minKey, maxKey    = 16, 64
	maxPHC            = 320
	argon2idV19Prefix = "$argon2id$v=19$"
)

// hash is a password's argon2id hash.
type hash struct {
	cost      Cost
	salt, key []byte
}

// Hash makes the hash of a password as it stands in a password file (the PHC
// string format): "$argon2id$v=19$m=..,t=..,p=..$salt$key". Fields of c that are
// zero are those of UsualCost.
func Hash(password string, c Cost) (string, error) {
	if err := plausible("user", password); err != nil {
		return "", fmt.Errorf("a password has 1 to %d bytes and no NUL", MaxPassword)
	}
	h := hash{cost: c.orElse(UsualCost()), salt: make([]byte, newSalt)}
	if err := h.cost.check(mostCost()); err != nil {
		return "", err
	}
	rand.Read(h.salt) //nolint:errcheck // it never fails
	h.key = h.cost.derive(password, h.salt, newKey)
	return h.String(), nil
}

func (c Cost) derive(password string, salt []byte, size int) []byte {
	return argon2.IDKey([]byte(password), salt, c.Passes, c.Memory, c.Lanes, uint32(size))
}

// String is the PHC string.
func (h hash) String() string {
	b64 := base64.RawStdEncoding.Strict()
	return fmt.Sprintf("%sm=%d,t=%d,p=%d$%s$%s", argon2idV19Prefix, h.cost.Memory, h.cost.Passes, h.cost.Lanes, b64.EncodeToString(h.salt), b64.EncodeToString(h.key))
}

// fits reports whether a password is the one that was hashed.
func (h hash) fits(password string) bool {
	return subtle.ConstantTimeCompare(h.cost.derive(password, h.salt, len(h.key)), h.key) == 1
}

// parseHash reads a PHC string, strictly: what is not written as Hash writes it
// is an error, whose text does not hold any of the hash.
func parseHash(s string, most Cost) (hash, error) {
	if len(s) > maxPHC {
		return hash{}, fmt.Errorf("the hash has more than %d bytes", maxPHC)
	}
	rest, ok := strings.CutPrefix(s, argon2idV19Prefix)
	parts := strings.Split(rest, "$")
	if !ok || len(parts) != 3 {
		return hash{}, errors.New("the hash must look like $argon2id$v=19$m=19456,t=2,p=1$salt$key; \"postern password\" makes one")
	}
	var h hash
	var err error
	if h.cost, err = parseCost(parts[0]); err != nil {
		return hash{}, err
	}
	if err := h.cost.check(most); err != nil {
		return hash{}, err
	}
	if h.salt, err = decode(parts[1], "salt", minSalt, maxSalt); err != nil {
		return hash{}, err
	}
	h.key, err = decode(parts[2], "key", minKey, maxKey)
	return h, err
}

// parseCost reads "m=..,t=..,p=..".
func parseCost(s string) (Cost, error) {
	fields := strings.Split(s, ",")
	if len(fields) != 3 {
		return Cost{}, errors.New("the hash's cost must look like m=19456,t=2,p=1")
	}
	var n [3]uint64
	for i, key := range [...]string{"m=", "t=", "p="} {
		digits, ok := strings.CutPrefix(fields[i], key)
		bits := 32
		if key == "p=" {
			bits = 8
		}
		var err error
		n[i], err = strconv.ParseUint(digits, 10, bits)
		if !ok || err != nil || strconv.FormatUint(n[i], 10) != digits {
			return Cost{}, fmt.Errorf("the hash's cost must look like m=19456,t=2,p=1; its part %d does not", i+1)
		}
	}
	return Cost{Memory: uint32(n[0]), Passes: uint32(n[1]), Lanes: uint8(n[2])}, nil
}

// decode reads one base64 part of a hash.
func decode(s, what string, least, most int) ([]byte, error) {
	// Decoders skip line ends; a strict one that is asked again does not.
	b64 := base64.RawStdEncoding.Strict()
	b, err := b64.DecodeString(s)
	switch {
	case err != nil || b64.EncodeToString(b) != s:
		return nil, fmt.Errorf("the hash's %s is not base64 without padding", what)
	case len(b) < least || len(b) > most:
		return nil, fmt.Errorf("the hash's %s has %d bytes, not %d to %d", what, len(b), least, most)
	}
	return b, nil
}
