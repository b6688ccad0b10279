package content

import "slices"

// The classes of files.
const (
	WindowsExecutables = "windows-executables"
	UnixExecutables    = "unix-executables"
	MacExecutables     = "mac-executables"
	Android            = "android"
	Java               = "java"
	Flash              = "flash"
	Installers         = "installers"
	Scripts            = "scripts"
	Shortcuts          = "shortcuts"
	HelpFiles          = "help-files"
	DiskImages         = "disk-images"
	OfficeMacros       = "office-macros"
	OfficeEmbedded     = "office-embedded"
	OfficeTemplates    = "office-templates"
	RTFObjects         = "rtf-objects"
	OneNoteEmbedded    = "onenote-embedded"
	PDFActive          = "pdf-active"
	ArchivesEncrypted  = "archives-encrypted"
	ArchivesNested     = "archives-nested"
)

// Class is a kind of file that a postmaster may want to ban.
type Class struct {
	Name string
	// Text says what is in it, for people.
	Text string
	// Default is whether it is banned unless the postmaster says otherwise.
	Default bool
	// Extensions are those by which it is known, in lower case without a dot.
	Extensions []string
}

// Classes is all classes. The caller may keep it.
func Classes() []Class {
	return []Class{
		{WindowsExecutables, "programs and libraries for Windows and DOS", true, []string{
			"exe", "com", "scr", "pif", "cpl", "dll", "ocx", "sys", "drv", "ax", "xll", "wll", "vxd", "386", "efi", "gadget", "xbap", "msstyles", "mui", "pyd",
		}},
		{UnixExecutables, "programs and libraries for Linux and Unix", true, []string{"elf", "so", "ko", "run", "appimage", "axf"}},
		{MacExecutables, "programs and libraries for macOS and iOS", true, []string{"app", "dylib", "kext", "ipa"}},
		{Android, "programs for Android", true, []string{"apk", "aab", "dex", "xapk", "apks", "apkm"}},
		{Java, "programs in Java", true, []string{"jar", "class", "jnlp", "jad", "war", "ear"}},
		{Flash, "Flash", true, []string{"swf"}},
		{Installers, "packages that install programs", true, []string{
			"msi", "msp", "mst", "msix", "msixbundle", "appx", "appxbundle", "appinstaller", "msu", "application", "appref-ms", "diagcab", "diagpkg",
			"deb", "rpm", "flatpak", "snap", "pkg", "mpkg", "crx", "xpi", "vsix",
		}},
		{Scripts, "scripts of every kind that start when they are opened", true, []string{
			"bat", "cmd", "vb", "vbs", "vbe", "vbscript", "js", "jse", "mjs", "ws", "wsf", "wsh", "wsc", "sct", "hta", "htc", "msc", "reg", "inf", "ins", "isp",
			"ps1", "ps1xml", "ps2", "ps2xml", "psc1", "psc2", "psm1", "msh", "msh1", "msh2", "mshxml", "msh1xml", "msh2xml", "cdxml", "pssc",
			"sh", "bash", "csh", "ksh", "zsh", "fish", "command", "tool", "pl", "py", "pyw", "pyc", "pyo", "pyz", "pyzw", "rb", "php", "phar", "lua", "tcl",
			"scpt", "scptd", "applescript", "workflow", "action", "ahk", "au3", "a3x", "prf", "bgi",
		}},
		{Shortcuts, "links that start something elsewhere", true, []string{
			"lnk", "url", "scf", "desktop", "library-ms", "search-ms", "searchconnector-ms", "settingcontent-ms", "appcontent-ms", "website", "webloc",
			"inetloc", "fileloc", "rdp", "theme", "themepack", "deskthemepack", "udl", "mad", "maf", "mag", "mam", "maq", "mas", "mau",
			"mav", "maw", "shb", "shs", "xnk",
		}},
		{HelpFiles, "help files of Windows, which run scripts", true, []string{"chm", "hlp", "mshi"}},
		{DiskImages, "images of disks, which hide where their files come from", true, []string{
			"iso", "img", "ima", "vhd", "vhdx", "avhd", "avhdx", "vmdk", "vdi", "qcow", "qcow2", "dmg", "sparseimage", "sparsebundle", "toast",
			"nrg", "ccd", "isz", "daa", "udf", "wim", "swm", "esd",
		}},
		{OfficeMacros, "Office documents with macros", true, []string{
			"docm", "dotm", "xlsm", "xltm", "xlam", "xla", "xlm", "pptm", "potm", "ppam", "ppsm", "sldm", "ppa", "slk", "wiz",
			"accdb", "accde", "accda", "accdr", "accdt", "mdb", "mde", "mda", "mdw", "mdz", "mdt", "adp", "ade",
		}},
		{OfficeEmbedded, "Office documents with objects of other programs inside, and queries", false, []string{"iqy", "oqy", "dqy", "rqy", "odc"}},
		{OfficeTemplates, "Office documents that fetch a template or an object from elsewhere", true, nil},
		{RTFObjects, "texts in RTF with objects inside", true, nil},
		{OneNoteEmbedded, "sections of OneNote with files inside that are no pictures", true, []string{"onepkg"}},
		{PDFActive, "PDF that starts programs or runs scripts", false, nil},
		{ArchivesEncrypted, "archives and documents that need a password", false, nil},
		{ArchivesNested, "archives inside archives, deeper than allowed", false, nil},
	}
}

// Match is a class that a file belongs to.
type Match struct {
	Class string
	// What it is, for people: "a program for Windows", ".exe".
	What string
	// Disguise says how the name hides what it is; "" if it does not.
	Disguise string
}

// add adds a match unless its class is there already.
func add(all []Match, m Match) []Match {
	if slices.ContainsFunc(all, func(o Match) bool { return o.Class == m.Class }) {
		return all
	}
	return append(all, m)
}

// extensions is the classes by extension.
func extensions() map[string]string {
	all := map[string]string{}
	for _, c := range Classes() {
		for _, e := range c.Extensions {
			all[e] = c.Name
		}
	}
	return all
}
