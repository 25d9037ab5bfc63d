"""The report of a batch-size scaling experiment: one self-contained file, and its table for the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_json, write_atomic
from launch.report.html import page_environment
from launch.report.scale_figures import scale_figures
from launch.report.table import aligned
from launch.report.words import ABSENT, duration, moment, number
from launch.scaling.config import SCALE
from launch.scaling.trial import OK

_GIB = 2**30
_COLUMNS = {
    "global_batch": "global batch", "micro_batch": "micro-batch", "accumulation": "parts", "pruning": "pruning",
    "lr": "learning rate", "zero_stage": "ZeRO", "precision": "precision", "recompute": "recompute",
    "workers": "workers", "machine": "machine", "commit": "commit", "status": "status",
    "samples_per_second": "samples/s", "step_ms": "step ms", "data_wait": "data wait",
    "peak_gib": "GiB", "gmacs_per_second_per_worker": "GMACs/s", "mfu": "MFU", "noise_scale": "noise scale",
    "critical_batch": "critical batch", "fixed_loss": "loss",
    "steps_to_goal": "updates to goal", "seconds_to_goal": "s to goal",
}  # fmt: skip
"""Columns of the table with their heads; those that say the same of all trials, or nothing, are left out."""
_ALWAYS = ("global_batch", "pruning", "status", "samples_per_second")
_SETTINGS = tuple(_COLUMNS)[: tuple(_COLUMNS).index("status")]
_SHARES = ("mfu", "data_wait")
_WORDS = ("pruning", "precision", "status", "recompute", "machine", "commit")


def rewrite_scale_report(folder: Path) -> Path:
    """Writes report.html into an experiment's folder anew, from what was measured.

    Args:
        folder: The `out` of a `trimline scale`, finished or not.

    Returns:
        The path of report.html.

    Raises:
        UserError: Nothing is measured yet, or scale.json is damaged or of an older trimline.
    """
    again = "the same `trimline scale` again goes on and writes it"
    try:
        return write_scale_report(folder, read_json(folder / SCALE, again))
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {SCALE} yet, for no trial has ended; {again}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / SCALE} is not as `trimline scale` writes it ({error!r}); {again} anew") from error


def write_scale_report(out: Path, data: Mapping[str, Any]) -> Path:
    """Writes report.html into an experiment's folder, and its figures with their numbers into figures/.

    Args:
        out: The folder.
        data: What stands in scale.json.

    Returns:
        The path of report.html.
    """
    drawings = scale_figures(data)
    for drawing in drawings:
        drawing.save(out / "figures")
    columns = columns_of(data["rows"])
    facts = [
        ("Ran on", "; ".join(_measured_on(data))),
        ("Took", duration(data["seconds"])),
        ("Started", moment(data["started"])),
        ("Commit", ", ".join(dict.fromkeys(row["commit"] for row in data["rows"] if row["commit"]))),
    ]
    page = (
        page_environment()
        .get_template("scale.html.j2")
        .render(
            data=data,
            drawings=drawings,
            facts=[(name, text) for name, text in facts if text],
            heads=[(_COLUMNS[name], name not in _WORDS) for name in columns],
            rows=[_cells(row, columns) for row in data["rows"]],
            reasons=_reasons(data),
            largest=largest_cells(data["largest"]),
            largest_heads=LARGEST,
            parts=part_cells(data["largest"]),
        )
    )
    target = out / "report.html"
    write_atomic(target, page)
    return target


def _measured_on(data: Mapping[str, Any]) -> list[str]:
    """The machines that measured, each once: not the one that writes the report, nor where a trial came to nothing."""
    searched = [] if data["largest"] is None else data["largest"]["found"]
    names = [row["machine"] for row in data["rows"] if row["status"] == OK]
    names += [name for entry in searched for name in entry["machines"]]
    return list(dict.fromkeys(names))


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that tell something: a setting that differs, a number that was measured."""
    found = []
    for name in _COLUMNS:
        values = {_value(row, name) for row in rows}
        setting = name in _SETTINGS
        if name in _ALWAYS or (len(values) > 1 if setting else values != {None}):
            found.append(name)
    return found


def _value(row: Mapping[str, Any], name: str) -> Any:
    if name == "peak_gib":
        return None if row["peak_bytes"] is None else row["peak_bytes"] / _GIB
    return row[name]


def _cells(row: Mapping[str, Any], columns: Sequence[str]) -> list[tuple[str, Any]]:
    """Text and exact value of each cell."""
    return [(_text(name, _value(row, name)), _value(row, name)) for name in columns]


def _text(name: str, value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if name in _SHARES:
        return f"{value:.1%}"
    return number(value if isinstance(value, int) else float(f"{value:.4g}"))


LARGEST = (
    "Pruning", "Largest", "Next up", "Measured GiB", "Predicted GiB", "Off by", "Kept a sample MiB", "Gain",
    "Predicted gain", "Share",
)  # fmt: skip


def largest_cells(largest: Mapping[str, Any] | None) -> list[list[str]]:
    """The search's table: a line for each pruning."""
    if largest is None:
        return []
    return [
        [
            entry["pruning"], number(entry["largest"]), _above(entry), _gib(entry["measured_bytes"]),
            _gib(entry["predicted_bytes"]),
            ABSENT if entry["prediction_error"] is None else f"{entry['prediction_error']:+.1%}",
            _mib(entry["saved_bytes_per_sample"], 2), _times(entry["gain"]), _times(entry["predicted_gain"]),
            ABSENT if entry["gain_share"] is None else f"{entry['gain_share']:.3f}",
        ]
        for entry in largest["found"]
    ]  # fmt: skip


def _above(entry: Mapping[str, Any]) -> str:
    if entry["next_up"] is None:
        return "not met"
    return (
        f"{entry['next_up']} does not fit" if entry["settled"] else f"{entry['next_up']} does not fit, between untried"
    )


def part_cells(largest: Mapping[str, Any] | None) -> list[list[str]]:
    """Bytes kept for the backward by part of the model: a line for each part, a column for each pruning."""
    if largest is None:
        return []
    found = largest["found"]
    parts = dict.fromkeys(part for entry in found for part in entry["saved_bytes"])
    lines = [["part", *(f"{entry['pruning']}, MiB a sample" for entry in found)]]
    lines += [[part, *(f"{entry['saved_bytes'].get(part, 0.0) / 2**20:.3f}" for entry in found)] for part in parts]
    return [*lines, ["whole", *(_mib(entry["saved_bytes_per_sample"], 3) for entry in found)]]


def _reasons(data: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = [(row["name"], row["status"], row["reason"]) for row in data["rows"] if row["reason"]]
    return [*rows, *_faults(data["largest"])]


def _faults(largest: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """What is missing of the search, and why, as trials that failed are told of."""
    found = [] if largest is None else largest["found"]
    return [(f"largest, {entry['pruning']}", "not all found", entry["fault"]) for entry in found if entry["fault"]]


def _mib(value: float | None, digits: int) -> str:
    return ABSENT if value is None else f"{value / 2**20:.{digits}f}"


def _gib(value: float | None) -> str:
    return ABSENT if value is None else f"{value / _GIB:.3f}"


def _times(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}x"


def scale_text(data: Mapping[str, Any]) -> str:
    """The result for the terminal: the table, the largest batches, the sentence."""
    columns = columns_of(data["rows"])
    cells = [["trial", *(_COLUMNS[name] for name in columns)]]
    cells += [[row["name"], *(text for text, _ in _cells(row, columns))] for row in data["rows"]]
    lines = [*aligned(cells, left=1)]
    lines += [": ".join(words) for words in _reasons(data)]
    if data["largest"] is not None:
        limit = data["largest"]["limit_bytes"] / _GIB
        lines += [
            "",
            f"largest micro-batch within {limit:g} GiB",
            *aligned([list(LARGEST), *largest_cells(data["largest"])], left=1),
        ]
        lines += ["", "bytes kept for the backward", *aligned(part_cells(data["largest"]), left=1)]
    return "\n".join([*lines, "", data["recommendation"]])
