"""One trial as a stage: cached by its fingerprint, carried out in a process of its own, its end told by a word."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import launch
from data_prep.files import read_json, write_atomic, write_json
from launch.config import RunConfig
from launch.graph import Attempt, Observer, Stage, StageFailed, read_status, run_graph
from launch.job import RESULT
from launch.reading import as_json, dump_config
from launch.scaling.child import CONFIG, JOB
from launch.scaling.limited import Ended, run_limited
from pipeline.measure.memory_limit import Over, clear_over, read_over
from pipeline.measure.scale_trial import TrialPlan

Status = Literal["ok", "out of memory", "too slow", "failed"]
OK: Status = "ok"
OUT_OF_MEMORY: Status = "out of memory"
TOO_SLOW: Status = "too slow"
FAILED: Status = "failed"

_LOG = "process.txt"
_WORK = "pipeline.measure.scale_trial"
# Not the guess of `local_processes` about a process that ended without a word.
_MEMORY_WORDS = re.compile(
    r"(?<!have run )out ?of ?memory|can't allocate memory|cannot allocate memory|bad_alloc", re.IGNORECASE
)
_KILLED = -9
_GIB = 2**30


class TrialFailed(StageFailed):
    """A trial ended by an error; it is tried again with the next start of the experiment."""


@dataclass(frozen=True)
class Work:
    """What one process is to do.

    Attributes:
        name: Of its folder.
        run: Configuration of the run.
        plan: How far it goes.
        seconds: Its time.
        function: Of `pipeline.measure.scale_trial`.
        exact_memory: Whether memory that is let go of is given back at once, so that the peak is what was needed, and
            not what the allocator had kept; that takes time, so nothing is timed then.
    """

    name: str
    run: RunConfig
    plan: TrialPlan
    seconds: float
    function: str = "run_trial"
    exact_memory: bool = False


def carried_out(work: Work, folder: Path, data: Path, digest: str, observer: Observer) -> dict[str, Any]:
    """What a trial came to: ``status``, ``reason``, and where it is ok what its function returned.

    A finished one is not run again; one that failed is.

    Args:
        work: What is to be done.
        folder: Of the trial.
        data: Folder of the shards and of the tokenizer.
        digest: Of all that these depend on.
        observer: Is told of beginning and end.
    """
    stage = Stage(
        name=work.name,
        folder=folder,
        run=lambda attempt: _run(work, data, attempt),
        parts=_parts(work, digest),
    )
    result = run_graph([stage], 0, observer)
    failure = result.failures.get(stage.name)
    if failure is not None:
        return {"status": FAILED, "reason": failure.message}
    outputs: dict[str, Any] = read_status(folder)["outputs"]
    return outputs


def _parts(work: Work, digest: str) -> dict[str, Any]:
    """All that a trial's result depends on."""
    run = as_json(work.run)
    sections = ("launcher", "cluster", "loader", "model", "engine", "pretrain", "seed")
    plan = {name: value for name, value in asdict(work.plan).items() if name != "evaluation_split"}
    named = {"evaluation_split": Path(work.plan.evaluation_split).name}  # not where the experiment's folder lies
    named["peak_tflops"] = run["tracking"]["peak_tflops"]
    more = {"seconds": work.seconds, "function": work.function, "exact_memory": work.exact_memory}
    return {"run": {name: run[name] for name in sections}, "plan": plan | named, "data": digest, **more}


def _run(work: Work, data: Path, attempt: Attempt) -> Mapping[str, Any]:
    folder = attempt.folder
    clear_over(folder)
    write_atomic(folder / CONFIG, dump_config(work.run))
    job = {
        "stage": work.name, "folder": str(folder), "function": f"{_WORK}:{work.function}", "run": as_json(work.run),
        "data": str(data / "data"), "tokenizer": str(data / "tokenizer"), "plan": asdict(work.plan),
        "threads": _threads(work.run), "fingerprint": attempt.fingerprint,
    }  # fmt: skip
    write_json(folder / JOB, job)
    command = [sys.executable, "-m", "launch.scaling.child", str(folder)]
    ended = run_limited(command, folder / _LOG, work.seconds, _environment(work))
    return outcome(folder, ended, work.seconds)


def outcome(folder: Path, ended: Ended, seconds: float) -> dict[str, Any]:
    """How a process ended, in words.

    Args:
        folder: Where it wrote.
        ended: What was seen from outside.
        seconds: Its time.

    Raises:
        TrialFailed: It ended by an error that is neither of its memory nor of its time.
    """
    over = read_over(folder)
    if over is not None:
        reason = over_in_words(over)
        return {"status": OUT_OF_MEMORY, "reason": reason, "peak_bytes": over["peak_bytes"], "step": over["step"]}
    if ended.too_slow:
        return {"status": TOO_SLOW, "reason": f"not done after {seconds:g} s"}
    if ended.code == 0:
        return {"status": OK, "reason": "", "seconds": round(ended.seconds, 1), **read_json(folder / RESULT)}
    words = last_words(folder / _LOG)
    if ended.code == _KILLED or _MEMORY_WORDS.search(words):
        killed = "it was killed, as the system does where memory runs out" if ended.code == _KILLED else words
        return {"status": OUT_OF_MEMORY, "reason": killed, "peak_bytes": None, "step": None}
    raise TrialFailed(words or f"its process ended with code {ended.code}")


def over_in_words(over: Over) -> str:
    """What was too much: on a GPU an allocation that did not fit, so that the most held is below the limit."""
    when = f"in step {over['step'] + 1}" if over["step"] else "before the end of its first step"
    held, limit, total = over["peak_bytes"] / _GIB, over["limit_bytes"], over["total_bytes"]
    if total is None:
        assert limit is not None  # on a CPU nothing is written down without a limit
        return f"{held:.3f} GiB {when}, more than the {limit / _GIB:g} GiB that it may have"
    room = f"the GPU's {total / _GIB:.1f} GiB" if limit is None else f"the {limit / _GIB:g} GiB that it may have"
    return f"did not fit into {room} {when}; it held {held:.3f} GiB"


def last_words(log: Path) -> str:
    """The last line that a process printed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:500]


def _threads(run: RunConfig) -> int:
    return max(1, int(run.cluster.cpus_per_worker))


def _environment(work: Work) -> dict[str, str]:
    root = str(Path(launch.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(_threads(work.run)), "TOKENIZERS_PARALLELISM": "false"}
    if work.exact_memory:
        # glibc keeps what it has served from its heap, up to 32 MiB at a time; what is mapped by itself goes back.
        own |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_ARENA_MAX": "1"}
    return os.environ | own
