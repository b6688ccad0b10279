"""A plugin: its functions, and the calls of plugin.proto."""

import json
import logging
import os
import re
import signal
import sys
import threading
import types

from . import plugin_pb2 as pb
from . import serve, texts
from .message import Message, Session, Transaction
from .option import TYPES, WrongOption
from .verdict import Verdict, proceed

COOKIE = ("POSTERN_PLUGIN", "postern.plugin.v1")
INLINE_BODY = 16 << 10  # the greatest body in bytes within a call

NEEDS = {"nothing": pb.NEEDS_NOTHING, "envelope": pb.NEEDS_ENVELOPE, "head": pb.NEEDS_HEAD, "body": pb.NEEDS_BODY}
STAGES = {"connect": pb.STAGE_CONNECT, "helo": pb.STAGE_HELO, "sender": pb.STAGE_SENDER,
           "recipient": pb.STAGE_RECIPIENT, "message": pb.STAGE_MESSAGE, "delivery": pb.STAGE_DELIVERY}
EARLY = ("continue", "accept", "reject", "defer")
# What may be answered at which stage.
LEGAL = {"connect": EARLY, "helo": EARLY, "sender": EARLY + ("discard",), "recipient": EARLY + ("discard",),
          "message": EARLY + ("discard", "quarantine"), "delivery": EARLY + ("quarantine",)}


class Plugin:
    """What a program does. Only a name and one stage must be there.

    needs is "nothing", "envelope", "head" or "body": what is given to the functions
    of message and delivery. edits are those of "head", "body" and "envelope" that it
    may change. advises: mail may go on when it fails; else it is put off.
    strangers_only: it is never asked about our own users' mail.

    The functions are named by decorators: connect and helo (options, session),
    sender (options, transaction), recipient (options, transaction, recipient),
    message and delivery (options, message); each returns a Verdict or None.
    configure (options, name, host, state_dir) looks at options that have been read
    and raises WrongOption; it may set attributes of them for the calls. forget
    (options) hears that they are used no more.
    """

    def __init__(self, name, version="", doc="", needs="head", edits=(), advises=False, strangers_only=False, options=()):
        if needs not in NEEDS:
            raise ValueError("needs is one of " + ", ".join(NEEDS))
        if set(edits) - {"head", "body", "envelope"}:
            raise ValueError("edits are some of head, body, envelope")
        self.name, self.version, self.doc, self.needs, self.edits = name, version, doc, needs, frozenset(edits)
        self.advises, self.strangers_only, self.options = advises, strangers_only, list(options)
        self.functions, self._configure, self._forget = {}, None, None
        self._filters, self._lock = {}, threading.Lock()

    def connect(self, f):
        return self._stage("connect", f)

    def helo(self, f):
        return self._stage("helo", f)

    def sender(self, f):
        return self._stage("sender", f)

    def recipient(self, f):
        return self._stage("recipient", f)

    def message(self, f):
        return self._stage("message", f)

    def delivery(self, f):
        return self._stage("delivery", f)

    def configure(self, f):
        self._configure = f
        return f

    def forget(self, f):
        self._forget = f
        return f

    def _stage(self, name, f):
        self.functions[name] = f
        return f

    # The calls of plugin.proto.

    def declare(self, _request, _context):
        return pb.Declaration(
            name=self.name, version=self.version, doc=self.doc, stages=[STAGES[s] for s in STAGES if s in self.functions],
            needs=NEEDS[self.needs], edits_head="head" in self.edits, edits_body="body" in self.edits,
            edits_envelope="envelope" in self.edits, advises=self.advises, strangers_only=self.strangers_only,
            options=[o.wire() for o in self.options])

    def _read_options(self, text, name, host, state_dir):
        given = json.loads(text or b"{}")
        options, wrong = types.SimpleNamespace(), []
        for o in self.options:
            try:
                setattr(options, o.name, o.read(given))
            except WrongOption as e:
                wrong.append(e)
        known = {o.name for o in self.options}
        wrong += [WrongOption(key, "there is no such option") for key in given if key not in known]
        if not wrong and self._configure:
            try:
                self._configure(options, name, host, state_dir)
            except WrongOption as e:
                wrong.append(e)
        return options, wrong

    def call_configure(self, q, _context):
        options, wrong = self._read_options(q.options_json, q.filter, q.host, q.state_dir)
        if not wrong:
            with self._lock:
                self._filters[q.handle] = (options, q.state_dir)
        return pb.ConfigureReply(problems=[pb.Problem(option=e.option, text=texts.line(e.text)) for e in wrong])

    def call_forget(self, q, _context):
        with self._lock:
            options, _ = self._filters.pop(q.handle, (None, ""))
        if options is not None and self._forget:
            self._forget(options)
        return pb.ForgetReply()

    def call_judge(self, q, _context):
        with self._lock:
            if q.handle not in self._filters:
                raise LookupError("there is no filter with the handle %d" % q.handle)
            options, state_dir = self._filters[q.handle]
        stage = next((s for s, n in STAGES.items() if n == q.stage), "")
        if stage not in self.functions:
            raise RuntimeError("the plugin is not to be asked at the stage %r" % (stage or q.stage))
        args, m = self._arguments(q, stage, state_dir)
        kept = []
        try:
            reply = self._reply(self.functions[stage](options, *args), stage, args, kept)
        except BaseException:
            kept = []
            raise
        finally:
            if m:
                m.end(kept)
        return reply

    def _arguments(self, q, stage, state_dir):
        session = Session(q.session)
        if stage in ("connect", "helo"):
            return (session,), None
        if stage == "sender":
            return (Transaction(q.transaction, session, stage, self.needs),), None
        if stage == "recipient":
            return (Transaction(q.transaction, session, stage, self.needs), texts.decoded(q.recipient)), None
        m = Message(q.message, q.transaction, session, stage, self.needs, state_dir)
        return (m,), m

    def _reply(self, verdict, stage, args, kept):
        if verdict is None:
            return pb.JudgeReply()
        if not isinstance(verdict, Verdict):
            raise TypeError("the function of the stage %s returned %r, which is no verdict" % (stage, verdict))
        flat, reply, named = verdict.flat(), pb.JudgeReply(), set()
        for v in flat:
            self._check(v, stage)
            w = v.wire(stage)
            if v.only is not None or len(flat) > 1:
                w.recipients.extend(_indexes(v, stage, args[0], named))
                if not w.recipients:
                    continue
            if v.new_body is not None:
                _put_body(w, v.new_body, args[0], kept)
            reply.verdicts.append(w)
        return reply

    def _check(self, v, stage):
        if v.action not in LEGAL[stage]:
            raise ValueError("a plugin may not answer %s at the stage %s" % (v.action, stage))
        if v.changes and stage not in ("message", "delivery"):
            raise ValueError("there is nothing to edit at the stage " + stage)
        for what in sorted(v.changes - self.edits):
            raise ValueError("the verdict edits the %s, and the plugin's edits lack %r" % (what, what))

    def judge(self, message=b"\n", options=None, sender="", recipients=("recipient@example.org",), stage="message", recipient=""):
        """Asks the plugin about a message in this process, for tests.

        It returns the plugin's Verdict, or raises what is wrong with the options
        (by their names, as the plugin has them) or with the answer.
        """
        given = {o.name: TYPES[o.type][3](options[o.name]) for o in self.options if o.name in (options or {})}
        given.update({k: v for k, v in (options or {}).items() if k not in given})
        read, wrong = self._read_options(json.dumps(given), "test", "mx.example.org", "")
        if wrong:
            raise wrong[0]
        head, _, body = texts.encoded(message).replace(b"\r\n", b"\n").partition(b"\n\n")
        if texts.encoded(message).startswith(b"\n"):
            head, body = b"", texts.encoded(message)[1:]
        if head:
            head += b"\n"
        q = pb.JudgeRequest(
            stage=STAGES[stage], recipient=texts.encoded(recipient), session=pb.Session(id="session", protocol="smtp", remote_ip="192.0.2.1", uid=-1),
            transaction=pb.Transaction(sender=texts.encoded(sender), recipients=[texts.encoded(r) for r in recipients], active=range(len(recipients))),
            message=pb.Message(head=head, inline=body, head_size=len(head), body_size=len(body)))
        args, _ = self._arguments(q, stage, "")
        verdict = self.functions[stage](read, *args) or proceed()
        self._reply(verdict, stage, args, [])
        return verdict

    def main(self):
        """The whole main function: serves Postern, or tells somebody who runs it by hand what it is."""
        if os.environ.get(COOKIE[0]) != COOKIE[1]:
            sys.exit(self._by_hand(sys.argv))
        if not self.functions:
            sys.exit("%s: the plugin has no stage: give it a function with @plugin.message" % sys.argv[0])
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        serve.serve(self)

    def _by_hand(self, argv):
        title = ("%s %s" % (self.name, self.version)).strip()
        path = os.path.abspath(argv[0])
        flag = argv[1] if len(argv) > 1 else ""
        if flag in ("--version", "-V"):
            print("%s (%s)" % (title, COOKIE[1]))
            return 0
        if flag not in ("--help", "-h"):
            sys.stderr.write("%s is a plugin of Postern, a filter of mail; it is Postern that starts it.\n\nTo try it on a saved message:\n\n"
                             "    postern plugin run %s MESSAGE\n\n%s --help says more.\n" % (title, path, argv[0]))
            return 2
        print("%s, a plugin of Postern\n\n%s\n" % (title, self.doc))
        print("It is asked at the stage %s, needs %s, and edits %s.\n" % (
            ", ".join(s for s in STAGES if s in self.functions), self.needs, ", ".join(sorted(self.edits)) or "nothing"))
        for o in self.options:
            default = "it must be written" if o.required else "by default %s" % json.dumps(TYPES[o.type][3](o.default if o.default is not None else o.type()))
            print("    %-16s %s\n    %-16s %s; %s" % (o.name, o.doc, "", TYPES[o.type][1], default))
        kind = re.sub("[^a-z0-9-]", "-", self.name.lower())
        print("\nIn Postern's configuration:\n\n    [plugin.%s]\n    command = [%s]\n\n    [filter.my-%s]\n    kind = \"%s\"\n" % (
            kind, json.dumps(path), kind, kind))
        return 0


def _indexes(v, stage, m, named):
    """The indexes of a verdict's recipients, without those whom one before has named."""
    if stage != "message":
        raise ValueError("only the stage message has recipients to choose from, not " + stage)
    for r in v.only or ():
        if r not in m.recipients:
            raise ValueError("%r is none of the recipients that the plugin is asked about" % r)
    found = [n for n in m.active if n not in named and (v.only is None or m.all[n] in v.only)]
    named.update(found)
    return found


def _put_body(w, content, m, kept):
    path = m.new_file(content) if len(content) > INLINE_BODY else None
    if path:
        kept.append(path)
        w.path = path
    elif len(content) <= serve.MAX_REPLY // 2:
        w.inline = content
    else:
        raise ValueError("the new body has %d bytes, and there is no directory for it: declare needs=\"body\"" % len(content))
