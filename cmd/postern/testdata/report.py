# Reads a message as Python's email package does, and tells as JSON what it is.
import email
import email.policy
import json
import sys

m = email.message_from_binary_file(sys.stdin.buffer, policy=email.policy.default)
defects, parts = [], []
for p in m.walk():
    defects += [repr(d) for d in p.defects]
    defects += ["%s: %r" % (name, d) for name, v in p.items() for d in getattr(v, "defects", ())]
for p in m.iter_parts():
    part = {"type": p.get_content_type()}
    if part["type"] == "text/plain":
        part["text"] = p.get_content()
    elif part["type"] == "message/delivery-status":
        part["groups"] = [{name.lower(): str(v) for name, v in g.items()} for g in p.get_payload()]
    elif part["type"] == "message/rfc822":
        part["subject"] = p.get_content()["Subject"]
        part["text"] = p.get_content().get_content()
    parts.append(part)
json.dump({
    "type": m.get_content_type(),
    "report": m["Content-Type"].params.get("report-type"),
    "from": [a.addr_spec for a in m["From"].addresses],
    "to": [a.addr_spec for a in m["To"].addresses],
    "subject": m["Subject"],
    "parts": parts,
    "defects": defects,
}, sys.stdout)
