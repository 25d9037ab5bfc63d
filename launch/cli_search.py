"""The options that say how captions are searched for."""

import argparse
from typing import Any

_SEARCH = ("prompt", "beams", "min_length", "max_length")


def add_search(parser: Any) -> None:
    """Adds them to a parser or a group of it."""
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--prompt", help="what captions begin with (as the export says, or a picture of)")
    parser.add_argument("--beams", **whole, help="captions that are tried side by side (3); 1 is greedy")
    parser.add_argument("--min-length", **whole, help="tokens before which no caption ends, the prompt's too (5)")
    parser.add_argument("--max-length", **whole, help="tokens at which every caption ends, the prompt's too (20)")


def given_search(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, by the names of `CaptionConfig`."""
    return {name: getattr(options, name) for name in _SEARCH if getattr(options, name) is not None}
