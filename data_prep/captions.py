"""Rids captions of what was never said: tags, entities, control characters."""

import html
import re
import unicodedata

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
# No character has a longer number; Python refuses to read one of thousands of digits.
_ENDLESS = re.compile(r"&#[0-9]{100,};?")
# What Python calls white space is left to `split`; the rest of these groups is neither seen nor spoken.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co"})
_SUSPECT = re.compile(r"[^\x20-\x7e\xa1-\xac\xae-\u05ff]")


def without_markup(text: str) -> str:
    """The text without HTML tags and comments, and with entities such as `&amp;` as characters."""
    end = text.rfind("-->") + 3  # behind it no comment ends: to search there for each that begins may take hours
    plain = _TAG.sub(" ", _COMMENT.sub(" ", text[:end]) + text[end:])
    return html.unescape(_ENDLESS.sub("\N{REPLACEMENT CHARACTER}", plain))


def without_control(text: str) -> str:
    """The text without control, invisible and private characters and lone surrogates."""
    if not _SUSPECT.search(text):
        return text
    return "".join(c for c in text if c.isspace() or unicodedata.category(c) not in _UNSEEN)


def in_one_line(text: str) -> str:
    """The text with every run of white space as one space, and none at its ends."""
    return " ".join(text.split())
