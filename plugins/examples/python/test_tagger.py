"""The test of tagger.py: python3 -m unittest."""

import unittest

import postern_plugin as postern
from tagger import plugin


class Tagger(unittest.TestCase):
    def test_plain(self):
        verdict = plugin.judge(b"Subject: hello\r\n\r\nHello, world!\r\n")
        self.assertEqual((verdict.action, verdict.reason), ("continue", "tagged"))
        self.assertEqual(verdict.edits[0].change.value, b"[list] hello")

    def test_tagged_already(self):
        self.assertEqual(plugin.judge(b"Subject: [x] hello\n\n", options={"tag": "[x]"}).edits, [])

    def test_no_tag(self):
        with self.assertRaisesRegex(postern.WrongOption, "tag: it is empty"):
            plugin.judge(options={"tag": " "})


if __name__ == "__main__":
    unittest.main()
