"""What the commands of `trimline` share: their answers, their exit codes, and how one is added."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

USER_MISTAKE, INTERNAL, INTERRUPTED = 2, 1, 130

Answer = tuple[int, dict[str, Any] | None, str]
"""Exit code, the JSON object (None to print nothing), the text for people."""

Handler = Callable[[argparse.Namespace, list[str]], Answer]
"""Parsed arguments and overrides of the configuration -> the answer."""


class Parser(argparse.ArgumentParser):
    """argparse with one line instead of a usage text, and without guessing at shortened options."""

    def error(self, message: str) -> Any:
        """Ends the program with the user's exit code."""
        sys.stderr.write(f"{self.prog}: {message}; see `{self.prog} --help`\n")
        raise SystemExit(USER_MISTAKE)


COMMON = Parser(add_help=False)
COMMON.add_argument("--json", action="store_true", help="print one JSON object; everything else goes to stderr")
COMMON.add_argument("--verbose", action="store_true", help="log details to stderr")


def add_command(commands: Any, name: str, text: str, example: str, handler: Handler) -> argparse.ArgumentParser:
    """Adds a command that `handler` carries out; returns its parser, for its options."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example: trimline {example}",
        parents=[COMMON],
        allow_abbrev=False,
    )
    parser.set_defaults(handler=handler)
    return parser


def add_group(commands: Any, name: str, text: str, example: str) -> Any:
    """Adds a command that is several, by its next word; returns what `add_command` adds them to."""
    epilog = f"example: trimline {example}"
    parser = commands.add_parser(name, help=text, description=text, epilog=epilog, allow_abbrev=False)
    return parser.add_subparsers(dest="what", metavar="WHAT", required=True)
