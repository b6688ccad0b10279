package envelope

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"unsafe"

	"github.com/postern-mta/postern/pipeline/reply"
)

// Limits bound what Read keeps. Zero fields mean the defaults.
type Limits struct {
	// Recipients is the largest number of recipients; default DefaultRecipients.
	Recipients int
	// Bytes is the largest total of all addresses; default 32 MiB.
	Bytes int
}

// DefaultRecipients is the default of Limits.Recipients.
const DefaultRecipients = 100_000

const defaultBytes = 32 << 20

// Read reads an envelope as qmail-queue does (qmail-queue.8): F, the sender
// and a NUL; for each recipient T, the address and a NUL; a NUL. A record Q
// ends the list as well and sets NoScan (s/qmail). Bytes after the end are not
// looked at, though some may have been read from r.
//
// Errors are *reply.Error: reply.ReadError for an envelope that ends early,
// reply.BadEnvelope for a wrong letter, reply.AddressTooLong,
// reply.BadAddress, and reply.TooManyRecipients for whatever exceeds a limit.
func Read(r io.Reader, limits Limits) (Envelope, error) {
	if limits.Recipients == 0 {
		limits.Recipients = DefaultRecipients
	}
	if limits.Bytes == 0 {
		limits.Bytes = defaultBytes
	}
	d := decoder{in: bufio.NewReader(r), limits: limits}
	e, err := d.envelope()
	if err != nil {
		return Envelope{}, err
	}
	return e, nil
}

type decoder struct {
	in     *bufio.Reader
	limits Limits
	bytes  int
	// block holds the addresses; strings point into it, so that a hundred
	// thousand recipients are not a hundred thousand allocations.
	block []byte
}

func (d *decoder) envelope() (Envelope, error) {
	letter, err := d.letter()
	if err != nil {
		return Envelope{}, err
	}
	if letter != 'F' {
		return Envelope{}, reply.With(reply.BadEnvelope, fmt.Errorf("envelope begins with byte %#02x, not with F", letter))
	}
	var e Envelope
	if e.Sender, err = d.address(); err != nil {
		return Envelope{}, fmt.Errorf("envelope sender: %w", err)
	}
	for {
		if letter, err = d.letter(); err != nil {
			return Envelope{}, err
		}
		switch letter {
		case 0:
			return e, nil
		case 'Q':
			e.NoScan = true
			return e, nil
		case 'T':
		default:
			return Envelope{}, reply.With(reply.BadEnvelope, fmt.Errorf("envelope record %d begins with byte %#02x, not with T", len(e.Recipients)+1, letter))
		}
		if len(e.Recipients) >= d.limits.Recipients {
			return Envelope{}, reply.With(reply.TooManyRecipients, fmt.Errorf("more than %d recipients", d.limits.Recipients))
		}
		a, err := d.address()
		if err != nil {
			return Envelope{}, fmt.Errorf("envelope recipient %d: %w", len(e.Recipients)+1, err)
		}
		e.Recipients = append(e.Recipients, Recipient{Address: a})
	}
}

func (d *decoder) letter() (byte, error) {
	c, err := d.in.ReadByte()
	if err != nil {
		return 0, ended(err)
	}
	return c, nil
}

func ended(err error) error {
	if errors.Is(err, io.EOF) {
		err = errors.New("envelope ended early")
	} else {
		err = fmt.Errorf("reading the envelope: %w", err)
	}
	return reply.With(reply.ReadError, err)
}

// address reads up to the NUL. The length is checked byte by byte: nothing
// longer than MaxAddress is ever kept.
func (d *decoder) address() (string, error) {
	if cap(d.block)-len(d.block) < MaxAddress {
		d.block = make([]byte, 0, 64*1024)
	}
	start := len(d.block)
	clean := true
	for {
		c, err := d.in.ReadByte()
		if err != nil {
			return "", ended(err)
		}
		if c == 0 {
			break
		}
		if len(d.block)-start == MaxAddress {
			return "", reply.With(reply.AddressTooLong, fmt.Errorf("address of more than %d bytes", MaxAddress))
		}
		clean = clean && c >= 0x20 && c != 0x7f
		d.block = append(d.block, c)
	}
	a := d.block[start:]
	if d.bytes += len(a); d.bytes > d.limits.Bytes {
		return "", reply.With(reply.TooManyRecipients, fmt.Errorf("addresses of more than %d bytes in all", d.limits.Bytes))
	}
	if !clean {
		return "", reply.With(reply.BadAddress, fmt.Errorf("address %q holds a control character", a))
	}
	if len(a) == 0 {
		return "", nil
	}
	return unsafe.String(&a[0], len(a)), nil
}

// Append appends e in the format that Read reads. It fails, appending nothing,
// if an address holds a NUL or is longer than MaxAddress: such an envelope
// would be read back as another.
func Append(b []byte, e Envelope) ([]byte, error) {
	if err := writable(e.Sender); err != nil {
		return b, fmt.Errorf("envelope sender: %w", err)
	}
	for i, r := range e.Recipients {
		if err := writable(r.Address); err != nil {
			return b, fmt.Errorf("envelope recipient %d: %w", i+1, err)
		}
	}
	b = append(b, 'F')
	b = append(b, e.Sender...)
	b = append(b, 0)
	for _, r := range e.Recipients {
		b = append(b, 'T')
		b = append(b, r.Address...)
		b = append(b, 0)
	}
	if e.NoScan {
		return append(b, 'Q'), nil
	}
	return append(b, 0), nil
}

func writable(address string) error {
	if len(address) > MaxAddress {
		return reply.With(reply.AddressTooLong, fmt.Errorf("address of %d bytes", len(address)))
	}
	for i := 0; i < len(address); i++ {
		if address[i] == 0 {
			return reply.With(reply.BadAddress, fmt.Errorf("address %q holds a NUL", address))
		}
	}
	return nil
}
