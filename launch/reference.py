"""Writes docs/reference from the code: the commands with their options, the keys of every configuration.

``python -m launch.reference docs/reference`` (``make reference``); a test holds the pages against the code.
"""

import argparse
import dataclasses
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.answers import COMMON
from launch.cli import command_parser
from launch.commands import ShardConfig
from launch.compare import CompareConfig
from launch.config import RunConfig
from launch.key_texts import key_texts, kind_text
from launch.reading import members, named
from launch.scaling.config import ScaleConfig
from launch.shard_help import source_titles

CONFIGURATIONS: Mapping[str, tuple[tuple[str, ...], type[Any]]] = {
    "A run": (("run", "pretrain", "trim", "evaluate", "cluster submit"), RunConfig),
    "A comparison": (("compare",), CompareConfig),
    "A scaling experiment": (("scale",), ScaleConfig),
    "Shards of a data set": (("shard",), ShardConfig),
}
"""Title of a configuration -> the commands that read it, and its dataclass."""
_MADE = "<!-- Made by `make reference` from the code; change it there. -->"
_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null", Any: "anything"}


def commands_page() -> str:
    """The page of the commands."""
    lines = [
        "# Commands",
        "",
        _MADE,
        "",
        f"Every command has `--help` and these options: {_common()}.",
        "Hyphens and underscores may stand for each other in the options below (`--batch-size`, `--batch_size`; not in",
        "`--no-compile`); keys of configurations are written with underscores, as their page has them.",
        "Exit codes: 0 done, 1 an error of Trimline's own, 2 a mistake of the user's, told in one line, 130 stopped.",
        "",
    ]
    commands = list(_commands(command_parser(), ()))
    lines += [", ".join(_to_heading(" ".join(words), f"trimline {' '.join(words)}") for words, _ in commands) + ".", ""]
    for words, parser in commands:
        lines += _command(words, parser)
    return "\n".join(lines).rstrip() + "\n"


def config_page() -> str:
    """The page of the configurations' keys."""
    lines = [
        "# Configuration keys",
        "",
        _MADE,
        "",
        "A key stands in a YAML file, nested as its dots say, or on the command line as `--key.sub VALUE`. Later files",
        "win over earlier ones, the command line over all. An unknown key is refused with the nearest known one.",
        "",
    ]
    for title, (commands, kind) in CONFIGURATIONS.items():
        names = ", ".join(f"`trimline {name}`" for name in commands)
        lines += [f"## {title}", "", f"{kind_text(kind)} Read by {names}.", ""]
        shown: dict[str, str] = {}
        sections = list(_sections(kind, "", None))
        if len(sections) > 1:
            lines += [", ".join(_to_heading(f"`{one.key}`", one.key) for one in sections[1:]) + ".", ""]
        for section in sections:
            lines += section.text(shown)
    return "\n".join(lines).rstrip() + "\n"


PAGES = {"commands.md": commands_page, "config.md": config_page}


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the pages into the folder that is given."""
    parser = argparse.ArgumentParser(prog="python -m launch.reference", description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path, help="to write to, such as docs/reference")
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")
    return 0


def _common() -> str:
    return ", ".join(f"`{action.option_strings[-1]}` ({action.help})" for action in COMMON._actions)


def _commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command that does something, below `parser`."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for name, inner in group.choices.items():
            yield from _commands(inner, (*words, name))
    if not groups:
        yield words, parser


def _command(words: tuple[str, ...], parser: argparse.ArgumentParser) -> Iterator[str]:
    shared = {action.dest for action in COMMON._actions} | {"help"}
    actions = [action for action in parser._actions if action.dest not in shared]
    usage = " ".join(["trimline", *words, *(_shown(action) for action in actions if _is_wanted(action))])
    title = f"trimline {' '.join(words)}"
    yield from (f"## {title}", "", f"{_sentence(parser.description or '')}", "")
    yield from ("```text", f"{usage} [OPTION ...]", "```", "")
    for read, (readers, _) in CONFIGURATIONS.items():
        if " ".join(words) in readers:
            yield from (f"Keys: [{read}](config.md#{_anchor(read)}).", "")
    if words == ("shard",):
        yield from ("| source | what |", "|---|---|")
        yield from (f"| `{name}` | {_cell(title)} |" for name, title in source_titles().items())
        yield ""
    if actions:
        yield from ("| option | what |", "|---|---|")
        yield from (f"| `{_cell(_shown(action))}` | {_cell(_what(action, parser))} |" for action in actions)
        yield ""
    if parser.epilog and parser.epilog.startswith("example: "):
        yield from (f"Example: `{parser.epilog.splitlines()[0].removeprefix('example: ')}`", "")


def _is_wanted(action: argparse.Action) -> bool:
    return action.required or (not action.option_strings and action.nargs == "*")


def _shown(action: argparse.Action) -> str:
    """An option as it is typed."""
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    value = "|".join(map(str, action.choices)) if action.choices is not None else metavar
    if not action.option_strings:
        return {"*": f"[{value} ...]", "+": f"{value} ...", "?": f"[{value}]"}.get(str(action.nargs), value)
    name = ", ".join(action.option_strings)
    return name if action.nargs == 0 else f"{name} {value}"


def _what(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return f"{text}; must be given" if action.required and action.option_strings else text


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Section:
    """A dataclass at its place in a configuration.

    Attributes:
        key: Where it stands; empty for the whole configuration.
        kind: The dataclass.
        rows: A row of the table for each key, without the section's own key.
    """

    key: str
    kind: type[Any]
    rows: tuple[tuple[str, str, str, str], ...]

    def text(self, shown: dict[str, str]) -> Iterator[str]:
        """Markdown lines; what stands in `shown` already, with the same defaults, is referred to."""
        if self.key:
            yield from (f"### `{self.key}`", "", kind_text(self.kind), "")
        content = repr(self.rows)
        if content in shown:
            yield from (f"The keys, types and defaults of {_to_heading(f'`{shown[content]}`', shown[content])}.", "")
            return
        shown[content] = self.key
        yield from ("| key | type | default | what |", "|---|---|---|---|")
        prefix = f"{self.key}." if self.key else ""
        for name, kind, default, what in self.rows:
            yield f"| `{prefix}{name}` | {_cell(kind)} | {_cell(default)} | {_cell(what)} |"
        yield ""


def _sections(kind: type[Any], key: str, default: Any, levels: int = 99) -> Iterator[_Section]:
    """A dataclass and those that its keys hold, so many levels down, with the defaults that hold at this place."""
    texts, hints, inner = key_texts(kind), typing.get_type_hints(kind), dict(members(kind))
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    values = {name: _default(field, default) for name, field in fields.items()}
    rows = tuple((name, type_words(hints[name]), _value(values[name]), texts.get(name, "")) for name in fields)
    yield _Section(key=key, kind=kind, rows=rows)
    for name, held in inner.items():
        if held is not None and levels:
            given = values[name] if isinstance(values[name], held) else None
            yield from _sections(held, f"{key}.{name}".removeprefix("."), given, levels - 1)
    for name, held in named(kind).items():
        # What is further down is as of the parts that the whole has itself.
        yield from _sections(held, f"{key}.{name}.NAME".removeprefix("."), None, levels=1)


def _default(field: "dataclasses.Field[Any]", parent: Any) -> Any:
    """What holds where the key is not given; MISSING where it must be."""
    if parent is not None:
        return getattr(parent, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _value(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "must be given"
    if dataclasses.is_dataclass(value):
        return "its keys'"
    return f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(value, ensure_ascii=False)}`"


def type_words(hint: Any) -> str:
    """A type in words that people who write YAML know."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return "keys below"
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_words(one) for one in inner)
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"list of {len(inner)}: {', '.join(type_words(one) for one in inner)}"
    if origin in (tuple, list):
        return f"list of {type_words(inner[0])}"
    if origin is dict:
        return f"names, each with {type_words(inner[1])}"
    return _PLAIN[hint]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _cell(text: str) -> str:
    """Text within a table: no line may end, no bar may part it; double backticks are Python's custom."""
    return text.replace("``", "`").replace("|", "\\|")


def _to_heading(text: str, heading: str) -> str:
    return f"[{text}](#{_anchor(heading)})"


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")


if __name__ == "__main__":
    sys.exit(main())
