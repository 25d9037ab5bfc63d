"""What a run with a fault may take, and whether it did: time, lost work, and the samples of each step."""

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.checkpoint_places import COMPLETE
from pipeline.progress import read_metrics
from tests.launch.faulty.faults import EVERY

DETECTED_SECONDS = 20.0
AGAIN_SECONDS = 60.0
_SAMPLES = "samples.rank*.jsonl"


def checkpoints(folder: Path) -> tuple[int, int | None]:
    """After which step the newest complete checkpoint was saved, 0 for none; and that of a newer one in the making."""
    begun = list(folder.glob("*step_????????"))
    steps = {path: int(path.name.rpartition("_")[2]) for path in begun}
    complete = max((steps[path] for path in begun if (path / COMPLETE).exists()), default=0)
    return complete, max((step for step in steps.values() if step > complete), default=None)


def over(row: Mapping[str, Any]) -> list[str]:
    """Which limits a row is over, in words; a fault that stops nothing has none.

    Lost is what was done when the fault struck and has to be done again: at most one interval between checkpoints,
    `EVERY` steps. They are written while training goes on, and one that was not complete when the fault struck need
    not count: then the steps since it was begun come on top, and no others. One that was complete is not passed over.
    Steps after the fault, until it stops training (a full disk shows at the next save), are in the row's
    `steps_lost`; the limit of detection bounds them.
    """
    if row["detected_seconds"] is None:
        return []
    wrong = []
    if row["detected_seconds"] > DETECTED_SECONDS:
        wrong.append(f"noticed after {row['detected_seconds']} s, not {DETECTED_SECONDS:g}")
    if row["training_again_seconds"] > AGAIN_SECONDS:
        wrong.append(f"training again {row['training_again_seconds']} s after that, not {AGAIN_SECONDS:g}")
    if row["resumed_from"] < row["complete"]:
        wrong.append(f"went on from step {row['resumed_from']}, though that of step {row['complete']} was complete")
    allowed = EVERY if row["saving"] is None else EVERY + max(0, row["step"] - row["saving"])
    if row["step"] - row["resumed_from"] > allowed:
        wrong.append(f"{row['step'] - row['resumed_from']} steps lost, not {allowed} at most")
    return wrong


def complaints(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each row that failed or is over a limit."""
    wrong = [(row, [row["failed"]] if "failed" in row else over(row)) for row in rows]
    return [f"{row['fault']}, seed {row['seed']}: {'; '.join(words)}" for row, words in wrong if words]


def gone_on_from(out: Path, before: Collection[int]) -> int:
    """After which step training went on in the first process that is not one of those before."""
    lines = chain.from_iterable(read_metrics(path) for path in sorted(out.glob(_SAMPLES)))
    return int(next(line["step"] for line in lines if line["pid"] not in before)) - 1


def samples_of_steps(out: Path) -> dict[int, list[Any]]:
    """The samples of each step of a run, those of all ranks together, as the hook of the cluster wrote them down.

    Raises:
        AssertionError: A step that was done again, perhaps with another number of workers, had others.
    """
    parts: dict[tuple[int, int], dict[int, list[Any]]] = {}
    for path in out.glob(_SAMPLES):
        for line in read_metrics(path):
            by_rank = parts.setdefault((line["step"], line["of"]), {})
            _check_same(line["step"], by_rank.setdefault(line["rank"], line["samples"]), line["samples"])
    steps: dict[int, list[Any]] = {}
    for (step, workers), by_rank in parts.items():
        if len(by_rank) == workers:  # else one of them was lost before it began the step
            samples = sorted(chain.from_iterable(by_rank.values()))
            _check_same(step, steps.setdefault(step, samples), samples)
    return steps


def _check_same(step: int, before: list[Any], again: list[Any]) -> None:
    assert before == again, f"step {step} had samples {before}, and {again} when it was done again"
