"""What went wrong in a run and was lived through, or not: lost processes, updates left out, failures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.report.run_folder import Stage
from pipeline.progress import NON_FINITE

_MOST_NAMED = 8
"""Updates whose numbers stand in the account."""


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
    found += [*_rewinds(stage), *_left_out(stage)]
    strange = 0 if stage.curve is None else stage.curve.total(NON_FINITE)
    if strange:
        found.append(Fault(stage=stage.name, when=None, what=f"{strange:g} values of the log were NaN or infinite"))
    if stage.state == "failed":
        found.append(Fault(stage=stage.name, when=None, what=f"failed: {stage.error or 'no reason is recorded'}"))
    return found


def _rewinds(stage: Stage) -> list[Fault]:
    return [
        Fault(
            stage=stage.name,
            when=line.get("detected"),
            what=f"went back to the last checkpoint from update {line.get('step')}: {line.get('why')}",
            step=int(line["back_to"]),
        )
        for line in stage.bad_updates
        if "back_to" in line
    ]


def _left_out(stage: Stage) -> list[Fault]:
    """Of a stage that is over its result counts them, of any stage its list; older runs have the first alone."""
    lines = [line for line in stage.bad_updates if "back_to" not in line]
    count = max(len(lines), int(stage.outputs.get("left_out") or 0))
    if not count:
        return []
    what = f"{count} update{'s' if count > 1 else ''} left out: a loss or a gradient was not a number"
    if lines:
        shown = ", ".join(str(line.get("step")) for line in lines[:_MOST_NAMED])
        known = "of those known: " if len(lines) < count else ""  # a run that began before there was a list
        what += f" ({known}update {shown}{', ...' if len(lines) > _MOST_NAMED else ''})"
    return [Fault(stage=stage.name, when=lines[-1].get("detected") if lines else None, what=what)]


def _restart(stage: str, line: Any) -> Fault:
    step, workers = (line.get(name) for name in ("step", "workers"))
    return Fault(
        stage=stage,
        when=line.get("detected"),
        what=str(line.get("why") or "a process was lost"),
        step=None if step is None else int(step),
        workers=None if workers is None else int(workers),
    )
