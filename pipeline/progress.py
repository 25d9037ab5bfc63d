"""What a training process tells the outside: progress.json (replaced) and metrics.jsonl (appended).

JSON has no NaN and no infinity: in metrics.jsonl null stands for them, and `non_finite` counts those of a line.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.files import disk_full, is_disk_full, write_atomic

SECONDS_BETWEEN_WRITES = 0.5
NON_FINITE = "non_finite"
BAD_UPDATES = "bad_updates.jsonl"
"""Updates of a training that were left out, and those that it went back to a checkpoint for."""


class ProgressFile:
    """A small file that the launcher reads for its progress bar.

    Args:
        path: Where it is replaced, atomically.
        total: Units until the end.
        unit: What is counted.
    """

    def __init__(self, path: Path, total: float, unit: str) -> None:
        self.path = path
        self.total = total
        self.unit = unit
        self.written = 0.0
        self.began: tuple[float, float] | None = None

    def show(self, done: float, text: str = "", *, now: bool = False) -> None:
        """Write at most twice a second, or at once if `now`; with the seconds that the rest takes at this pace."""
        clock = time.monotonic()
        if self.began is None:
            self.began = clock, done
        if not now and clock - self.written < SECONDS_BETWEEN_WRITES:
            return
        state = {"done": done, "total": self.total, "unit": self.unit, "text": text, "eta_seconds": None}
        since, before = self.began
        if done > before:
            state["eta_seconds"] = round((self.total - done) * (clock - since) / (done - before), 1)
        write_atomic(self.path, json.dumps(state))
        self.written = time.monotonic()


class MetricsLog:
    """One JSON object a line; after a restart, lines beyond the checkpoint are dropped before new ones come.

    Args:
        path: The metrics.jsonl of a stage, or another file of lines that have a step.
        step: Steps that the checkpoint has done; lines of later steps are dropped.
        lasting: Lines with this key are dropped only where training begins anew.
    """

    def __init__(self, path: Path, step: int, lasting: str | None = None) -> None:
        self.path = path
        kept = [line for line in read_metrics(path) if line["step"] <= step or (step and lasting in line)]
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append a line, and return it as it stands there.

        Raises:
            UserError: The disk is full.
        """
        line = _finite(values)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(self.path, error) from error
            raise
        return line

    def amend(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Adds values to the last line, or appends a line of their own where that is of another step; returns them.

        Args:
            values: With their ``step``.
        """
        lines = read_metrics(self.path)
        if not lines or lines[-1]["step"] != values["step"]:
            return self.write(values)
        added = _finite(values)
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in [*lines[:-1], lines[-1] | added]))
        return added


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [read_line(line) for line in text.split("\n")[:-1] if line]


def read_line(text: str | bytes) -> Any:
    """What a line says; older logs hold NaN, which is read as null.

    Raises:
        ValueError: It is no JSON.
    """
    return json.loads(text, parse_constant=lambda name: None)


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    bad = {name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
    line = {name: None if name in bad else value for name, value in values.items()}
    return line | ({NON_FINITE: len(bad)} if bad else {})
