"""Makes the files of this folder: NN-name.msg (a message, lines end in LF),
NN-name.dns (a record a line: name, blank, text; TEMPFAIL is a server that does
not answer) and NN-name.result (what the signatures are, from the top: result,
domain or -, and a part of the reason; "now" is the clock, "none" no signature).

It shares no code with what it tests: canonicalisation and signing are written
here from RFC 6376, and what is to come out is said beside each case. The keys are those of
RFC 6376 (appendix C) and RFC 8463 (appendix A); others are made anew each time.
Needs python3-cryptography.
"""
import base64
import hashlib
import os
import re

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

NOW = 1700000000

BRISBANE = b"""-----BEGIN RSA PRIVATE KEY-----
MIICXwIBAAKBgQDwIRP/UC3SBsEmGqZ9ZJW3/DkMoGeLnQg1fWn7/zYtIxN2SnFC
jxOCKG9v3b4jYfcTNh5ijSsq631uBItLa7od+v/RtdC2UzJ1lWT947qR+Rcac2gb
to/NMqJ0fzfVjH4OuKhitdY9tf6mcwGjaNBcWToIMmPSPDdQPNUYckcQ2QIDAQAB
AoGBALmn+XwWk7akvkUlqb+dOxyLB9i5VBVfje89Teolwc9YJT36BGN/l4e0l6QX
/1//6DWUTB3KI6wFcm7TWJcxbS0tcKZX7FsJvUz1SbQnkS54DJck1EZO/BLa5ckJ
gAYIaqlA9C0ZwM6i58lLlPadX/rtHb7pWzeNcZHjKrjM461ZAkEA+itss2nRlmyO
n1/5yDyCluST4dQfO8kAB3toSEVc7DeFeDhnC1mZdjASZNvdHS4gbLIA1hUGEF9m
3hKsGUMMPwJBAPW5v/U+AWTADFCS22t72NUurgzeAbzb1HWMqO4y4+9Hpjk5wvL/
eVYizyuce3/fGke7aRYw/ADKygMJdW8H/OcCQQDz5OQb4j2QDpPZc0Nc4QlbvMsj
7p7otWRO5xRa6SzXqqV3+F0VpqvDmshEBkoCydaYwc2o6WQ5EBmExeV8124XAkEA
qZzGsIxVP+sEVRWZmW6KNFSdVUpk3qzK0Tz/WjQMe5z0UunY9Ax9/4PVhp/j61bf
eAYXunajbBSOLlx4D+TunwJBANkPI5S9iylsbLs6NkaMHV6k5ioHBBmgCak95JGX
GMot/L2x0IYyMLAz6oLWh2hm7zwtb0CgOrPo1ke44hFYnfc=
-----END RSA PRIVATE KEY-----
"""
R = serialization.load_pem_private_key(BRISBANE, None)
E = ed25519.Ed25519PrivateKey.from_private_bytes(base64.b64decode("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="))


def b64(b):
    return base64.b64encode(b).decode()


def spki(key):
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def pkcs1(key):
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)


def bare(key):
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


RSA = "v=DKIM1; k=rsa; p=" + b64(spki(R))
ED = "v=DKIM1; k=ed25519; p=" + b64(bare(E))

HEAD = [
    "From: Joe SixPack <joe@example.com>\n",
    "To: Suzie Q <suzie@shopping.example.net>\n",
    "Subject: Is dinner ready?\n",
    "Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\n",
    "Message-ID: <20030712040037.46341.5F8J@example.com>\n",
]
BODY = "Hi.\n\nWe lost the game.  Are you hungry yet?\n\nJoe.\n"


def crlf(s):
    return s.encode("utf-8", "surrogateescape").replace(b"\n", b"\r\n")


def field(text, form):
    b = crlf(text)
    if form == "simple":
        return b
    name, value = b.split(b":", 1)
    value = re.sub(rb"[ \t]+", b" ", value.replace(b"\r\n", b"")).strip(b" \t")
    return name.strip(b" \t").lower() + b":" + value + b"\r\n"


def body_of(text, form):
    b = crlf(text)
    if form == "relaxed":
        b = b"\r\n".join(re.sub(rb"[ \t]+", b" ", line).rstrip(b" ") for line in b.split(b"\r\n"))
    b = re.sub(rb"(\r\n)*\Z", b"", b)
    return b + b"\r\n" if b or form == "simple" else b


def pick(head, names):
    left = {}
    for h in head:
        left.setdefault(h.split(":", 1)[0].strip(" \t").lower(), []).append(h)
    out = []
    for n in names:
        n = n.strip().lower()
        if left.get(n):
            out.append(left[n].pop())
    return out


def sign(head=HEAD, body=BODY, key=R, c="relaxed/relaxed", h="From:To:Subject:Date:Message-ID", d="example.com", s="brisbane",
         a=None, extra="", order="v a c d s t h extra bh b", t=NOW - 100, sha=hashlib.sha256, fold="\n\t", name="DKIM-Signature", **other):
    """A signature's field. other replaces tags, or leaves them out if None."""
    hform, bform = (c.split("/") + ["simple"])[:2] if c else ("simple", "simple")
    if a is None:
        a = "rsa-sha256" if isinstance(key, rsa.RSAPrivateKey) else "ed25519-sha256"
    tags = dict(v="1", a=a, c=c, d=d, s=s, t=str(t) if t else None, h=h, extra=extra or None, bh=b64(sha(body_of(body, bform)).digest()), b="")
    tags.update(other)
    parts = []
    for tag in order.split():
        if tags.get(tag) is None:
            continue
        parts.append(tags[tag] if tag == "extra" else tag + "=" + tags[tag])
    sep = ";" + fold
    text = name + ": " + sep.join(parts)
    if order.split()[-1] != "b":
        text += ";"
    text += "\n"
    data = b"".join(field(x, hform) for x in pick(head, h.split(":"))) + field(text, hform)[:-2]
    if isinstance(key, rsa.RSAPrivateKey):
        alg = hashes.SHA1() if sha is hashlib.sha1 else hashes.SHA256()
        value = key.sign(data, padding.PKCS1v15(), alg)
    else:
        value = key.sign(hashlib.sha256(data).digest())
    at = re.search(r"(?:^DKIM-Signature: |[;\s])b=(?=[;\n]|\Z)", text, re.I).end()
    v = b64(value)
    if fold:
        v = fold.join(v[i:i + 60] for i in range(0, len(v), 60))
    return text[:at] + v + text[at:]


def message(*signatures, head=HEAD, body=BODY):
    return "".join(signatures) + "".join(head) + ("\n" + body if body is not None else "")


DNS = {"brisbane._domainkey.example.com": RSA, "ed._domainkey.example.com": ED}
cases = []


def case(name, text, *results, dns=DNS, now=NOW):
    cases.append((name, text, dns, now, results))


def key(record, **more):
    return dict({"brisbane._domainkey.example.com": record}, **more)


# ---- the examples of the RFCs ----
RFC6376 = """DKIM-Signature: v=1; a=rsa-sha256; s=brisbane; d=example.com;
      c=simple/simple; q=dns/txt; i=joe@football.example.com;
      h=Received : From : To : Subject : Date : Message-ID;
      bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
      b=AuUoFEfDxTDkHlLXSZEpZj79LICEps6eda7W3deTVFOk4yAUoqOB
      4nujc7YopdG5dWLSdNg6xNAZpOPr+kHxt1IrE+NahM6L/LbvaHut
      KVdkLLkpVaVVQPzeRDI009SO2Il5Lu7rDNH6mZckBdrIx0orEtZV
      4bmp/YzhwvcubU4=;
Received: from client1.football.example.com  [192.0.2.1]
      by submitserver.example.com with SUBMISSION;
      Fri, 11 Jul 2003 21:01:54 -0700 (PDT)
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game. Are you hungry yet?

Joe.
"""
RFC8463 = """DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
"""
DNS8463 = {
    "brisbane._domainkey.football.example.com": "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    "test._domainkey.football.example.com": "v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB",
}
case("rfc6376", RFC6376, "pass example.com")
case("rfc6376-changed", RFC6376.replace("hungry", "thirsty"), "fail example.com body hash")
case("rfc6376-simple-header-refolded", RFC6376.replace("\n      by submit", " by submit"), "fail example.com signature did not")
case("rfc8463", RFC8463, "pass football.example.com", "pass football.example.com", dns=DNS8463)
case("rfc8463-second-from", "From: evil@example.net\n" + RFC8463, "fail football.example.com signature did not", "fail football.example.com signature did not", dns=DNS8463)

# ---- that must pass ----
for c in "simple/simple", "simple/relaxed", "relaxed/simple", "relaxed/relaxed", "relaxed", "simple":
    case("good-" + c.replace("/", "-"), message(sign(c=c)), "pass example.com")
case("good-ed25519", message(sign(key=E, s="ed")), "pass example.com")
case("good-no-c", message(sign(c=None)), "pass example.com")
case("good-no-t", message(sign(t=None)), "pass example.com")
case("good-b-first", message(sign(order="b v a c d s t h bh")), "pass example.com")
case("good-relaxed-whitespace", message(sign()).replace("Subject: Is", "SUBJECT :\n   Is  ").replace("game.  Are", "game. \t Are").replace("Joe.\n", "Joe. \t\n \n\n"), "pass example.com")
case("good-header-only", message(sign(body=""), body=None), "pass example.com")
case("good-empty-body", message(sign(body="", c="simple/simple"), body=""), "pass example.com")
case("good-received-above", "Received: from a by b; Fri, 11 Jul 2003 21:00:37 -0700\n" + message(sign()), "pass example.com")
case("good-b-in-z", message(sign(extra="z=Subject:=20The=20Club=20b=20x|From:Bob=20<b=40x>")), "pass example.com")
case("good-b-in-unknown-tag", message(sign(extra="xb=something; yb = other")), "pass example.com")
case("good-unknown-tag", message(sign(extra="future=1")), "pass example.com")
case("good-domain-in-capitals", message(sign(d="Example.COM")), "pass example.com")
case("good-agent-below-in-capitals", message(sign(extra="i=Joe@Sub.EXAMPLE.com")), "pass example.com")
case("good-agent-quoted-printable", message(sign(extra="i=joe=3Dx=2Bmail@example.com")), "pass example.com")
case("good-not-expired", message(sign(extra="x=%d" % (NOW + 1))), "pass example.com")
case("good-oversigned", message(sign(h="From:From:To:Subject:Subject:Date:Message-ID:Reply-To")), "pass example.com")
case("good-second-to-by-count", message(sign(head=HEAD + ["To: other@example.net\n"], h="From:To:To:Subject"), head=HEAD + ["To: other@example.net\n"]), "pass example.com")
case("good-pkcs1-key", message(sign()), "pass example.com", dns=key("p=" + b64(pkcs1(R))))
case("good-folded-key", message(sign()), "pass example.com", dns=key("v=DKIM1;  p=" + b64(spki(R))[:50] + " \t" + b64(spki(R))[50:] + " ;"))
case("good-key-with-services", message(sign()), "pass example.com", dns=key(RSA + "; s=tlsrpt:email; h=sha1 : sha256; n=a note; g=*; t=y:s"))
case("good-key-beside-other-texts", message(sign()), "pass example.com", dns={"brisbane._domainkey.example.com": ["v=spf1 -all", RSA]})
case("good-8bit", message(sign(head=[HEAD[0], "Subject: Gr\u00fc\u00dfe\udce4\n"], body="\udcff\udcfe \u00e4\n"), head=[HEAD[0], "Subject: Gr\u00fc\u00dfe\udce4\n"], body="\udcff\udcfe \u00e4\n"), "pass example.com")
case("good-idn", message(sign(d="b\u00fccher.example", s="s\u00e9l")), "pass xn--bcher-kva.example", dns={"xn--sl-bja._domainkey.xn--bcher-kva.example": RSA})
FIRST = sign()
case("good-signed-signature", message(sign(head=[FIRST] + HEAD, h="DKIM-Signature:From:Subject", s="ed", key=E), FIRST), "pass example.com", "pass example.com")
case("good-oversigned-signature", message(sign(h="DKIM-Signature:From:Subject")), "pass example.com")
case("good-beside-malformed", message("DKIM-Signature: v=1; a\n", sign(), "DKIM-Signature: \n", "DKIM-Signature: v=1; d=example.com; b=!!!\n"),
     "neutral -", "pass example.com", "neutral -", "neutral example.com")
case("good-beside-temporary", message(sign(s="away", key=E), sign()), "temperror example.com", "pass example.com", dns=dict(DNS, **{"away._domainkey.example.com": "TEMPFAIL"}))
case("good-beside-broken-key", message(sign(s="odd", key=E), sign()), "permerror example.com", "pass example.com", dns=dict(DNS, **{"odd._domainkey.example.com": "v=DKIM1; k=rsa; p=AAAA"}))
case("good-own-under-a-heap", message(*["DKIM-Signature: v=1; a=rsa-sha256; d=heap%d.example; s=s; h=From; bh=AAAA; b=AAAA\n" % i for i in range(1000)], sign()),
     *["neutral heap%d.example" % i for i in range(9)], "pass example.com")
case("good-4096", message(sign(key=(K := rsa.generate_private_key(65537, 4096)), s="big")), "pass example.com", dns={"big._domainkey.example.com": "k=rsa; p=" + b64(spki(K))})

# ---- that were changed ----
case("changed-subject", message(sign()).replace("dinner", "supper"), "fail example.com signature did not")
case("changed-body", message(sign()).replace("lost", "won"), "fail example.com body hash")
case("changed-body-appended", message(sign()) + "more\n", "fail example.com body hash")
case("changed-body-blank-line-above", message(sign(), body="\n" + BODY), "fail example.com body hash")
case("changed-body-spaces-simple", message(sign(c="relaxed/simple")).replace("game.  Are", "game. Are"), "fail example.com body hash")
case("changed-body-words-joined", message(sign()).replace("the game", "thegame"), "fail example.com body hash")
case("changed-bh-too", message(sign(), body="other\n").replace(b64(hashlib.sha256(body_of(BODY, "relaxed")).digest()), b64(hashlib.sha256(b"other\r\n").digest())), "fail example.com signature did not")
case("changed-h-shortened", message(sign()).replace("From:To:Subject", "From:To"), "fail example.com signature did not")
case("changed-domain-kept-key", message(sign()).replace("d=example.com", "d=example.net"), "fail example.net signature did not", dns={"brisbane._domainkey.example.net": RSA})
case("changed-c", message(sign(c="simple/simple")).replace("simple/simple", "relaxed/simple"), "fail example.com signature did not")
case("changed-x-moved", message(sign(extra="x=%d" % (NOW - 1))).replace("x=%d" % (NOW - 1), "x=%d" % (NOW + 9)), "fail example.com signature did not")
case("changed-signature-bit", re.sub(r"b=(.)(.)", lambda m: "b=" + m[1] + ("A" if m[2] != "A" else "B"), message(sign(order="v b a c d s t h bh")), count=1), "fail example.com signature did not")
case("changed-tag-appended", message(sign().rstrip("\n") + "; q=dns/txt\n"), "fail example.com signature did not")
case("changed-second-subject-oversigned", "Subject: other\n" + message(sign(h="From:Subject:Subject")), "fail example.com signature did not")
case("changed-header-order-of-two", message(sign(head=["To: a@x\n", "To: b@x\n"] + HEAD, h="To:To:From"), head=["To: b@x\n", "To: a@x\n"] + HEAD), "fail example.com signature did not")
case("changed-z-under-b", message(sign(extra="z=Subject:club=20x")).replace("club=20x", "club=20y"), "fail example.com signature did not")
case("changed-in-b-tag-of-other", message(sign(extra="xb=one")).replace("xb=one", "xb=two"), "fail example.com signature did not")
case("changed-stray-b-hides-h", message(sign(extra="xb=one; h2=x")).replace("h2=x", "h2=y"), "fail example.com signature did not")
case("wrong-key", message(sign()), "fail example.com signature did not", dns=key("p=" + b64(spki(rsa.generate_private_key(65537, 1024)))))
case("wrong-key-ed25519", message(sign(key=E, s="ed")), "fail example.com signature did not", dns={"ed._domainkey.example.com": "k=ed25519; p=" + b64(bare(ed25519.Ed25519PrivateKey.generate()))})
case("ed25519-signature-cut", re.sub(r"==\n", "=\n", message(sign(key=E, s="ed"))), "neutral example.com b= is no signature")
case("ed25519-signature-too-long", message(sign(key=E, s="ed")).replace("\n\tb=", "\n\tb=AAAA", 1), "fail example.com signature did not")
case("rsa-signature-too-short", message(re.sub(r"\n?\tb=(?s:.*)", "\n\tb=AAAA\n", sign())), "fail example.com signature did not")
case("rsa-signature-zero", message(re.sub(r"\n?\tb=(?s:.*)", "\n\tb=" + b64(bytes(128)) + "\n", sign())), "fail example.com signature did not")

# ---- that make no sense ----
case("no-signature", message(), "none")
case("other-field", message("X-DKIM-Signature: v=1\n"), "none")
case("empty", message("DKIM-Signature:\n"), "neutral - no tags")
case("no-equals", message("DKIM-Signature: v=1; oops; d=example.com\n"), "neutral - is no tag")
case("duplicate-tag", message(sign(extra="d=example.com")), "neutral - twice")
case("duplicate-b", message(sign(extra="b=AAAA")), "neutral - twice")
case("version-2", message(sign(v="2")), "neutral example.com v=2")
case("no-version", message(sign(v=None)), "neutral example.com v=")
for tag in "a", "bh", "d", "h", "s":
    case("no-" + tag, message(sign(order="v a c d s t h bh b".replace(tag + " ", "", 1) if tag != "h" else "v a c d s t bh b")), "neutral " + ("-" if tag == "d" else "example.com"))
case("no-b", message(re.sub(r";\n\tb=(?s:.*)", "\n", sign())), "neutral example.com b= is no")
case("empty-b", message(re.sub(r"\n\tb=(?s:.*)", "\n\tb=\n", sign())), "neutral example.com b= is no")
case("bad-base64-b", message(re.sub(r"\n\tb=(?s:.*)", "\n\tb=(nothing)\n", sign())), "neutral example.com b= is no")
case("bad-base64-bh", message(sign(bh="???")), "neutral example.com bh= is no")
case("bh-of-sha1", message(sign(bh=b64(hashlib.sha1(b"").digest()))), "neutral example.com bh= is no")
case("from-not-signed", message(sign(h="To:Subject")), "neutral example.com lacks From")
case("from-as-part-of-a-name", message(sign(h="X-From:From-X:Subject")), "neutral example.com lacks From")
case("empty-name-in-h", message(sign(h="From::Subject")), "neutral example.com no field name")
case("h-of-64-kB", message(sign(h=":".join(["From"] + ["X"] * 32000), fold="")), "neutral - more than")
case("h-of-600-names", message(sign(h=":".join(["From"] + ["X"] * 600))), "neutral example.com more than 500")
case("agent-outside", message(sign(extra="i=joe@example.net")), "neutral example.com is not in d=")
case("agent-beside", message(sign(extra="i=joe@notexample.com")), "neutral example.com is not in d=")
case("agent-above", message(sign(d="sub.example.com", extra="i=joe@example.com")), "neutral sub.example.com is not in d=")
case("agent-without-at", message(sign(extra="i=example.com")), "neutral example.com no address")
case("agent-hidden-by-quoting", message(sign(extra="i=joe@example.net=40example.com=2Eexample.net")), "neutral example.com is not in d=")
case("agent-bad-quoting", message(sign(extra="i=j=4xoe@example.com")), "neutral example.com i=")
case("agent-with-line-end", message(sign(extra="i=joe=0Aevil@example.com")), "neutral example.com no address")
case("domain-empty", message(sign(d="")), "neutral - is no domain")
case("domain-with-blanks", message(sign(d="example .com")), "neutral - is no domain")
case("domain-with-slash", message(sign(d="../example.com")), "neutral - is no domain")
case("domain-too-long", message(sign(d="a." * 140 + "com")), "neutral - is no domain")
case("selector-empty", message(sign(s="")), "neutral example.com is no selector")
case("selector-with-colon", message(sign(s="a:b")), "neutral example.com is no selector")
case("unknown-algorithm", message(sign(a="rsa-sha512")), "neutral example.com a=rsa-sha512")
case("algorithm-in-capitals", message(sign(a="RSA-SHA256")), "neutral example.com a=")
case("algorithm-none", message(sign(a="none")), "neutral example.com a=none")
case("unknown-canonicalization", message(sign(c="nowsp/simple")), "neutral example.com c=nowsp")
case("unknown-query", message(sign(extra="q=http/xml")), "neutral example.com q=")
case("time-negative", message(sign(t=None, extra="t=-5")), "neutral example.com t=-5")
case("time-no-number", message(sign(t=None, extra="t=soon")), "neutral example.com t=soon")
case("time-of-20-digits", message(sign(t=None, extra="t=99999999999999999999")), "neutral example.com t=")
case("expires-before-made", message(sign(extra="x=%d" % (NOW - 101))), "neutral example.com x= is not after")
case("control-character", message(sign(extra="n=\x01")), "neutral - control character")
case("signature-of-20-kB", message(sign(extra="n=" + "a" * 20000)), "neutral - more than")
case("a-thousand-signatures", message(*["DKIM-Signature: v=1; d=d%d.example; s=s\n" % i for i in range(1000)]), *["neutral d%d.example" % i for i in range(10)])
case("a-hundred-tags", message(sign(extra="; ".join("t%d=1" % i for i in range(120)))), "neutral - more than")
case("not-utf8-domain", message(sign(d="ex\udcffample.com")), "neutral - is no domain")

# ---- that we do not take ----
case("policy-l", message(sign(extra="l=%d" % len(body_of(BODY, "relaxed")))), "policy example.com l=")
case("policy-l-0", message(sign(extra="l=0", body="")), "policy example.com l=")
case("policy-l-appended", message(sign(extra="l=%d" % len(body_of(BODY, "relaxed")))) + "more\n", "policy example.com l=")
case("l-no-number", message(sign(extra="l=x")), "neutral example.com l=")
case("l-negative", message(sign(extra="l=-1")), "neutral example.com l=")
case("policy-expired", message(sign(extra="x=%d" % (NOW - 1))), "policy example.com expired")
case("policy-future", message(sign(t=NOW + 86400)), "policy example.com future")
case("good-clock-drift", message(sign(t=NOW + 300)), "pass example.com")
case("policy-unsigned-from", "From: Other <evil@example.net>\n" + message(sign()), "policy example.com From")
case("policy-unsigned-from-below", message(sign(head=HEAD + ["From: evil@example.net\n"]), head=HEAD + ["From: evil@example.net\n"]), "policy example.com From")
for bits in 512, 768, 1016:
    k = rsa.generate_private_key(65537, bits) if bits % 8 == 0 else None
    case("policy-key-of-%d-bits" % bits, message(sign(key=k)), "policy example.com fewer than 1024", dns=key("k=rsa; p=" + b64(spki(k))))

# ---- historic ----
case("historic-rsa-sha1", message(sign(a="rsa-sha1", sha=hashlib.sha1)), "permerror example.com historic")
case("historic-sha1-called-sha256", message(sign(sha=hashlib.sha1)), "neutral example.com bh= is no")
case("historic-domainkeys", message("DomainKey-Signature: a=rsa-sha1; s=brisbane; d=example.com; c=nofws; q=dns; b=AAAA;\n"), "none")
case("historic-draft-version", message(sign(v="0.5")), "neutral example.com v=0.5")
case("historic-key-with-granularity", message(sign()), "pass example.com", dns=key("g=joe; k=rsa; p=" + b64(spki(R))))
case("historic-key-for-sha1", message(sign()), "permerror example.com sha256", dns=key("v=DKIM1; h=sha1; k=rsa; p=" + b64(spki(R))))

# ---- keys ----
case("key-missing", message(sign()), "permerror example.com no key", dns={})
case("key-empty-answer", message(sign()), "permerror example.com key record", dns=key(""))
case("key-revoked", message(sign()), "permerror example.com revoked", dns=key("v=DKIM1; p="))
case("key-temporary", message(sign()), "temperror example.com looked up", dns=key("TEMPFAIL"))
case("key-of-other-version", message(sign()), "permerror example.com version", dns=key("v=DKIM2; p=" + b64(spki(R))))
case("key-without-p", message(sign()), "permerror example.com without a key", dns=key("v=DKIM1; k=rsa"))
case("key-no-base64", message(sign()), "permerror example.com base64", dns=key("v=DKIM1; p=%%%"))
case("key-cut", message(sign()), "permerror example.com no RSA key", dns=key("v=DKIM1; p=" + b64(spki(R)[:100])))
case("key-of-other-kind", message(sign()), "permerror example.com another kind", dns=key(ED))
case("key-rsa-for-ed25519", message(sign(key=E)), "permerror example.com another kind", dns=key(RSA))
case("key-ec-called-rsa", message(sign()), "permerror example.com no RSA key", dns=key("k=rsa; p=" + b64(spki(ec.generate_private_key(ec.SECP256R1())))))
case("key-ed25519-as-spki", message(sign(key=E)), "permerror example.com no Ed25519 key", dns=key("k=ed25519; p=" + b64(spki(E))))
case("key-unknown-kind", message(sign()), "permerror example.com unknown kind", dns=key("k=dsa; p=" + b64(spki(R))))
case("key-for-other-service", message(sign()), "permerror example.com not for mail", dns=key(RSA + "; s=tlsrpt"))
case("key-strict", message(sign(extra="i=joe@sub.example.com")), "permerror example.com below d=", dns=key(RSA + "; t=s"))
case("key-duplicate-tag", message(sign()), "permerror example.com twice", dns=key(RSA + "; p=AAAA"))
case("key-twice", message(sign()), "permerror example.com several keys", dns={"brisbane._domainkey.example.com": [RSA, ED]})
case("key-is-html", message(sign()), "permerror example.com key record", dns=key("<html><title>p=1</title></html>"))
HUGE = b"\x30\x82\x20\x10\x02\x82\x20\x01\x00" + b"\xff" * 8192 + b"\x02\x03\x01\x00\x01"
case("key-of-64-kbit", message(sign()), "permerror example.com key record", dns=key("k=rsa; p=" + b64(HUGE)))
LARGE = rsa.RSAPublicNumbers(65537, (1 << 8999) + 12345).public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
case("policy-key-of-9000-bits", message(sign()), "policy example.com more than 8192", dns=key("k=rsa; p=" + b64(LARGE)))

# ---- the shape of the head ----
case("folded-first-line", " folded\n" + message(sign()), "pass example.com")
case("mbox-line", "From joe Fri Jul 11 21:00:37 2003\n" + message(sign()), "pass example.com")
case("signature-without-end", message(sign(), head=[], body=None).rstrip("\n"), "fail example.com")
case("no-from-at-all", message(sign(head=HEAD[1:]), head=HEAD[1:]), "policy example.com no From")
case("signature-in-the-body", message() + sign(), "none")
case("ten-thousand-fields", message(sign(h="From:X-A:X-A"), head=HEAD + ["X-A: b\n"] * 5000), "fail example.com signature did not")

for f in os.listdir("."):
    if re.match(r"\d+-.*\.(msg|dns|result)$", f):
        os.remove(f)
for n, (name, text, dns, now, results) in enumerate(cases, 1):
    base = "%03d-%s" % (n, name)
    with open(base + ".msg", "wb") as f:
        f.write(text.encode("utf-8", "surrogateescape"))
    with open(base + ".dns", "w") as f:
        for k, v in dns.items():
            for text in [v] if isinstance(v, str) else v:
                f.write(k + " " + text + "\n")
    with open(base + ".result", "w") as f:
        f.write("now %d\n" % now)
        for r in results:
            f.write(r + "\n")
