"""docs/reference is what the code says, and the code says something of every key."""

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.key_texts import key_texts
from launch.reading import known_keys, members, named
from launch.reference import CONFIGURATIONS, PAGES, main, type_words
from launch.shard_help import source_titles

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
KINDS = [kind for _, kind in CONFIGURATIONS.values()]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_gives(name: str) -> None:
    assert PAGES[name]() == (FOLDER / name).read_text("utf-8"), "the code has changed: `make reference`"


def test_the_program_writes_all_pages(tmp_path: Path) -> None:
    assert main([str(tmp_path / "new")]) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(PAGES)


def dataclasses_of(kind: type[Any]) -> Iterator[type[Any]]:
    yield kind
    for inner in [*dict(members(kind)).values(), *named(kind).values()]:
        if inner is not None:
            yield from dataclasses_of(inner)


@pytest.mark.parametrize(
    "kind", sorted({one for kind in KINDS for one in dataclasses_of(kind)}, key=lambda k: k.__name__)
)
def test_every_key_has_a_description_and_no_description_lacks_its_key(kind: type[Any]) -> None:
    names = {field.name for field in dataclasses.fields(kind)}
    assert {name for name in names if not key_texts(kind).get(name)} == set()
    assert set(key_texts(kind)) - names == set()


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_has_a_row(kind: type[Any]) -> None:
    page = (FOLDER / "config.md").read_text("utf-8")
    keys = known_keys(kind)
    keys += [
        f"{group}.NAME.{field.name}" for group, inner in named(kind).items() for field in dataclasses.fields(inner)
    ]
    groups = {name.rpartition(".")[0] for name in keys}
    for key in keys:
        # A section that another one has told already is referred to, by its heading.
        assert f"| `{key}` |" in page or f"### `{key.rpartition('.')[0]}`" in page, key
    assert all(f"### `{group}`" in page for group in groups if group)


def test_every_source_is_named() -> None:
    page = (FOLDER / "commands.md").read_text("utf-8")
    assert all(f"| `{name}` | {title} |" in page for name, title in source_titles().items())


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "whole number or null"),
        (tuple[float | str, ...], "list of number or text"),
        (tuple[float, float], "list of 2: number, number"),
        (typing.Literal["a", "b"], "`a`, `b`"),
        (dict[str, float], "names, each with number"),
    ],
)
def test_types_are_told_in_words(hint: Any, words: str) -> None:
    assert type_words(hint) == words
