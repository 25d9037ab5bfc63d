"""What went wrong in a run and was lived through, or not: lost processes, updates left out, failures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.report.run_folder import Stage
from pipeline.progress import NON_FINITE


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One line of the account of faults."""

    stage: str
    when: Any
    """When it was noticed; None where nobody wrote that down."""
    what: str
    step: int | None = None
    """From which step training went on."""
    workers: int | None = None
    """With how many workers."""


def faults_of(stages: Sequence[Stage]) -> list[Fault]:
    """Everything that did not go as planned, stage by stage; samples that could not be read are counted elsewhere."""
    return [fault for stage in stages for fault in _faults(stage)]


def _faults(stage: Stage) -> list[Fault]:
    found = [_restart(stage.name, line) for line in stage.restart_log]
    again = stage.restarts - len(stage.restart_log)
    if again > 0:
        times = "once" if again == 1 else f"{again} times"
        found.append(Fault(stage=stage.name, when=None, what=f"the run was ended and started again, {times}"))
    left_out = int(stage.outputs.get("left_out") or 0)
    if left_out:
        what = f"{left_out} updates left out: a loss or a gradient was not a number"
        found.append(Fault(stage=stage.name, when=None, what=what))
    strange = 0 if stage.curve is None else stage.curve.total(NON_FINITE)
    if strange:
        found.append(Fault(stage=stage.name, when=None, what=f"{strange:g} values of the log were NaN or infinite"))
    if stage.state == "failed":
        found.append(Fault(stage=stage.name, when=None, what=f"failed: {stage.error or 'no reason is recorded'}"))
    return found


def _restart(stage: str, line: Any) -> Fault:
    step, workers = (line.get(name) for name in ("step", "workers"))
    return Fault(
        stage=stage,
        when=line.get("detected"),
        what=str(line.get("why") or "a process was lost"),
        step=None if step is None else int(step),
        workers=None if workers is None else int(workers),
    )
