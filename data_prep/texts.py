"""What the text members of a sample say: ours, img2dataset's, or a plain caption."""

import json
from collections.abc import Mapping
from typing import Any


class BadText(Exception):
    """Text members that cannot be used; the message is the reason, from a small fixed set."""


def read_fields(members: Mapping[str, bytes]) -> dict[str, Any]:
    """Reads the text members of a sample.

    Args:
        members: Bytes by extension, of which `json` and `txt` are read; both may be missing.

    Returns:
        The fields of the JSON member, or none; "captions" is always there. A sample without such a list (of
        img2dataset, or of a picture and a text alone) has the caption of its `txt` or of "caption", if there is one.

    Raises:
        BadText: the members are not UTF-8, not JSON, or not of the wanted kinds.
    """
    written = members.get("json", b"{}")
    try:
        fields = json.loads(_decoded(written))
        caption = members.get("txt", b"").decode()
    except (ValueError, RecursionError) as error:  # JSON may be nested deeper than the parser goes
        raise BadText("text member is not JSON or UTF-8") from error
    if not isinstance(fields, dict):
        raise BadText("JSON member is not an object")
    told = caption or fields.get("caption")
    captions = fields.setdefault("captions", [told] if told else [])
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise BadText("captions are not a list of texts")
    statements = fields.get("statements", [])
    if not isinstance(statements, list) or not all(map(_is_statement, statements)):
        raise BadText("statements are not a list of texts with labels")
    if written.isascii() and b"\\u" not in written:
        return fields  # such JSON cannot hold half a character, and most is such
    if not all(map(_is_unicode, captions)) or not all(_is_unicode(statement["text"]) for statement in statements):
        raise BadText("texts hold half a character")
    return fields


def _decoded(written: bytes) -> str | bytes:
    """What is UTF-8 for certain as text, as json decodes it but without a search for the encoding; else as it is."""
    is_utf8 = written[:1] == b"{" and written[1:2] != b"\0"
    return written.decode("utf-8", "surrogatepass") if is_utf8 else written


def _is_statement(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("text"), str) and "label" in value


def _is_unicode(text: str) -> bool:
    """JSON may hold lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
