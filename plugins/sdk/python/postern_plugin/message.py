"""What a plugin is asked about."""

import email
import email.header
import email.policy
import io
import os
import re
import tempfile

from . import texts


class Session:
    """Who calls.

    id, protocol ("smtp", "qmail-queue", ...), entrance (its name in the
    configuration), remote_ip and local_ip ("" for none), remote_port, local_port,
    remote_name (in the DNS, as far as it is known), helo, tls (the cipher suite, ""
    without TLS), user (who logged in, "" for nobody), relay (may send anywhere),
    local (is this host), uid (the caller's at a shim, -1 for none).
    """

    def __init__(self, w):
        self.id, self.protocol, self.entrance = w.id, w.protocol, w.entrance
        self.remote_ip, self.remote_port, self.remote_name = w.remote_ip, w.remote_port, w.remote_name
        self.local_ip, self.local_port = w.local_ip, w.local_port
        self.helo, self.tls, self.user = texts.decoded(w.helo), w.tls, texts.decoded(w.user)
        self.relay, self.local, self.uid = w.relay, w.local, w.uid


class Transaction:
    """An envelope, and what the filters before have found.

    session, id, sender ("" is the null sender), recipients (those that the plugin
    is asked about), all (all of them; before the message, both are those that have
    been accepted so far), chain, symbols (name, score, detail) and results (method,
    result, reason, properties) as the wire has them.
    """

    def __init__(self, w, session, stage, needs):
        self.session, self.id, self.sender, self.chain = session, w.id, texts.decoded(w.sender), w.chain
        self.all = [texts.decoded(r) for r in w.recipients]
        self.recipients, self.active = self.all, []
        if stage in ("message", "delivery"):
            self.active = [n for n in w.active if needs != "nothing"]
            self.recipients = [self.all[n] for n in self.active]
        self.symbols, self.results = list(w.symbols), list(w.results)


class Message(Transaction):
    """A message with its envelope, for the time of the call. Lines end in LF.

    head is the head's bytes without the empty line; head_size and body_size are
    known whatever the plugin needs.
    """

    def __init__(self, w, tx, session, stage, needs, state_dir=""):
        super().__init__(tx, session, stage, needs)
        self.head_size, self.body_size = w.head_size, w.body_size
        self._needs, self._wire, self._fields, self._files = needs, w, None, []
        self._places = [p for p in (os.path.dirname(w.file.path), state_dir) if p]

    @property
    def head(self):
        if self._needs not in ("head", "body"):
            raise RuntimeError("the plugin's needs say that it needs no head")
        return self._wire.head

    @property
    def fields(self):
        """All fields from the top: pairs of name and value, unfolded."""
        if self._fields is None:
            self._fields = []
            for raw in re.findall(rb"[^\n]*\n(?:[ \t][^\n]*\n)*", self.head + b"\n"):
                name, colon, value = raw.partition(b":")
                name = name.rstrip(b" \t")
                if colon and name and not re.search(rb"[ \t\n]", name):
                    self._fields.append((texts.decoded(name), texts.decoded(value.replace(b"\n", b"").strip(b" \t\r"))))
        return self._fields

    def get(self, name):
        """The value of the first field of a name, "" if there is none."""
        return next(iter(self.values(name)), "")

    def values(self, name):
        """The values of all fields of a name, from the top."""
        return [value for n, value in self.fields if n.lower() == name.lower()]

    def decoded(self, name):
        """get with its encoded words decoded (RFC 2047), as far as they can be."""
        value = self.get(name)
        try:
            return str(email.header.make_header(email.header.decode_header(value)))
        except (LookupError, ValueError):
            return value

    @property
    def subject(self):
        """The decoded subject."""
        return self.decoded("Subject")

    def open(self):
        """The body as a file to read bytes from; the caller closes it."""
        if self._needs != "body":
            raise RuntimeError("the plugin's needs say that it needs no body")
        where = self._wire.file
        if not where.path:
            return io.BytesIO(self._wire.inline)
        return _Part(where.path, where.offset, where.size)

    def body(self, limit=-1):
        """The body's bytes, the first limit of them if that is not negative."""
        with self.open() as f:
            return f.read(limit)

    def parse(self):
        """The message as an email.message.EmailMessage, all of it in memory."""
        return email.message_from_bytes(self.head + b"\n" + self.body(), policy=email.policy.default)

    def new_file(self, content):
        """A file with a new body, where Postern takes it from; None if there is no place."""
        for place in self._places:
            fd, path = tempfile.mkstemp(prefix="body", dir=place)
            self._files.append(path)
            with os.fdopen(fd, "wb") as f:
                os.fchmod(fd, 0o644)
                f.write(content)
            return path
        return None

    def end(self, kept):
        for path in self._files:
            if path not in kept:
                os.unlink(path)


class _Part(io.RawIOBase):
    """A part of a file. One that has become shorter is an error."""

    def __init__(self, path, offset, size):
        self._file = open(path, "rb", buffering=0)
        self._offset, self._size, self._at = offset, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, b):
        want = min(len(b), max(0, self._size - self._at))
        got = os.pread(self._file.fileno(), want, self._offset + self._at)
        if want and not got:
            raise OSError("the body's file has become shorter")
        b[:len(got)] = got
        self._at += len(got)
        return len(got)

    def close(self):
        if not self.closed:
            self._file.close()
        super().close()
