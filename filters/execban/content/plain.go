package content

import (
	"bytes"
	"encoding/binary"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
)

// plain looks at a file as text: scripts, shortcuts, and the XML parts of Office
// documents.
func plain(name string, f *file) (all []Match) {
	text, ok := asText(f)
	if !ok {
		return nil
	}
	trimmed := strings.TrimLeft(text, " \t\r\n\ufeff")
	lower := lowered(trimmed)
	for _, b := range beginnings {
		if strings.HasPrefix(lower, b.begin) && (b.also == "" || strings.Contains(lower, b.also)) {
			all = add(all, Match{Class: b.class, What: b.what})
		}
	}
	if strings.Contains(lower, "<hta:application") && (strings.HasPrefix(lower, "<") || strings.Contains(lower, "<script")) {
		all = add(all, Match{Class: Scripts, What: "an HTML application"})
	}
	if isScript(lower) {
		all = add(all, Match{Class: Scripts, What: "a script"})
	}
	if strings.HasPrefix(lower, "<") && !strings.HasPrefix(lower, "<html") && !strings.HasPrefix(lower, "<!doctype html") {
		for _, m := range markup(lower) {
			all = add(all, m)
		}
	}
	if isTable(name) && formula.MatchString(lower) {
		all = add(all, Match{Class: OfficeMacros, What: "a table that starts a program (DDE)"})
	}
	return all
}

// lowered is a text with its ASCII letters in lower case: what is looked for has
// no others.
func lowered(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// asText is up to textLength bytes of a file as UTF-8, if it is a text in an
// encoding of its programs.
func asText(f *file) (string, bool) {
	b := f.head
	switch {
	case bytes.HasPrefix(b, []byte("\xff\xfe")):
		return wide(f.piece(2, textLength), binary.LittleEndian), true
	case bytes.HasPrefix(b, []byte("\xfe\xff")):
		return wide(f.piece(2, textLength), binary.BigEndian), true
	case len(b) >= 8 && b[1] == 0 && b[3] == 0 && b[5] == 0 && b[0] >= '\t' && b[0] < 0x7f && b[2] != 0:
		return wide(f.piece(0, textLength), binary.LittleEndian), true
	case len(b) >= 8 && b[0] == 0 && b[2] == 0 && b[4] == 0 && b[1] >= '\t' && b[1] < 0x7f && b[3] != 0:
		return wide(f.piece(0, textLength), binary.BigEndian), true
	case !isText(b[:min(len(b), 512)]):
		return "", false
	}
	if f.size <= int64(len(b)) {
		return string(b), true
	}
	return string(f.piece(0, textLength)), true
}

func wide(b []byte, order binary.ByteOrder) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = order.Uint16(b[2*i:])
	}
	return string(utf16.Decode(units))
}

// beginnings is what is told by how a text begins, in lower case, blanks left
// out.
var beginnings = []struct{ class, what, begin, also string }{
	{Scripts, "a script", "#!/", ""},
	{Scripts, "a script", "#! /", ""},
	{Scripts, "a script for Windows", "@echo off", ""},
	{Scripts, "a script for Windows", "@echo\toff", ""},
	{Scripts, "settings for the registry", "windows registry editor version", ""},
	{Scripts, "settings for the registry", "regedit4", ""},
	{Scripts, "a program that starts by itself", "[autorun]", "="},
	{Scripts, "a script in PHP", "<?php", ""},
	{Scripts, "a script component", "<scriptlet", ""},
	{Scripts, "a script component", "<component", "<script"},
	{Scripts, "a script component", "<package", "<script"},
	{Scripts, "a script component", "<job", "<script"},
	{Shortcuts, "a shortcut", "[internetshortcut]", ""},
	{Shortcuts, "a shortcut", "[{000214a0-0000-0000-c000-000000000046}]", ""},
	{Shortcuts, "a command of the shell", "[shell]", "="},
	{Shortcuts, "a shortcut", "[desktop entry]", ""},
	{Shortcuts, "a connection to another computer", "full address:s:", ""},
	{Shortcuts, "a connection to another computer", "screen mode id:i:", ""},
	{Shortcuts, "a theme", "[theme]", "="},
	{OfficeEmbedded, "a query of Excel", "web\n1\nhttp", ""},
	{OfficeEmbedded, "a query of Excel", "web\r\n1\r\nhttp", ""},
	{OfficeMacros, "a workbook with macros of Excel 4", "id;p", "exec("},
	{OfficeMacros, "a workbook with macros of Excel 4", "id;p", "call("},
	{Java, "a program in Java", "manifest-version:", "main-class:"},
}

// An unmistakable script begins with a statement, comments left out, and uses
// what only a script on a desktop has.
var (
	statement = regexp.MustCompile(`^(?:(?:'|//|rem |#)[^\n]*\n\s*|/\*(?s:.)*?\*/\s*)*(?:` +
		`(?:var|let|const|dim|set)\s+[\w$]+\s*(?:=|;|,|\n|\r|:)|function\s*\w*\s*\(|(?:private |public )?(?:sub|function|const) \w+|try\s*\{|` +
		`on error (?:resume|goto)|option explicit|eval\s*\(|this\[|new \w+\(|execute(?:global)?\s*\(|` +
		`\$[\w:{]+\s*=|param\s*\(|iex[\s(]|invoke-\w|set-executionpolicy|start-process|powershell(?:\.exe)? -|cmd(?:\.exe)? /|import-module|add-type|` +
		`\[(?:system|convert|reflection|net|void|ref|byte|char|string|int)|(?:if|for|while|with)\s*\(|[\w$.]+\s*=\s*[^=\s]|[\w$]+\(|!function|\(function|\(new)`)
	hosts = []string{
		"wscript.createobject", "wscript.sleep", "wscript.quit", "wscript.arguments", "wscript.echo", "wscript.scriptfullname", "new activexobject(", `createobject("wscript.shell"`, `createobject("shell.application"`, `createobject("msxml2.`, `createobject("scripting.filesystemobject"`,
		"new-object net.webclient", "new-object system.net.webclient", "invoke-expression", "-encodedcommand", "[system.reflection.assembly]::load", "[convert]::frombase64string",
		"[system.convert]::frombase64string", "invoke-webrequest", "set-executionpolicy", "getobject(\"winmgmts:", "-executionpolicy bypass",
	}
)

// statementLength is within how many bytes a script's first statement begins,
// and scriptLength how much of a text is searched for what scripts use.
const (
	statementLength = 16 << 10
	scriptLength    = 256 << 10
)

func isScript(lower string) bool {
	if !statement.MatchString(lower[:min(len(lower), statementLength)]) { // cheap: most texts end it at once
		return false
	}
	lower = lower[:min(len(lower), scriptLength)]
	return slices.ContainsFunc(hosts, func(h string) bool { return strings.Contains(lower, h) })
}

// The roots and attributes of XML that tell something, in lower case.
var elements = []struct{ class, what, has, also string }{
	{Shortcuts, "a library of Windows", "<librarydescription", ""},
	{Shortcuts, "a search of Windows", "<persistedquery", ""},
	{Shortcuts, "a search of Windows", "<searchconnectordescription", ""},
	{Shortcuts, "a link to settings of Windows", "<pcsettings", "<deeplink"},
	{Shortcuts, "a shortcut for macOS", "<!doctype plist", "<key>url</key>"},
	{Installers, "an application that installs itself", "urn:schemas-microsoft-com:asm.v1", "<deployment"},
	{Installers, "an application that installs itself", "<appinstaller", "uri="},
	{Installers, "an application for Windows", "<package", "schemas.microsoft.com/appx/manifest"},
	{Java, "a program in Java", "<jnlp", ""},
	{Scripts, "a console of Windows", "<mmc_consolefile", ""},
	{OfficeMacros, "a document with macros", "content-types", "macroenabled"},
	{OfficeMacros, "a document with macros", "content-types", "vnd.ms-office.vbaproject"},
	{OfficeMacros, "a workbook with macros of Excel 4", "content-types", "ms-excel.macrosheet"},
	{OfficeMacros, "a workbook with macros of Excel 4", "content-types", "ms-excel.intlmacrosheet"},
	{OfficeMacros, "a document with macros", "macrospresent=\"yes\"", ""},
	{OfficeMacros, "a document with macros", "<?mso-application", "qwn0axzltwltz"},
	{OfficeMacros, "a document with macros", "schemas.openxmlformats.org", "relationships/vbaproject"},
	{OfficeMacros, "a document with macros", "package/2006/relationships", "office/2006/relationships/vbaproject"},
	{OfficeMacros, "a workbook with macros of Excel 4", "<xm:macrosheet", ""},
	{OfficeMacros, "a document with macros", "<script:module", ""},
	{OfficeMacros, "a document with macros", "<library:library", "script"},
	{OfficeEmbedded, "a document with a control", "<ax:ocx", ""},
	{OfficeMacros, "a document that starts a program (DDE)", "instrtext", "ddeauto"},
	{OfficeMacros, "a document that starts a program (DDE)", "<ddelink", "ddeservice"},
}

// relationship is a part that lies elsewhere and is fetched without being asked
// for; a hyperlink is asked for, a picture shows no more than one in a mail.
var (
	relationship = regexp.MustCompile(`<(?:[\w-]+:)?relationship\b[^>]*>`)
	fetched      = regexp.MustCompile(`type\s*=\s*["'][^"']*/(attachedtemplate|oleobject|frame|subdocument|externallink|vbaproject|control|package|afchunk|slidemaster|mailmergesource|externallinkpath|webextension)["']`)
	outside      = regexp.MustCompile(`targetmode\s*=\s*["']external["']`)
	local        = regexp.MustCompile(`target\s*=\s*["'](?:file:///[a-z]:|[a-z]:|[^"':/\\]+["'])`)
)

// markup looks at XML.
func markup(lower string) (all []Match) {
	if strings.Contains(lower, "&#") {
		lower = lowered(entities(lower))
	}
	for _, e := range elements {
		if strings.Contains(lower, e.has) && (e.also == "" || strings.Contains(lower, e.also)) {
			all = add(all, Match{Class: e.class, What: e.what})
		}
	}
	if !strings.Contains(lower, "relationship") {
		return all
	}
	for _, r := range relationship.FindAllString(lower, 10_000) {
		m := fetched.FindStringSubmatch(r)
		switch {
		case m == nil:
		case outside.MatchString(r) && !(local.MatchString(r) && m[1] != "oleobject"):
			all = add(all, Match{Class: OfficeTemplates, What: "a document that fetches a part from elsewhere"})
		case m[1] == "oleobject":
			all = add(all, Match{Class: OfficeEmbedded, What: "a document with an embedded object"})
		}
	}
	return all
}

var entity = regexp.MustCompile(`&#(x[0-9a-f]{1,6}|[0-9]{1,7});`)

// entities decodes characters that are written as numbers.
func entities(s string) string {
	return entity.ReplaceAllStringFunc(s, func(e string) string {
		digits, radix := e[2:len(e)-1], 10
		if digits[0] == 'x' {
			digits, radix = digits[1:], 16
		}
		n, err := strconv.ParseInt(digits, radix, 32)
		if err != nil || n > 0x10ffff {
			return e
		}
		return string(rune(n))
	})
}

// formula is a cell that starts a program.
var formula = regexp.MustCompile(`(?m)(?:^|[,;\t"])\s*[=+\-@](?:[+\-@\s]|\d+[+\-*])*(?:cmd|powershell|msexcel|mshta|rundll32|regsvr32|wscript|cscript)\s*\|\s*'`)

// isTable is whether a name is that of a table that Excel opens.
func isTable(name string) bool {
	readings, _ := Readings(name)
	for _, r := range readings {
		for _, ext := range []string{".csv", ".tsv", ".tab", ".txt", ".dif", ".slk", ".prn"} {
			if strings.HasSuffix(r.Name, ext) {
				return true
			}
		}
	}
	return false
}
