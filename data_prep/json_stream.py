"""Reads JSON files of any length in flat memory: one array item, or one line, at a time.

An array's items are found one after another by the standard library's decoder on a sliding text. ijson, the usual
library for this, is not used: a few kilobytes of nested brackets made it take all memory.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.errors import UserError

_CHUNK = 1 << 20
# No record of any known data set comes near; a file with a longer one is not of its format.
_LONGEST = 64 << 20
_SPACE = " \t\n\r"
_MEND = "fetch this file again, or mend it where it is your own"


def _no_number(name: str) -> None:
    """NaN and the infinities, which JSON does not have, are read as null."""


_DECODER = json.JSONDecoder(parse_constant=_no_number)


class _Text:
    """A sliding window on a UTF-8 file, with just enough of a parser to step from value to value."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115 - closed by stream_json
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text, self._at, self._ended = "", 0, False

    def close(self) -> None:
        self._file.close()

    def fail(self, what: str) -> UserError:
        found = self._text[self._at : self._at + 40]
        return UserError(f"{self._path} is not whole JSON: {what}, found {found!r}; {_MEND}")

    def _more(self, size: int = _CHUNK) -> bool:
        if self._ended:
            return False
        data = self._file.read(size)
        self._ended = not data
        try:
            self._text = self._text[self._at :] + self._decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise UserError(f"{self._path} is not UTF-8 text ({error}); {_MEND}") from error
        self._at = 0
        return not self._ended

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def take(self, *wanted: str) -> str:
        """Steps over one of the wanted characters."""
        found = self.peek()
        if found not in wanted or not found:
            raise self.fail(f"wanted {' or '.join(wanted)}")
        self._at += 1
        return found

    def value(self) -> Any:
        """Reads one value whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise self.fail("values are nested too deep") from error
            except ValueError as error:
                if not self._longer():
                    raise self.fail(str(error)) from error
                continue
            # A number may go on in the next chunk.
            if end < len(self._text) or not self._longer():
                self._at = end
                return value

    def _longer(self) -> bool:
        held = len(self._text) - self._at
        if held > _LONGEST:
            raise self.fail(f"one value has more than {_LONGEST >> 20} MiB")
        # Doubling keeps the time for a long value linear.
        return self._more(max(_CHUNK, held))


def stream_json(path: Path) -> Iterator[tuple[str, Any]]:
    """Steps through the values of a JSON file.

    Args:
        path: A file that holds an object or an array.

    Yields:
        (key, value) for each value of an object, where an array is given item by item under its key; ("", item) for
        each item of an array.

    Raises:
        UserError: where the file is not JSON, or neither of the two.
    """
    text = _Text(path)
    try:
        start = text.peek()
        if start == "[":
            yield from _items(text, "")
        elif start == "{":
            yield from _members(text)
        else:
            raise text.fail("wanted an object or an array")
        if text.peek():
            raise text.fail("wanted nothing more")
    finally:
        text.close()


def _members(text: _Text) -> Iterator[tuple[str, Any]]:
    text.take("{")
    if text.peek() == "}":
        text.take("}")
        return
    while True:
        key = text.value()
        if not isinstance(key, str):
            raise text.fail("wanted a name in quotes")
        text.take(":")
        if text.peek() == "[":
            yield from _items(text, key)
        else:
            yield key, text.value()
        if text.take(",", "}") == "}":
            return


def _items(text: _Text, key: str) -> Iterator[tuple[str, Any]]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    while True:
        yield key, text.value()
        if text.take(",", "]") == "]":
            return


def loads(text: str | bytes) -> Any:
    """Decodes a short JSON text; None for one that is malformed."""
    try:
        return _DECODER.decode(text.decode() if isinstance(text, bytes) else text)
    except (ValueError, RecursionError):
        return None


def text_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """The lines of a UTF-8 text file, in flat memory.

    Yields:
        (number from 1, line without its end); None for a line that is not UTF-8, or longer than 64 MiB.

    Raises:
        UserError: where the file is no text at all.
    """
    with open(path, "rb") as file:
        if b"\0" in file.read(4096):
            raise UserError(f"{path} is not a text file (it holds zero bytes); give the annotation file itself")
        file.seek(0)
        number = 0
        while line := file.readline(_LONGEST):
            number += 1
            yield number, _line(line, first=number == 1)
            while len(line) == _LONGEST and not line.endswith(b"\n"):
                line = file.readline(_LONGEST)


def _line(line: bytes, *, first: bool) -> str | None:
    if len(line) == _LONGEST:
        return None
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError:
        return None
    return text.rstrip("\r\n")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The objects of a file with one JSON object a line; empty lines are passed over.

    Yields:
        (line number from 1, object); None for a line that holds no JSON object.

    Raises:
        UserError: where the file is no text at all.
    """
    for number, line in text_lines(path):
        if line is not None and not line.strip():
            continue
        value = None if line is None else loads(line)
        yield number, value if isinstance(value, dict) else None
