"""Rids captions of what was never said: tags, entities, control characters."""

import html
import re
import unicodedata

_TAG = re.compile(r"<!--.*?-->|</?[A-Za-z][^<>]*>", re.DOTALL)
# What Python calls white space is left to `split`; the rest of these groups is neither seen nor spoken.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co"})
_SUSPECT = re.compile(r"[^\x20-\x7e\xa1-\xac\xae-\u05ff]")


def without_markup(text: str) -> str:
    """The text without HTML tags and comments, and with entities such as `&amp;` as characters."""
    return html.unescape(_TAG.sub(" ", text))


def without_control(text: str) -> str:
    """The text without control, invisible and private characters and lone surrogates."""
    if not _SUSPECT.search(text):
        return text
    return "".join(c for c in text if c.isspace() or unicodedata.category(c) not in _UNSEEN)


def in_one_line(text: str) -> str:
    """The text with every run of white space as one space, and none at its ends."""
    return " ".join(text.split())
