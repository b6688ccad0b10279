"""Write ordinary messages, and what Python's email package sees in them.

Each line of the output is a JSON object: the message in base64, and a list of
its leaves with type, file name, and the SHA-256 of the decoded content.
"""
import base64
import email
import email.policy
import hashlib
import json
import random
import sys
from email.message import EmailMessage, MIMEPart
from email.mime.application import MIMEApplication
from email.mime.image import MIMEImage
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.mime.nonmultipart import MIMENonMultipart
from email import encoders

random.seed(20260101)  # boundaries are made of it
rng = random.Random(20260101)
names = ["report.pdf", "Report (final).docx", "r\u00e9sum\u00e9.odt", "\u65e5\u672c\u8a9e\u306e\u540d\u524d.xlsx", "photo 1.jpg",
         "a;b.txt", 'a "quoted" name.txt', "archive.tar.gz", "x" * 200 + ".png", "\u043e\u0442\u0447\u0451\u0442 \u0437\u0430 2025 \u0433\u043e\u0434.csv", "noext"]
texts = ["hello\n", "", "caf\u00e9 \u2014 na\u00efve\n" * 3, "From here\n-- \nsig\n", "long " * 300 + "\n", "tab\t\nblank \n=3D\n", "\n\nempty lines first\n",
         "--not a boundary\n--\n", "> quoted\n> text\n"]


def octets():
    return bytes(rng.randrange(256) for _ in range(rng.choice([0, 1, 2, 3, 57, 58, 1000, 5000])))


def modern(policy):
    m = EmailMessage(policy=policy)
    m["From"] = "A B <a@example.org>"
    m["To"] = "c@example.com"
    m["Subject"] = rng.choice(["hello", "\u00e4\u00f6\u00fc " * 20, "x" * 200])
    m["Received"] = "from mx.example.org by example.com; Thu, 1 Jan 2026 00:00:00 +0000"
    m.set_content(rng.choice(texts), cte=rng.choice([None, None, "base64", "quoted-printable", "8bit"]))
    if rng.random() < 0.5:
        m.add_alternative("<p>" + rng.choice(texts) + "</p>", subtype="html")
        if rng.random() < 0.5:
            m.get_payload()[1].add_related(octets(), "image", "png", cid="<a@b>", filename=rng.choice(names))
    for _ in range(rng.randrange(4)):
        kind = rng.randrange(3)
        if kind == 0:
            m.add_attachment(octets(), maintype="application", subtype=rng.choice(["pdf", "octet-stream"]), filename=rng.choice(names))
        elif kind == 1:
            m.add_attachment(rng.choice(texts), filename=rng.choice(names), charset="utf-8")
        else:
            inner = EmailMessage(policy=policy)
            inner["From"] = "x@example.net"
            inner["Subject"] = "inner"
            inner.set_content(rng.choice(texts))
            if rng.random() < 0.5:
                inner.add_attachment(octets(), maintype="image", subtype="jpeg", filename=rng.choice(names))
            m.add_attachment(inner)
    return m.as_bytes()


def legacy():
    m = MIMEMultipart(rng.choice(["mixed", "related", "alternative", "report"]))
    m["From"] = "a@example.org"
    m["Subject"] = "legacy"
    m.preamble = rng.choice([None, "This is a multi-part message in MIME format.\n"])
    m.epilogue = rng.choice([None, "\n"])
    m.attach(MIMEText(rng.choice(texts), "plain", "utf-8"))
    for _ in range(rng.randrange(3)):
        a = rng.choice([lambda: MIMEApplication(octets()), lambda: MIMEImage(octets(), "gif")])()
        n = rng.choice(names)
        if n.isascii():
            a.add_header("Content-Disposition", "attachment", filename=n)
        else:
            a.add_header("Content-Disposition", "attachment", filename=("utf-8", "", n))
        m.attach(a)
    if rng.random() < 0.3:
        sub = MIMEMultipart("alternative")
        sub.attach(MIMEText("a\n"))
        sub.attach(MIMEText("<b>\u00e9</b>\n", "html", "iso-8859-1"))
        m.attach(sub)
    if rng.random() < 0.3:
        m.attach(MIMEMessage(MIMEText("inner\n")))
    return m.as_bytes()


def leaves(raw):
    m = email.message_from_bytes(raw, policy=email.policy.default)
    for p in m.walk():
        if p.is_multipart():
            continue
        content = p.get_payload(decode=True) or b""
        yield {"type": p.get_content_type(), "name": p.get_filename() or "", "sum": hashlib.sha256(content).hexdigest(), "size": len(content)}


for i in range(int(sys.argv[1])):
    raw = legacy() if i % 3 == 2 else modern(email.policy.SMTP if i % 2 else email.policy.default)
    print(json.dumps({"message": base64.b64encode(raw).decode(), "leaves": list(leaves(raw))}))
