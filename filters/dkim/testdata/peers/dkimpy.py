"""dkimpy as a peer: dkimpy.py verify DNS FILE..., or
dkimpy.py sign KEY ALGORITHM HEADER BODY SELECTOR DOMAIN FILE...

DNS has a line for each record: the name, a blank, the text. verify prints a
line for each file: the results of its signatures. sign writes FILE.signed.
"""
import sys

import dkim


def records(path):
    all = {}
    with open(path, "rb") as f:
        for line in f.read().splitlines():
            name, text = line.split(b" ", 1)
            all[name.rstrip(b".") + b"."] = text
    return all


def verify(dns, paths):
    known = records(dns)

    def look(name, timeout=5):
        name = name if isinstance(name, bytes) else name.encode()
        return known.get(name)

    for path in paths:
        with open(path, "rb") as f:
            d = dkim.DKIM(f.read())
        count = sum(1 for name, _ in d.headers if name.lower() == b"dkim-signature")
        results = []
        for i in range(count):
            try:
                results.append("pass" if d.verify(i, dnsfunc=look) else "fail")
            except dkim.DKIMException as e:
                results.append("error:" + type(e).__name__)
        print(path, *results)


def sign(key, algorithm, header, body, selector, domain, paths):
    with open(key, "rb") as f:
        key = f.read()
    for path in paths:
        with open(path, "rb") as f:
            message = f.read()
        d = dkim.DKIM(message, signature_algorithm=algorithm.encode(), linesep=b"\n")
        signature = d.sign(selector.encode(), domain.encode(), key, canonicalize=(header.encode(), body.encode()))
        with open(path + ".signed", "wb") as f:
            f.write(signature + message)


if sys.argv[1] == "verify":
    verify(sys.argv[2], sys.argv[3:])
else:
    sign(*sys.argv[2:8], sys.argv[8:])
