"""The words that a dataclass's docstring has for its keys, as help and reference show them."""

from typing import Any

import docstring_parser


def key_texts(kind: type[Any]) -> dict[str, str]:
    """Each key's description on one line, those of base classes too; a key without one is left out."""
    return {
        one.arg_name: " ".join(one.description.split())
        for base in reversed(kind.__mro__)
        for one in docstring_parser.parse(base.__doc__ or "").params
        if one.description
    }


def kind_text(kind: type[Any]) -> str:
    """What the docstring says of the dataclass as a whole, on one line."""
    docstring = docstring_parser.parse(kind.__doc__ or "")
    return " ".join(f"{docstring.short_description or ''} {docstring.long_description or ''}".split())
