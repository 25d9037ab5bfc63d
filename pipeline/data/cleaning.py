"""What becomes of a text before it is cut into tokens: as ALBEF does, as BLIP does, or nothing."""

import re
from collections.abc import Mapping
from typing import Literal, get_args

from data_prep.errors import UserError

Cleaning = Literal["albef", "blip", "none"]

PLAIN: Mapping[Cleaning, bool | str] = {"albef": True, "blip": "blip", "none": False}
"""As files and digests have it: those from before there was BLIP's say true or false."""

_ALBEFS = re.compile(r"""[,.'!?"()*#:;~]""")
_BLIPS = re.compile(r"""[.!"()*#:;~]""")


def cleaning_of(value: object) -> Cleaning:
    """A cleaning by its name; true stands for ALBEF's, false for none, as older files have it.

    Raises:
        UserError: It is neither.
    """
    for name, plain in PLAIN.items():
        if value == name or (isinstance(value, bool) and value is plain):
            return name
    raise UserError(f"clean={value!r} must be one of {', '.join(get_args(Cleaning))}; true is albef, false is none")


def clean_text(text: str, max_words: int, clean: Cleaning = "albef", question: bool = False) -> str:
    """A cleaned text, cut to `max_words`, its words one blank apart.

    Args:
        text: As it was written.
        max_words: How many words stay.
        clean: ``albef``: lower case, no punctuation, dashes and slashes as blanks. ``blip``: lower case, blanks in the
            place of ``.!"()*#:;~``, while commas, question marks, apostrophes, dashes and slashes stay. ``none``: as
            it was written.
        question: Whether it is one: BLIP leaves no blank in the place of what it takes out of questions.
    """
    if clean == "albef":
        text = _ALBEFS.sub("", text.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person")
    elif clean == "blip":
        text = _BLIPS.sub("" if question else " ", text.lower())
    return " ".join(text.split()[:max_words])
