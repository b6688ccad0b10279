"""What a plugin answers."""

import math

from . import plugin_pb2 as pb
from . import texts

_ACTIONS = {"continue": pb.ACTION_CONTINUE, "accept": pb.ACTION_ACCEPT, "reject": pb.ACTION_REJECT,
            "defer": pb.ACTION_DEFER, "discard": pb.ACTION_DISCARD, "quarantine": pb.ACTION_QUARANTINE}


class Verdict:
    """The answer of a function; None is proceed(). Its methods change and return it.

    Fields and bodies may be texts or bytes; a text goes as UTF-8.
    """

    def __init__(self, action, enhanced="", text="", reason=""):
        self.action, self.enhanced, self.text, self.reason = action, enhanced, texts.line(text), texts.line(reason)
        self.edits, self.changes, self.symbols, self.results = [], set(), [], []
        self.new_body, self.only, self.others = None, None, []

    def because(self, reason):
        """Gives the reason for the log."""
        self.reason = texts.line(reason)
        return self

    def add(self, name, value):
        """Adds a field on top of the head."""
        return self._edit("head", pb.Edit(add=pb.AddField(name=texts.name(name), value=texts.value(value))))

    def append(self, name, value):
        """Adds a field at the end of the head."""
        return self._edit("head", pb.Edit(add=pb.AddField(name=texts.name(name), value=texts.value(value), last=True)))

    def replace(self, name, value, nth=0):
        """Gives the nth field of a name another value: 1 is the first, -1 the last, 0 all; if there is none, adds it."""
        return self._edit("head", pb.Edit(change=pb.ChangeField(name=texts.name(name), nth=nth, value=texts.value(value))))

    def remove(self, name, nth=0):
        """Removes the nth field of a name, counted as by replace."""
        return self._edit("head", pb.Edit(remove=pb.RemoveField(name=texts.name(name), nth=nth)))

    def body(self, content):
        """Replaces the body. Lines end in LF."""
        self.new_body = texts.encoded(content)
        if b"\r" in self.new_body or b"\0" in self.new_body:
            raise ValueError("the new body has a NUL or CR: lines end in LF alone")
        self.changes.add("body")
        return self

    def sender(self, address):
        """Replaces the envelope's sender."""
        return self._edit("envelope", pb.Edit(sender=texts.encoded(address)))

    def recipient(self, address):
        """Puts an address in place of each of the verdict's recipients."""
        return self._edit("envelope", pb.Edit(recipient=texts.encoded(address)))

    def add_recipient(self, address):
        """Adds a recipient."""
        return self._edit("envelope", pb.Edit(add_recipient=texts.encoded(address)))

    def copy(self, sender, recipients, add=()):
        """Sends a further message to others, if this one is stored, with the fields (name, value) added."""
        fields = [pb.Edit(add=pb.AddField(name=texts.name(n), value=texts.value(v))) for n, v in add]
        return self._edit("envelope", pb.Edit(copy=pb.Copy(
            sender=texts.encoded(sender), recipients=[texts.encoded(r) for r in recipients], fields=fields)))

    def symbol(self, name, score, detail=""):
        """Adds a finding with a score, for the filters that follow."""
        if not math.isfinite(score):
            raise ValueError("the score of the symbol %s is no number" % name)
        self.symbols.append(pb.Symbol(name=texts.word(name), score=score, detail=texts.line(detail)))
        return self

    def result(self, method, result, reason="", **properties):
        """Adds a finding about who sent the message (RFC 8601); a property header_d is header.d."""
        self.results.append(pb.AuthResult(method=texts.word(method), result=texts.word(result), reason=texts.line(reason), properties=[
            pb.Property(name=texts.word(n.replace("_", ".", 1)), value=texts.line(v)) for n, v in properties.items()]))
        return self

    def for_(self, *recipients):
        """Makes it a verdict about these recipients only."""
        self.only = (self.only or []) + list(recipients)
        return self

    def and_(self, *others):
        """Joins verdicts for other recipients: the first that names one counts for him, one without for_ is for the rest."""
        self.others += others
        return self

    def _edit(self, what, edit):
        self.changes.add(what)
        self.edits.append(edit)
        return self

    def flat(self):
        """The verdict and those that it joins."""
        return [self] + [v for o in self.others for v in o.flat()]

    def wire(self, stage):
        """The verdict as it goes to Postern, without recipients and body."""
        w = pb.Verdict(action=_ACTIONS[self.action], reason=self.reason, edits=self.edits, symbols=self.symbols, results=self.results)
        if self.text or self.enhanced[1:] not in ("", ".7.1"):
            code = 451 if self.action == "defer" else 550 if stage in ("sender", "recipient") else 554
            w.reply.CopyFrom(pb.Reply(code=code, enhanced=self.enhanced, text=self.text))
        return w


def proceed():
    """Says nothing against the mail: the next filter is asked."""
    return Verdict("continue")


def accept():
    """Takes the mail: the filters that follow are not asked."""
    return Verdict("accept")


def reject(enhanced="5.7.1", text=""):
    """Refuses for good; the peer hears the enhanced code and the text, one line."""
    return Verdict("reject", texts.enhanced(enhanced, "5"), text)


def defer(enhanced="4.7.1", text=""):
    """Puts off: the peer tries again."""
    return Verdict("defer", texts.enhanced(enhanced, "4"), text)


def discard():
    """Accepts the mail and drops it: nobody hears of it."""
    return Verdict("discard")


def quarantine(reason):
    """Accepts the message and holds it for the postmaster."""
    return Verdict("quarantine", reason=reason)
