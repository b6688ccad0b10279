#!/usr/bin/python3
"""A plugin that does what a test says, and may do everything."""

import logging
import os
import threading
import time

import postern_plugin as postern

plugin = postern.Plugin(
    "everything", version="1.0", doc="Does what a test says.", needs="body", edits=["head", "body", "envelope"],
    options=[
        postern.Option("what", default="", doc="what it does"),
        postern.Option("wait", default=postern.Duration(90)), postern.Option("size", type=postern.Size), postern.Option("list", type=list),
        postern.Option("table", default={"a": "b"}), postern.Option("flag", default=True), postern.Option("number", type=float),
    ])


@plugin.configure
def configure(options, name, host, state_dir):
    if options.what == "refused":
        raise postern.WrongOption("what", "not that")
    options.where = "%s@%s %s" % (name, host, os.path.isdir(state_dir))


@plugin.forget
def forget(options):
    print("forgotten", options.where)


@plugin.connect
def connect(options, session):
    return postern.defer(text="busy, " + session.remote_ip)


@plugin.helo
def helo(options, session):
    return postern.quarantine("too early")


@plugin.sender
def sender(options, transaction):
    return postern.reject("5.1.8", "no " + transaction.sender)


@plugin.recipient
def recipient(options, transaction, who):
    return postern.reject("5.1.1", "%s after %s by %s" % (who, transaction.recipients, transaction.session.helo))


@plugin.delivery
def delivery(options, message):
    return postern.proceed().add("X-Out", "1")


def read(options, m):
    with m.open() as f:
        head = f.read(4)
        f.seek(-4, os.SEEK_END)
        tail = f.read()
    whole = m.body()
    assert len(whole) == m.body_size and whole.startswith(head) and whole.endswith(tail), whole[:100]
    return postern.proceed().because("%d %r %r" % (len(whole), head, tail))


def look(options, m):
    assert m.values("received") == ["a\tb", "c"], m.fields
    assert m.subject == "grüße ü", m.subject
    assert m.sender == "s@example.net" and m.recipients == ["a@example.org", "b@example.org"] == m.all
    assert m.parse().get_content_type() == "text/plain"
    assert m.session.id == "session" and m.id == "transaction"
    assert [s.name for s in m.symbols] == ["A"]
    assert options.wait == 90 and options.size == 10 << 20 and options.list == ["x"] and options.table == {"a": "b"} and options.flag
    assert m.get("X-Raw").encode("utf-8", "surrogateescape") == b"\xff"
    return postern.proceed().replace("X-Raw", m.get("X-Raw") + "!").because(options.where)


def flood(options, m):
    for _ in range(8):
        print("x" * (64 << 10))
    logging.info("by logging")


def sleep(options, m):
    time.sleep(1)


meeting = threading.Barrier(16)


def meet(options, m):
    meeting.wait(timeout=20)


def fail(options, m):
    raise RuntimeError("as it\nwas told")


WHAT = {
    "read": read, "look": look, "flood": flood, "sleep": sleep, "meet": meet, "fail": fail,
    "none": lambda o, m: None,
    "true": lambda o, m: True,
    "accept": lambda o, m: postern.accept(),
    "reject": lambda o, m: postern.reject(),
    "words": lambda o, m: postern.reject("5.7.0", "no\r\nRCPT").because("a\0b"),
    "contradiction": lambda o, m: postern.reject("4.7.0"),
    "discard": lambda o, m: postern.discard(),
    "head": lambda o, m: postern.proceed().add("X-A", "1").append("X-B", b"2").remove("From").replace("Subject", "x", nth=1),
    "break out": lambda o, m: postern.proceed().add("X-A", "1\nBcc: x"),
    "no name": lambda o, m: postern.proceed().add("X A", "1"),
    "body": lambda o, m: postern.proceed().body("new\n"),
    "large": lambda o, m: postern.proceed().body(b"0123456\n" * (1 << 17)),
    "lines": lambda o, m: postern.proceed().body("a\r\n"),
    "both": lambda o, m: postern.reject(text="no").for_("a@example.org").and_(postern.quarantine("odd").for_("b@example.org")),
    "rest": lambda o, m: postern.discard().for_("a@example.org").and_(postern.accept()),
    "nobody": lambda o, m: postern.reject().for_("c@example.org"),
    "envelope": lambda o, m: postern.proceed().sender("").recipient("new@example.org").add_recipient("more@example.org")
                                    .copy("tap@example.org", ["archive@example.org"], add=[("X-Tap", "1")]),
    "findings": lambda o, m: postern.proceed().symbol("PY", 1.5, "x").result("dkim", "pass", header_d="example.net"),
    "odd symbol": lambda o, m: postern.proceed().symbol("a b", 1),
}


@plugin.message
def message(options, m):
    return WHAT[options.what](options, m)


if __name__ == "__main__":
    plugin.main()
