"""The options of a plugin's filters."""

import copy
import json
import re

from . import plugin_pb2 as pb


class WrongOption(Exception):
    """What a configure function raises: the option and what is wrong with it.

    The administrator hears of it with the line where the option stands.
    """

    def __init__(self, option, text):
        super().__init__(option + ": " + text)
        self.option, self.text = option, text


class Duration(float):
    """The type of an option like "30s". Its value is in seconds."""


class Size(int):
    """The type of an option like "10MB". Its value is in bytes."""


# type -> on the wire, word, from JSON, to JSON
TYPES = {
    str: (pb.OPTION_TYPE_STRING, "a text", str, str),
    bool: (pb.OPTION_TYPE_BOOL, "true or false", bool, bool),
    int: (pb.OPTION_TYPE_INT, "a whole number", int, int),
    float: (pb.OPTION_TYPE_FLOAT, "a number", float, float),
    Duration: (pb.OPTION_TYPE_DURATION, "a length of time", lambda n: Duration(n / 1e9), lambda s: int(s * 1e9)),
    Size: (pb.OPTION_TYPE_SIZE, "a size", Size, int),
    list: (pb.OPTION_TYPE_STRINGS, "a list of texts", list, list),
    dict: (pb.OPTION_TYPE_TABLE, "a table of texts", dict, dict),
}


class Option:
    """One key of the plugin's filters.

    type is str, bool, int, float, Duration, Size, list (of texts) or dict (of
    texts); left out, it is the default's. An option without a default has the
    type's empty value, unless it is required.
    """

    def __init__(self, name, type=None, default=None, doc="", required=False):
        self.type = type or (str if default is None else default.__class__)
        if self.type not in TYPES:
            raise ValueError("no option can have the type %s" % self.type)
        if not re.fullmatch("[a-z][a-z0-9_]{0,63}", name):
            raise ValueError("the option %r: a key has small letters, digits and _, a letter first" % name)
        if required and default is not None:
            raise ValueError("the option %r: what is required has no default" % name)
        self.name, self.default, self.doc, self.required = name, default, doc, required

    def wire(self):
        kind, _, _, to_json = TYPES[self.type]
        text = "" if self.default is None else json.dumps(to_json(self.default))
        return pb.Option(name=self.name, type=kind, doc=self.doc, default_json=text, required=self.required)

    def read(self, given):
        """The option's value of what the configuration gives."""
        if given.get(self.name) is None:
            if self.required:
                raise WrongOption(self.name, "it is missing")
            return self.type() if self.default is None else copy.copy(self.default)
        _, word, from_json, _ = TYPES[self.type]
        try:
            return from_json(given[self.name])
        except (TypeError, ValueError):
            raise WrongOption(self.name, "it must be " + word) from None
