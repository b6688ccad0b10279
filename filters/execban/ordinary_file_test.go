package execban

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/postern-mta/postern/filters/execban/archive/archivetest"
)

// The generator of ordinary mail. It makes what people send each other, in the
// shapes that their programs give it.

// words is some prose.
func words(r *rand.Rand, n int) string {
	all := strings.Fields("the meeting begins at nine and we end when all is said please bring your copy of the report to begin with = = -- > from Anna who has it on disk " +
		"résumé für schöne Grüße naïve 会議 отчёт select export import function price is $ 5.00 (about 10%) see https://example.com/a?b=c&d=e or write to info@example.com; call 555-1234")
	var b strings.Builder
	for i := range n {
		b.WriteString(all[r.IntN(len(all))])
		if i%11 == 10 {
			b.WriteByte('\n')
		} else {
			b.WriteByte(' ')
		}
	}
	return b.String() + "\n"
}

func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func picture(r *rand.Rand) image.Image {
	m := image.NewRGBA(image.Rect(0, 0, 20+r.IntN(60), 20+r.IntN(60)))
	for i := range m.Pix {
		m.Pix[i] = byte(r.Uint32())
	}
	m.Set(0, 0, color.White)
	return m
}

// pdf is a document with packed streams.
func pdf(r *rand.Rand, size int) []byte {
	var b bytes.Buffer
	b.WriteString("%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\n2 0 obj\n<< /Type /Pages /Kids [] /Count 0 >>\nendobj\n")
	for n := 3; b.Len() < size; n++ {
		var z bytes.Buffer
		w := zlib.NewWriter(&z)
		w.Write(noise(r, min(size, 8<<10)))
		w.Close()
		fmt.Fprintf(&b, "%d 0 obj\n<< /Filter /FlateDecode /Length %d >>\nstream\n", n, z.Len())
		b.Write(z.Bytes())
		b.WriteString("\nendstream\nendobj\n")
	}
	b.WriteString("trailer\n<< /Root 1 0 R >>\nstartxref\n0\n%%EOF\n")
	return b.Bytes()
}

// zipFiles is a zip as the usual programs make it.
func zipFiles(t testing.TB, files ...[2]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, f := range files {
		h := &zip.FileHeader{Name: f[0], Method: zip.Deflate}
		if f[0] == "mimetype" {
			h.Method = zip.Store
		}
		m, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(m, f[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const xmlHead = `<?xml version="1.0" encoding="UTF-8" standalone="yes"?>` + "\n"

// office is a document of the newer kind without macros.
func office(t testing.TB, r *rand.Rand, kind string) []byte {
	t.Helper()
	main := map[string]string{
		"docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml",
		"xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml",
		"pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation.main+xml",
	}[kind]
	folder := map[string]string{"docx": "word/document", "xlsx": "xl/workbook", "pptx": "ppt/presentation"}[kind]
	relations := xmlHead + `<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">` +
		`<Relationship Id="rId1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="` + folder + `.xml"/>` +
		`<Relationship Id="rId2" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/hyperlink" Target="https://example.com/" TargetMode="External"/>` +
		`<Relationship Id="rId3" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/image" Target="media/image1.png"/></Relationships>`
	var img bytes.Buffer
	if err := png.Encode(&img, picture(r)); err != nil {
		t.Fatal(err)
	}
	return zipFiles(t,
		[2]string{"[Content_Types].xml", xmlHead + `<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="xml" ContentType="application/xml"/><Default Extension="png" ContentType="image/png"/><Override PartName="/` + folder + `.xml" ContentType="` + main + `"/></Types>`},
		[2]string{"_rels/.rels", relations},
		[2]string{folder + ".xml", xmlHead + "<document><body><p>" + words(r, 200) + "</p></body></document>"},
		[2]string{strings.Split(folder, "/")[0] + "/media/image1.png", img.String()},
		[2]string{"docProps/app.xml", xmlHead + `<Properties xmlns="http://schemas.openxmlformats.org/officeDocument/2006/extended-properties"><Application>Microsoft Office Word</Application></Properties>`})
}

func openDocument(t testing.TB, r *rand.Rand, kind string) []byte {
	t.Helper()
	return zipFiles(t, [2]string{"mimetype", "application/vnd.oasis.opendocument." + kind},
		[2]string{"content.xml", xmlHead + "<office:document-content><office:scripts/><office:body><text:p>" + words(r, 200) + "</text:p></office:body></office:document-content>"},
		[2]string{"META-INF/manifest.xml", xmlHead + `<manifest:manifest xmlns:manifest="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"><manifest:file-entry manifest:full-path="/" manifest:media-type="application/vnd.oasis.opendocument.` + kind + `"/></manifest:manifest>`},
		[2]string{"Thumbnails/thumbnail.png", "\x89PNG\r\n\x1a\n" + string(noise(r, 300))})
}

func gzipOf(s string) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, s) //nolint:errcheck // it is memory
	w.Close()
	return b.Bytes()
}

// attachment is a file that people send.
type attachment struct {
	name, typ string
	content   []byte
}

// attachments are the kinds of files that people send.
var attachments = []func(t testing.TB, r *rand.Rand) attachment{
	func(t testing.TB, r *rand.Rand) attachment {
		var b bytes.Buffer
		if err := jpeg.Encode(&b, picture(r), nil); err != nil {
			t.Fatal(err)
		}
		return attachment{"IMG_1234.JPG", "image/jpeg", b.Bytes()}
	},
	func(t testing.TB, r *rand.Rand) attachment {
		var b bytes.Buffer
		if err := png.Encode(&b, picture(r)); err != nil {
			t.Fatal(err)
		}
		return attachment{"image001.png", "image/png", b.Bytes()}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"Rechnung 2026-11.pdf", "application/pdf", pdf(r, 2000+r.IntN(40_000))}
	},
	func(t testing.TB, r *rand.Rand) attachment {
		return attachment{"Report v1.2 final.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document", office(t, r, "docx")}
	},
	func(t testing.TB, r *rand.Rand) attachment {
		return attachment{"Budget.xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", office(t, r, "xlsx")}
	},
	func(t testing.TB, r *rand.Rand) attachment {
		return attachment{"Slides.pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation", office(t, r, "pptx")}
	},
	func(t testing.TB, r *rand.Rand) attachment {
		return attachment{"letter.odt", "application/vnd.oasis.opendocument.text", openDocument(t, r, "text")}
	},
	func(t testing.TB, r *rand.Rand) attachment {
		return attachment{"table.ods", "application/vnd.oasis.opendocument.spreadsheet", openDocument(t, r, "spreadsheet")}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"old.doc", "application/msword", archivetest.OLE([2]string{"WordDocument", strings.Repeat("\x00", 600) + words(r, 100)}, [2]string{"1Table", string(noise(r, 5000))}, [2]string{"\x05SummaryInformation", string(noise(r, 300))})}
	},
	func(t testing.TB, r *rand.Rand) attachment {
		return attachment{"photos.zip", "application/zip", zipFiles(t, [2]string{"photos/", ""}, [2]string{"photos/1.jpg", "\xff\xd8\xff\xe0" + string(noise(r, 3000))}, [2]string{"photos/über uns.txt", words(r, 50)}, [2]string{"report.pdf", string(pdf(r, 3000))})}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"example.com!example.org!1700000000!1700086400.xml.gz", "application/gzip", gzipOf(xmlHead + "<feedback><report_metadata><org_name>example.com</org_name></report_metadata></feedback>" + words(r, 20))}
	},
	func(t testing.TB, r *rand.Rand) attachment {
		return attachment{"backup.tar.gz", "application/x-gzip", gzipOf(string(tarOf(t, hidden{"docs/notes.txt", []byte(words(r, 300))})))}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"list.csv", "text/csv", []byte("name,amount\n\"Smith, J.\",-12.50\n=SUM(A1:A2),+3\n" + words(r, 40))}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"notes.txt", "text/plain", []byte(words(r, 300))}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"page.html", "text/html", []byte("<!DOCTYPE html><html><head><script>var x = 1; function f(a) { return a; }</script></head><body>" + words(r, 200) + "</body></html>")}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"fix.patch", "text/x-patch", []byte("--- a/run.sh\n+++ b/run.sh\n@@ -1,2 +1,2 @@\n #!/bin/sh\n-echo old\n+echo new\n" + words(r, 10))}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"anna.vcf", "text/vcard", []byte("BEGIN:VCARD\r\nVERSION:3.0\r\nN:Muster;Anna\r\nEND:VCARD\r\n")}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"voice.mp3", "audio/mpeg", append([]byte("ID3\x03\x00\x00\x00\x00\x00\x00\xff\xfb\x90\x00"), noise(r, 4000)...)}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"fax.tif", "image/tiff", append([]byte("II*\x00\x08\x00\x00\x00"), noise(r, 2000)...)}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"track.gpx", "application/gpx+xml", []byte(xmlHead + `<gpx version="1.1"><trk><name>walk</name></trk></gpx>`)}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"main.c", "text/x-csrc", []byte("#include <stdio.h>\n\nint main(void) {\n\treturn puts(\"hello\") < 0;\n}\n")}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"letter.rtf", "application/rtf", []byte(`{\rtf1\ansi\deff0{\fonttbl{\f0 Times;}}\f0\fs24 ` + strings.ReplaceAll(words(r, 60), "\n", `\par `) + "}")}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"logo.svg", "image/svg+xml", []byte(xmlHead + `<svg xmlns="http://www.w3.org/2000/svg"><rect width="1" height="1"/></svg>`)}
	},
	func(_ testing.TB, r *rand.Rand) attachment {
		return attachment{"video.mp4", "video/mp4", append([]byte("\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom"), noise(r, 6000)...)}
	},
}
