package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern-mta/postern/pipeline/mime"
)

func mimeCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "mime [flags] MESSAGE",
		Short: "Show a saved message as a tree of parts, in every reading",
		Long: `Read a saved message (- for standard input) as the filters do that judge attachments,
and print its parts with every name that each may have and its content under every
decoding that a mail program may apply.

A line marked with ! is not in the standard's reading: in brackets stands why some
program comes to it. At the end stand the places where programs differ, each with its
severity (notice, odd, contradiction), and the limits that the message goes beyond.
The message is read as it stands, without the repairs of an entrance.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return runMIME(c.Context(), args[0], c.InOrStdin(), c.OutOrStdout(), asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func runMIME(ctx context.Context, file string, stdin io.Reader, out io.Writer, asJSON bool) (err error) {
	f, err := openSaved(file, stdin)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file: save the message in one, or give - and write it to standard input", file)
	}
	m, err := mime.Read(ctx, f, info.Size(), mime.Options{})
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	x, err := showMIME(m)
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(x)
	}
	return x.print(out)
}

// openSaved opens a saved message, which may be large and is read at offsets:
// standard input goes into a file without a name.
func openSaved(file string, stdin io.Reader) (*os.File, error) {
	if file != "-" {
		return os.Open(file)
	}
	f, err := os.CreateTemp("", "postern-mime-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := io.Copy(f, stdin); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// shownMessage is a message as it is shown. Readings are lists of reasons; an
// empty one is the standard's.
type shownMessage struct {
	Parts    []shownPart    `json:"parts"`
	Findings []shownFinding `json:"findings"`
	Exceeded []shownExcess  `json:"exceeded"`
}

type shownPart struct {
	Path      string         `json:"path"`
	Role      string         `json:"role"`
	Reading   []string       `json:"reading"`
	Types     []shownType    `json:"types"`
	Encodings []string       `json:"encodings,omitempty"`
	Names     []shownName    `json:"names,omitempty"`
	Contents  []shownContent `json:"contents,omitempty"`
	Offset    int64          `json:"offset"`
	Size      int64          `json:"size"`
	Decoded   bool           `json:"decoded,omitempty"`
}

type shownType struct {
	Type    string   `json:"type"`
	Reading []string `json:"reading"`
}

type shownName struct {
	Source  string      `json:"source"`
	Name    string      `json:"name"`
	Raw     string      `json:"raw"`
	Reading []string    `json:"reading"`
	Forms   []shownForm `json:"forms"`
}

type shownForm struct {
	Name       string   `json:"name"`
	Extensions []string `json:"extensions,omitempty"`
	Disguise   string   `json:"disguise,omitempty"`
}

type shownContent struct {
	How     string   `json:"how"`
	Reading []string `json:"reading"`
	Size    int64    `json:"size"`
	SHA256  string   `json:"sha256"`
	Begins  string   `json:"begins"` // its first bytes, quoted as in Go
}

type shownFinding struct {
	Severity string `json:"severity"`
	Reason   string `json:"reason"`
	Path     string `json:"path"`
	Detail   string `json:"detail,omitempty"`
	text     string
}

type shownExcess struct {
	Limit string `json:"limit"`
	Path  string `json:"path"`
	text  string
}

// showMIME decodes every content once.
func showMIME(m *mime.Message) (*shownMessage, error) {
	x := &shownMessage{Parts: []shownPart{}, Findings: []shownFinding{}, Exceeded: []shownExcess{}}
	for p := range m.Walk() {
		s, err := showPart(p)
		if err != nil {
			return nil, err
		}
		x.Parts = append(x.Parts, s)
	}
	for _, f := range m.Findings {
		x.Findings = append(x.Findings, shownFinding{f.Severity.String(), f.Reason.String(), f.Path, f.Detail, f.String()})
	}
	for _, e := range m.Exceeded {
		x.Exceeded = append(x.Exceeded, shownExcess{e.Limit.String(), e.Path, e.String()})
	}
	return x, nil
}

func showPart(p *mime.Part) (shownPart, error) {
	s := shownPart{
		Path: p.Path, Role: p.Role.String(), Reading: reasonsOf(p.Reading), Encodings: p.Encodings,
		Offset: p.Offset, Size: p.Size, Decoded: p.Decoded,
	}
	for _, t := range p.Types {
		s.Types = append(s.Types, shownType{t.Value, reasonsOf(t.Reading)})
	}
	for _, n := range p.Names {
		name := shownName{n.Source.String(), n.Text, n.Raw, reasonsOf(n.Reading), []shownForm{}}
		for _, form := range n.Normal() {
			f := shownForm{Name: form.Text, Extensions: form.Extensions()}
			if form.Disguise != 0 {
				f.Disguise = form.Disguise.String()
			}
			name.Forms = append(name.Forms, f)
		}
		s.Names = append(s.Names, name)
	}
	for _, c := range p.Contents {
		shown, err := showContent(c)
		if err != nil {
			return s, fmt.Errorf("part %s: %w", p.Path, err)
		}
		s.Contents = append(s.Contents, shown)
	}
	return s, nil
}

// beginsWith is how many of a content's first bytes are shown.
const beginsWith = 16

func showContent(c mime.Content) (shownContent, error) {
	r := c.Open()
	begins := make([]byte, beginsWith)
	n, err := io.ReadFull(r, begins)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return shownContent{}, err
	}
	begins = begins[:n]
	sum := sha256.New()
	sum.Write(begins)
	rest, err := io.Copy(sum, r)
	return shownContent{
		How: c.How.String(), Reading: reasonsOf(c.Reading), Size: int64(n) + rest,
		SHA256: hex.EncodeToString(sum.Sum(nil)), Begins: strconv.QuoteToASCII(string(begins)),
	}, err
}

func reasonsOf(r mime.Reading) []string {
	words := []string{}
	for _, x := range r.Reasons() {
		words = append(words, x.String())
	}
	return words
}

// print writes the tree for people: what a part's own reading does not have is
// marked, with what is needed beyond it.
func (x *shownMessage) print(w io.Writer) error {
	var b strings.Builder
	for _, p := range x.Parts {
		indent := strings.Repeat("  ", strings.Count(p.Path, "."))
		role := ""
		if p.Role != mime.Entity.String() {
			role = " " + p.Role
		}
		line := func(reading []string, format string, args ...any) {
			fmt.Fprintf(&b, "%s%s    %s%s\n", differs(p.Reading, reading), indent, fmt.Sprintf(format, args...), bracket(p.Reading, reading))
		}
		fmt.Fprintf(&b, "%s%s%s%s %s, %d bytes at %d%s%s\n", differs(nil, p.Reading), indent, p.Path, role, clean(p.Types[0].Type), p.Size, p.Offset, decodedWord(p.Decoded), bracket(nil, p.Reading))
		for _, t := range p.Types[1:] {
			line(t.Reading, "type %s", clean(t.Type))
		}
		for _, n := range p.Names {
			line(n.Reading, "%s %q", n.Source, clean(n.Name))
			for _, f := range n.Forms {
				if f.Name != n.Name {
					line(n.Reading, "  as %q%s", clean(f.Name), optional(", ", f.Disguise))
				}
			}
		}
		for _, c := range p.Contents {
			line(c.Reading, "%s %d bytes, sha256 %s, %s", c.How, c.Size, c.SHA256, c.Begins)
		}
	}
	if len(x.Findings)+len(x.Exceeded) > 0 {
		b.WriteByte('\n')
	}
	for _, f := range x.Findings {
		fmt.Fprintf(&b, "%-13s %s: %s\n", f.Severity, f.Reason, clean(f.text))
	}
	for _, e := range x.Exceeded {
		fmt.Fprintf(&b, "%-13s %s: %s\n", "limit", e.Limit, clean(e.text))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func decodedWord(yes bool) string {
	if yes {
		return " of what is decoded"
	}
	return ""
}

// beyond are the reasons of a reading that another does not have.
func beyond(known, reading []string) []string {
	return slices.DeleteFunc(slices.Clone(reading), func(r string) bool { return slices.Contains(known, r) })
}

func differs(known, reading []string) string {
	if len(beyond(known, reading)) > 0 {
		return "! "
	}
	return "  "
}

func bracket(known, reading []string) string {
	if more := beyond(known, reading); len(more) > 0 {
		return " [" + strings.Join(more, " ") + "]"
	}
	return ""
}
