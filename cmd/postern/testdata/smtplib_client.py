# Sends one message as Python's own SMTP client does: HOW HOST PORT CA FROM TO FILE.
import smtplib
import ssl
import sys

how, host, port, ca, sender, to, name = sys.argv[1:]
content = open(name, "rb").read().replace(b"\n", b"\r\n")
trust = ssl.create_default_context(cafile=ca)

if how == "implicit":
    s = smtplib.SMTP_SSL(host, int(port), local_hostname="client.example", timeout=60, context=trust)
else:
    s = smtplib.SMTP(host, int(port), local_hostname="client.example", timeout=60)
with s:
    if how != "plain" and how != "implicit":
        s.starttls(context=trust)
    s.ehlo_or_helo_if_needed()
    options = ["BODY=8BITMIME"]
    if how == "login":
        s.login("ann@example.org", "open sesame")
    if how == "utf8":
        options.append("SMTPUTF8")
    for word in ["8bitmime", "size", "smtputf8", "pipelining"]:
        if not s.has_extn(word):
            sys.exit("not offered: " + word)
    refused = s.sendmail(sender, [to], content, mail_options=options)
    if refused:
        sys.exit(repr(refused))
