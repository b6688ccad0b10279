#!/usr/bin/python3
"""A plugin of Postern that puts a tag before the subject."""

import postern_plugin as postern

plugin = postern.Plugin(
    "tagger", version="1.0", doc="Puts a tag before the subject.", edits=["head"],
    options=[postern.Option("tag", default="[list]", doc="what is put before the subject")])


@plugin.configure
def check(options, name, host, state_dir):
    if not options.tag.strip():
        raise postern.WrongOption("tag", "it is empty: write a tag like \"[list]\"")


@plugin.message
def tag(options, message):
    if options.tag in message.subject:
        return None
    return postern.proceed().replace("Subject", options.tag + " " + message.get("Subject")).because("tagged")


if __name__ == "__main__":
    plugin.main()
