"""Reads the files that wandb writes: its own records in LevelDB's log format."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as messages

_HEADER, _BLOCK, _RECORD = 7, 32768, 7
_WHOLE, _LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, in order."""
    data, at, parts = path.read_bytes(), _HEADER, b""
    while at + _RECORD <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _RECORD:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + _RECORD : at + _RECORD + length]
        at += _RECORD + length
        if kind in (_WHOLE, _LAST):
            record = messages.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def run_of(path: Path) -> Any:
    """What wandb knows of the run itself."""
    return next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")


def config_of(path: Path) -> dict[str, Any]:
    """The run's configuration."""
    return {item.key: json.loads(item.value_json) for item in run_of(path).config.update}


def history(path: Path) -> list[dict[str, Any]]:
    """The logged lines, without wandb's own numbers."""
    lines = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            line: dict[str, Any] = {}
            for item in record.history.item:
                keys = list(item.nested_key) or [item.key]
                inner = line
                for key in keys[:-1]:
                    inner = inner.setdefault(key, {})
                inner[keys[-1]] = json.loads(item.value_json)
            lines.append({name: value for name, value in line.items() if not name.startswith("_")})
    return lines


def summary_of(path: Path) -> dict[str, Any]:
    """The last value of every name."""
    found = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                found["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return found
