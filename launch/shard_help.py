"""What `trimline shard SOURCE --help` says: the files that a data set is published as, and the options it knows."""

import dataclasses
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from data_prep.sources import SOURCES, SourceConfig, source_module
from data_prep.sources.published import DataSet, Expected
from launch.key_texts import key_texts

_WIDTH = 110
# Options that mean something for these sources only.
_OWN = {
    "image_size": ("shapes",),
    "match": ("albef", "table"),
    "regions": ("vg",),
    "columns": ("table",),
    "splits": ("shards",),
}
_WITHOUT_FILES = ("annotations", "images", "cache")


def sources_text() -> str:
    """All sources, a line each."""
    lines = ["sources:", *(_item(name, title) for name, title in source_titles().items())]
    return "\n".join(
        [*lines, "", "`trimline shard SOURCE --help` says which files a source wants and which options it has"]
    )


def source_titles() -> dict[str, str]:
    """What each source is, in a few words."""
    return {name: _title(name) for name in SOURCES}


def source_text(name: str, config: type[SourceConfig]) -> str:
    """One source: what it is, its files as they are published, its options, an example.

    Args:
        name: One of `SOURCES`.
        config: The dataclass that the options are read into.
    """
    data = _data(name)
    lines = [f"trimline shard {name}: {_title(name)}", ""]
    if data is None:
        lines += [*textwrap.wrap(_rest(name), _WIDTH), ""]
    else:
        lines += [*_files(data), ""]
        lines += [*textwrap.wrap(data.notes, _WIDTH), ""] if data.notes else []
    lines += [
        "options:",
        *_options(name, config),
        _item("--json", "print one JSON object; all else goes to stderr"),
        "",
    ]
    return "\n".join([*lines, f"example: trimline shard {name} {_example(name, data)}"])


def _data(name: str) -> DataSet | None:
    data = getattr(source_module(name), "DATA", None)
    return data if isinstance(data, DataSet) else None


def _title(name: str) -> str:
    data = _data(name)
    return data.title if data else str(source_module(name).__doc__).partition("\n")[0].rstrip(".")


def _rest(name: str) -> str:
    return " ".join(str(source_module(name).__doc__).partition("\n")[2].split())


def _item(name: str, text: str) -> str:
    indent = " " * 26
    body = textwrap.wrap(text, _WIDTH - len(indent)) or [""]
    head = f"  {name}"
    first = [f"{head:<26}{body[0]}"] if len(head) < 25 else [head, f"{indent}{body[0]}"]
    return "\n".join([*first, *(f"{indent}{line}" for line in body[1:])])


def _files(data: DataSet) -> Iterator[str]:
    layouts = [layout for layout in data.layouts if layout.files]
    yield "files (below --root DIR under these names, or given one by one):"
    for layout in layouts:
        if len(layouts) > 1:
            yield f" {layout.name}:"
        yield from (_expected("--annotations", one) for one in layout.files)
    yield " pictures:"
    yield from (_expected("--images", one) for one in data.pictures)


def _expected(option: str, one: Expected) -> str:
    names = " ".join(one.names) if len(one.names) <= 4 else " ".join([*one.names[:4], "..."])
    return f"  {option} {names}\n      {one.what}{' (optional)' if one.optional else ''}"


def _options(name: str, config: type[Any], prefix: str = "") -> Iterator[str]:
    """The options with their descriptions, which stand in the docstrings of the dataclasses."""
    texts = key_texts(config)
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        hidden = field.name == "name" and not prefix
        hidden = hidden or name not in _OWN.get(field.name, (name,))
        if hidden or (not prefix and field.name in _WITHOUT_FILES and _data(name) is None):
            continue
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _options(name, hints[field.name], f"{field.name}.")
        else:
            text = texts.get(field.name, "")
            label = f"{field.name}.SPLIT" if field.name == "sizes" else field.name
            yield _item(f"--{prefix}{label}", text + _default(field))


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default in (dataclasses.MISSING, None, (), ""):
        return ""
    return f" ({field.default})"


def _example(name: str, data: DataSet | None) -> str:
    if name == "shapes":
        return "--out data/shapes --sizes.train 1000"
    if data is None or (data.layouts and name not in ("albef", "table")):
        return f"--root DIR --out data/{name}"
    annotations = {"albef": "--annotations coco.json vg.json ", "table": "--annotations captions.csv "}.get(name, "")
    return f"{annotations}--images DIR --out data/{name}"
