package content

import (
	"bytes"
	"strings"
	"testing"

	"github.com/postern-mta/postern/filters/execban/archive/archivetest"
)

// biff is records of a workbook.
func biff(records ...string) string {
	var b strings.Builder
	for _, r := range records {
		b.WriteString(r[:2] + string([]byte{byte(len(r) - 2), 0}) + r[2:])
	}
	return b.String()
}

func TestCompound(t *testing.T) {
	const bof, eof = "\x09\x08\x00\x06\x05\x00", "\x0a\x00"
	sheet := func(kind string) string { return "\x85\x00\x00\x00\x00\x00\x00" + kind + "\x02\x00S1" }
	installer := [16]byte{0x84, 0x10, 0x0c, 0, 0, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0x46}
	encrypted := strings.Repeat("\x00", wordFlags) + "\x00\x01"
	for _, c := range []struct {
		what    string
		content []byte
		want    string
	}{
		{"a document", archivetest.OLE([2]string{"WordDocument", "text"}, [2]string{"ObjectPool/x", ""}), ""},
		{"a workbook", archivetest.OLE([2]string{"Workbook", biff(bof, sheet("\x00"), eof)}), ""},
		{"macros", archivetest.OLE([2]string{"WordDocument", "text"}, [2]string{"VBA/dir", "x"}), OfficeMacros},
		{"macros by their storage", archivetest.OLE([2]string{"Macros/PROJECT", "x"}), OfficeMacros},
		{"macros by their source", archivetest.OLE([2]string{"x/y", "\x01\x00\xb0\x00Attribut\x00e VB_Name"}), OfficeMacros},
		{"macros in what is damaged", []byte(compoundMagic + strings.Repeat("\xff", 2000) + "\x00Attribut\x00e VB_Name"), OfficeMacros},
		{"macros of Excel 4", archivetest.OLE([2]string{"Workbook", biff(bof, sheet("\x01"), eof)}), OfficeMacros},
		{"a workbook with a password", archivetest.OLE([2]string{"Workbook", biff(bof, "\x2f\x00\x01\x00", eof)}), ArchivesEncrypted},
		{"a document with a password", archivetest.OLE([2]string{"WordDocument", encrypted}), ArchivesEncrypted},
		{"a new document with a password", archivetest.OLE([2]string{"EncryptedPackage", "x"}), ArchivesEncrypted},
		{"a package", archivetest.OLE([2]string{"ObjectPool/\x01Ole10Native", archivetest.Package("a.exe", []byte("MZ"))}), OfficeEmbedded},
		{"an equation", archivetest.OLE([2]string{"x/Equation Native", "x"}), OfficeEmbedded},
		{"an installer", archivetest.OLEOf(installer, [2]string{"x", "x"}), Installers},
		{"cut off", archivetest.OLE([2]string{"VBA/dir", "x"})[:700], ""},
	} {
		got := Identify("", bytes.NewReader(c.content), int64(len(c.content)))
		if classes(got) != c.want {
			t.Errorf("%s: %v, want %q", c.what, got, c.want)
		}
	}
}

// FuzzIdentify looks at what comes; the same bytes are told to be the same twice.
func FuzzIdentify(f *testing.F) {
	f.Add("a.csv", []byte("name,=cmd|' /c calc'!A1\n"))
	f.Add("", []byte(pe(128)))
	f.Add("", archivetest.OLE([2]string{"VBA/dir", "x"}))
	f.Add("", []byte(`{\rt {\object\objemb{\*\objdata 0105}}}`))
	f.Add("", []byte("%PDF-1.7\n<</S /J#61vaScript /J#53 (x)>>"))
	f.Add("", []byte(oneNoteFile+oneNoteObject+"\x05\x00\x00\x00\x00\x00\x00\x00"+strings.Repeat("\x00", 12)+"MZ"))
	f.Add("", []byte(`<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Override ContentType="macro&#69;nabled"/></Types>`))
	f.Add("", []byte(utf16Of("\xff\xfe", "Dim s\r\nSet s = CreateObject(\"WScript.Shell\")\r\n", false)))
	f.Add("", []byte(disk(true)[:600]))
	f.Fuzz(func(t *testing.T, name string, content []byte) {
		first := Identify(name, bytes.NewReader(content), int64(len(content)))
		second := Identify(name, bytes.NewReader(content), int64(len(content)))
		if classes(first) != classes(second) {
			t.Errorf("%v, then %v", first, second)
		}
		for _, m := range first {
			if m.Class == "" || m.What == "" {
				t.Errorf("%+v", m)
			}
		}
	})
}

// FuzzName reads names; readings are few, and one with a banned extension at its
// end is found whatever stands before it.
func FuzzName(f *testing.F) {
	for _, s := range []string{"a.exe", "invoice.pdf\u202eexe.", "a.e\x00xe", "a.\uff45\uff58\uff45", "a.exe::$DATA", "%41%2e", "b\xfc.exe", "a.{3050F4D8-98B5-11CF-BB82-00AA00BDCE0B}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if all, _ := Readings(name); len(all) > maxReadings {
			t.Errorf("%d readings", len(all))
		}
		for _, s := range []string{name + ".exe", name + ".exe. ", name + ".\uff45\uff58\uff45"} {
			if !strings.Contains(classes(ByName(s)), WindowsExecutables) {
				t.Errorf("%q: %v", s, ByName(s))
			}
		}
	})
}

// FuzzSignatures parses files of signatures; each of them matches what begins
// with it.
func FuzzSignatures(f *testing.F) {
	f.Add([]byte(viruscan), []byte("TVqQAAMAAAAEAAAA"))
	f.Fuzz(func(t *testing.T, file, line []byte) {
		s, err := ParseSignatures(bytes.NewReader(file))
		if err != nil {
			return
		}
		if sig := s.Match(line); sig != "" && len(sig) >= len(line) {
			t.Errorf("%q matches %q", sig, line)
		}
		for l := range bytes.Lines(file) {
			l = bytes.TrimRight(l, " \t\r\n\x00")
			if len(l) > 0 && l[0] != '#' && s.Match(append(bytes.Clone(l), 'x')) == "" {
				t.Errorf("%q does not match", l)
			}
		}
	})
}
