#!/usr/bin/env python3
"""Has real programs write mail, and keeps it here as *.eml.

Needs mutt, swaks, s-nail and git, and Python. Run it in this folder; the messages are committed, so that tests need
none of that.
"""
import email.message, email.mime.application, email.mime.multipart, email.mime.text, email.policy
import io, os, random, re, subprocess, sys, tempfile, zipfile, zlib

HERE = os.path.dirname(os.path.abspath(__file__))
R = random.Random(12)


def keep(program, n, raw):
    raw = raw.replace(b"\r\n", b"\n").replace(os.uname().nodename.encode(), b"host.example.org")
    raw = re.sub(re.escape(tempfile.gettempdir()).encode() + rb"[\w./-]+", b"/somewhere", raw)
    with open(os.path.join(HERE, f"{program}-{n:02}.eml"), "wb") as f:
        f.write(raw)


def zipped(*files):
    b = io.BytesIO()
    with zipfile.ZipFile(b, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in files:
            z.writestr(name, content)
    return b.getvalue()


def samples(d):
    """Files that people send."""
    pdf = b"%PDF-1.7\n1 0 obj\n<< /Filter /FlateDecode /Length 9 >>\nstream\n" + zlib.compress(R.randbytes(3000)) + b"\nendstream\nendobj\n%%EOF\n"
    docx = zipped(("[Content_Types].xml", '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>'), ("word/document.xml", "<?xml version='1.0'?><document/>"))
    odt = zipped(("mimetype", "application/vnd.oasis.opendocument.text"), ("content.xml", "<?xml version='1.0'?><office:document-content/>"))
    files = {
        "notes.txt": b"begin at nine\nend at ten\n", "Rechnung März.pdf": pdf, "letter.docx": docx, "letter.odt": odt, "data.csv": b"a,b\n1,2\n", "photo.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF" + R.randbytes(2000),
        "会議.txt": "会議は九時に始まる\n".encode(), "all.zip": zipped(("a.txt", "text"), ("b/c.txt", "more")), "noextension": b"plain words\n", "page.html": b"<!DOCTYPE html><html><body>hello</body></html>\n",
        "fix.patch": b"--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n", 'quo"te.txt': b"x\n",
    }
    for name, content in files.items():
        with open(os.path.join(d, name), "wb") as f:
            f.write(content)
    return [os.path.join(d, name) for name in files]


TEXT = "Grüße, hello,\n\nbegin here = and -- there.\n--\n> quoted\nFrom the start\n.\nend\n"


def main():
    with tempfile.TemporaryDirectory() as d:
        files = samples(d)
        catch = os.path.join(d, "catch")
        with open(catch, "w") as f:
            f.write(f"#!/bin/sh\ncat > {d}/caught\n")
        os.chmod(catch, 0o755)
        env = dict(os.environ, HOME=d, LC_ALL="C.UTF-8", EMAIL="anna@example.net", MAILRC="/dev/null", TZ="UTC", GIT_CONFIG_GLOBAL="/dev/null", GIT_AUTHOR_NAME="Anna Müster",
                   GIT_AUTHOR_EMAIL="anna@example.net", GIT_COMMITTER_NAME="Anna", GIT_COMMITTER_EMAIL="anna@example.net")

        def caught(program, n, args, text=TEXT, cwd=d):
            r = subprocess.run(args, input=text.encode(), env=env, cwd=cwd, capture_output=True)
            if r.returncode or not os.path.exists(f"{d}/caught"):
                sys.exit(f"{args}: {r.returncode}\n{r.stderr.decode()}")
            with open(f"{d}/caught", "rb") as f:
                keep(program, n, f.read())
            os.remove(f"{d}/caught")

        groups = [[], files[:1], files[1:2], files[2:4], files[4:8], files[6:7], files[8:], files]
        for n, g in enumerate(groups):
            attach = ["-a", *g, "--"] if g else ["--"]
            caught("mutt", n, ["mutt", "-n", "-F", "/dev/null", "-e", f"set sendmail='{catch}' use_from=yes from=anna@example.net copy=no rfc2047_parameters=no", "-s", "Übersicht", *attach, "bob@example.org"])
            caught("mutt", n + 20, ["mutt", "-n", "-F", "/dev/null", "-e", f"set sendmail='{catch}' use_from=yes from=anna@example.net copy=no rfc2047_parameters=yes text_flowed=yes", "-s", "x", *attach, "bob@example.org"])
            attach = [x for f in g for x in ("-a", f)]
            caught("nail", n, ["s-nail", "-:/", "-S", f"mta={catch}", "-S", "v15-compat", "-S", "ttycharset=utf-8", "-S", "from=anna@example.net", "-s", "Übersicht", *attach, "bob@example.org"])
            attach = [x for f in g for x in ("--attach-type", "application/octet-stream", "--attach-name", os.path.basename(f), "--attach", "@" + f)]
            r = subprocess.run(["swaks", "--dump", "DATA", "--from", "anna@example.net", "--to", "bob@example.org", "--server", "mx.example.org", "--helo", "host.example.org", "--h-Subject", "test", "--body", TEXT, *attach], env=env, capture_output=True)
            if r.returncode:
                sys.exit(r.stderr.decode())
            keep("swaks", n, r.stdout)

        git = lambda *a: subprocess.run(["git", *a], env=env, cwd=f"{d}/repo", check=True, capture_output=True).stdout
        os.mkdir(f"{d}/repo")
        git("init", "-q")
        for n, (name, content) in enumerate([("run.sh", b"#!/bin/sh\necho hello\n"), ("x.c", b"int main(void) { return 0; }\n"), ("logo.png", b"\x89PNG\r\n\x1a\n" + R.randbytes(900)), ("größe.txt", "Grüße\n".encode()), ("x.bat", b"@echo off\r\n")]):
            with open(f"{d}/repo/{name}", "wb") as f:
                f.write(content)
            git("add", ".")
            git("commit", "-q", "-m", f"größer: add {name}\n\nbegin 644 of it")
        git("format-patch", "--root", "-o", f"{d}/patches", "--cover-letter", "--thread")
        git("format-patch", "--root", "-o", f"{d}/attached", "--attach")
        git("format-patch", "--root", "-o", f"{d}/inline", "--inline", "--binary")
        n = 0
        for folder in ("patches", "attached", "inline"):
            for p in sorted(os.listdir(f"{d}/{folder}")):
                with open(f"{d}/{folder}/{p}", "rb") as f:
                    keep("git", n, f.read())
                n += 1
        python(files)


def python(files):
    n = 0
    for policy in (email.policy.SMTP, email.policy.SMTPUTF8, email.policy.compat32):
        for g in ([], files[:1], files[1:3], files[4:8], files):
            if policy is email.policy.compat32:
                m = email.mime.multipart.MIMEMultipart()
                m.attach(email.mime.text.MIMEText(TEXT, "plain", "utf-8"))
                m["Subject"] = "old ways"
                for f in g:
                    a = email.mime.application.MIMEApplication(open(f, "rb").read())
                    a.add_header("Content-Disposition", "attachment", filename=("utf-8", "", os.path.basename(f)))
                    m.attach(a)
            else:
                m = email.message.EmailMessage(policy=policy)
                m["From"], m["To"], m["Subject"] = "Anna Müster <anna@example.net>", "bob@example.org", "Übersicht"
                m.set_content(TEXT, cte="8bit" if policy is email.policy.SMTPUTF8 else "quoted-printable")
                m.add_alternative("<p>Grüße</p>", subtype="html")
                for f in g:
                    m.add_attachment(open(f, "rb").read(), maintype="application", subtype="octet-stream", filename=os.path.basename(f))
                if g == files[:1]:
                    inner = email.message.EmailMessage()
                    inner["Subject"] = "inside"
                    inner.set_content("inside")
                    m.add_attachment(inner)
            keep("python", n, m.as_bytes())
            n += 1


main()
