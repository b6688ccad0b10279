"""Texts of mail, and texts for people."""

import re

MAX_TEXT = 480  # bytes of a line for people


def decoded(b):
    """Bytes of mail as a text that gives the same bytes again."""
    return b.decode("utf-8", "surrogateescape")


def encoded(s):
    """The inverse of decoded; bytes stay as they are."""
    return s if isinstance(s, bytes) else s.encode("utf-8", "surrogateescape")


def line(s):
    """One printable line of a text."""
    s = str(s).encode("utf-8", "replace").decode("utf-8").replace("\ufffd", "?")
    s = re.sub("[\x00-\x1f\x7f-\x9f]", " ", s)
    return s.encode("utf-8")[:MAX_TEXT].decode("utf-8", "ignore").strip()


def enhanced(code, kind):
    """An enhanced status code (RFC 3463 §2) of a class."""
    if not re.fullmatch(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}", code) or code[0] != kind:
        raise ValueError("the enhanced code %r is none of %s.x.x" % (code, kind))
    return code


def name(field):
    """A field's name (RFC 5322 §3.6.8)."""
    if not re.fullmatch("[!-9;-~]+", field):
        raise ValueError("%r is no name of a field" % field)
    return field


def value(text):
    """A field's value, which cannot break out of it."""
    b = encoded(text)
    if re.search(rb"[\r\0]|\n(?![ \t])", b):
        raise ValueError("the value of a field has a NUL or CR, or a line that does not begin with a blank")
    return b


def word(s):
    """A symbol's name or the like, which goes into header fields and metrics."""
    if not re.fullmatch(r"""[^\x00-\x20\x7f-\U0010ffff()<>@,;:\\"/\[\]?=]{1,128}""", s):
        raise ValueError("%r is no name of a symbol or result" % s)
    return s
