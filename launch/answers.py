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


class HelpLines(argparse.HelpFormatter):
    """argparse's help, but lines of an epilog stay apart."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(super(HelpLines, self)._fill_text(line, width, indent) for line in text.splitlines())


def add_command(
    commands: Any, name: str, text: str, example: str, handler: Handler, keys: str = ""
) -> argparse.ArgumentParser:
    """Adds a command that `handler` carries out; returns its parser, for its options.

    Args:
        commands: What it is added to.
        name: Its word.
        text: What it does.
        example: A command line without the program's name.
        handler: Carries it out.
        keys: Where the keys of the configuration are told that it takes; empty where it takes none.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=epilog_of(f"trimline {example}", keys),
        formatter_class=HelpLines,
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


def epilog_of(example: str, keys: str = "") -> str:
    """The end of a command's help: an example, and in a line of its own where its keys are told."""
    return f"example: {example}" + (f"\nkeys: {keys}" if keys else "")


def take_both_spellings(parser: argparse.ArgumentParser) -> None:
    """Lets `-` and `_` stand for each other within the names of options, here and in all commands below.

    Help shows the name that an option was added with. Not so the negation of a flag (``--no-compile``), which argparse
    tells by its spelling.
    """
    for name, action in list(parser._option_string_actions.items()):
        if name.startswith("--") and not isinstance(action, argparse.BooleanOptionalAction):
            for other in (name[2:].replace("-", "_"), name[2:].replace("_", "-")):
                parser._option_string_actions.setdefault(f"--{other}", action)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                take_both_spellings(below)
