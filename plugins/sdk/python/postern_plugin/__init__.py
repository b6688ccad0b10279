"""Plugins of Postern in Python: filters of mail in processes of their own.

A plugin is one program with a function for each stage at which it wants to be
asked:

    #!/usr/bin/python3
    import postern_plugin as postern

    plugin = postern.Plugin("tagger", version="1.0", doc="Puts a tag before the subject.",
                            edits=["head"],
                            options=[postern.Option("tag", default="[list]", doc="what is put before the subject")])

    @plugin.message
    def tag(options, message):
        return postern.proceed().replace("Subject", options.tag + " " + message.get("Subject"))

    if __name__ == "__main__":
        plugin.main()

The folder postern_plugin stands beside it, or in a directory of PYTHONPATH. It
needs Debian's python3-grpcio and python3-protobuf, and nothing else. The guide is
plugins/README.md of Postern.

What is promised: the functions are called by several threads at once. What one
returns counts whole or not at all: an exception, or an answer that Postern would
not take (an edit that was not declared, a permanent code for a deferral), is an
error of that call with its words in the log, and what becomes of the mail is the
configuration's "on_error"; the process goes on. What is printed, or written to
the log by the module logging, is in Postern's log.
"""

from .message import Message, Session, Transaction
from .option import Duration, Option, Size, WrongOption
from .plugin import Plugin
from .verdict import Verdict, accept, defer, discard, proceed, quarantine, reject

__all__ = [
    "Duration", "Message", "Option", "Plugin", "Session", "Size", "Transaction", "Verdict", "WrongOption",
    "accept", "defer", "discard", "proceed", "quarantine", "reject",
]
