package move

import (
	"os"
	"strings"

	"github.com/postern-mta/postern/filters/execban"
	"github.com/postern-mta/postern/filters/execban/content"
	"github.com/postern-mta/postern/pipeline"
)

// signatures makes a filter execban that goes by a file of signatures, which
// stays where it is.
func (im *importer) signatures(f *file) error {
	n := 0
	for _, l := range f.lines {
		if l.isComment() {
			continue
		}
		if _, err := content.ParseSignatures(strings.NewReader(l.text)); err != nil {
			f.none(l, "%v. Instead: take the line out of the file.", err)
			continue
		}
		n++
		if i := strings.IndexByte(l.text, ':'); i > 0 {
			f.note(l, "nothing that is encoded has a colon, so this line matches only what is not. If it is indimail's, where a comment stands behind a colon, leave %s in the file.", tidy(l.text[:i], 80))
		}
	}
	if n == 0 {
		f.about = append(f.about, "There is no signature in it.")
		return nil
	}
	if why := safe(f.path); why != "" {
		f.missing("the file's path cannot stand in a configuration: %s. Instead: put the file elsewhere.", why)
		return nil
	}
	if _, err := execban.New(pipeline.Env{}, execban.Options{
		Unscannable: "pass", Strictness: "never", Depth: 1, Members: 1, Parts: 1, Bytes: 1, Member: 1, Time: 1, Signatures: f.path,
	}); err != nil {
		f.missing("execban, which reads the file as it stands, does not take it: %v. Instead: mend the lines below, and import the file again; until then nothing is refused by it.", err)
		return nil
	}
	f.remark("the file stays in use: execban reads it with the configuration. qmail looks at the first line behind the blank one of each part that it sees; execban does so for every part that a mail program may see.")
	b := im.add(f, "signatures", "execban")
	im.notLocal(b)
	b.line("signatures = %s", quote(f.path))
	b.line(`refuse = ["signatures"]`)
	im.nothingElse(b)
	return nil
}

// notLocal has a filter do what only qmail-smtpd did.
func (im *importer) notLocal(b *page) {
	b.line("when = %s # only qmail-smtpd looked at it, and not at what local programs send", quote(`standing != "local"`))
}

// nothingElse has an execban refuse only what it is told.
func (im *importer) nothingElse(b *page) {
	b.text("", "Without the next three lines execban also refuses programs, scripts and documents with macros by their content, and what cannot be looked at.")
	b.line(`pass = ["all"]`)
	b.line(`unscannable = "pass"`)
	b.line(`strictness = "never"`)
}

// isFile reports whether there is a regular file.
func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
