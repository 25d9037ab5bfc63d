"""One trial as a stage: cached by its fingerprint, carried out in a process of its own, its end told by a word."""

import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import launch
from data_prep.files import read_json, write_atomic, write_json
from launch.config import RunConfig
from launch.graph import STATUS, Attempt, Observer, Stage, StageFailed, read_status, run_graph
from launch.job import RESULT
from launch.machine import CPU, git_commit, measures_on
from launch.reading import as_json, dump_config
from launch.scaling.child import CONFIG, JOB
from launch.scaling.limited import Ended, run_limited
from pipeline.measure.memory_limit import Over, clear_over, read_over
from pipeline.measure.scale_trial import TrialPlan
from pipeline.progress import read_metrics

Status = Literal["ok", "out of memory", "too slow", "killed", "failed"]
OK: Status = "ok"
OUT_OF_MEMORY: Status = "out of memory"
TOO_SLOW: Status = "too slow"
KILLED: Status = "killed"
FAILED: Status = "failed"
_FINDINGS = (OK, OUT_OF_MEMORY, TOO_SLOW)
"""Ends that a trial would come to again; the others are tried again with the next start of the experiment."""

_LOG = "process.txt"
METRICS = "metrics.jsonl"
LOGGED = ("samples", "loss", "noise_scale", "critical_batch")
"""Keys of a line of metrics.jsonl that are kept of a trial."""
_WORK = "pipeline.measure.scale_trial"
# Not the guess of `local_processes` about a process that ended without a word.
_MEMORY_WORDS = re.compile(
    r"(?<!have run )out ?of ?memory|can't allocate memory|cannot allocate memory|bad_alloc", re.IGNORECASE
)
# What is left of a process that was killed, in the words of those that waited for it.
_LOST_WORDS = re.compile(r"ended without a (word|result)|killed by signal|was killed \(SIGKILL\)")
_ENDING = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
"""Signals by which others end a process; by the rest it ends itself."""
_GIB = 2**30


class TrialFailed(StageFailed):
    """A trial ended by an error; it is tried again with the next start of the experiment."""


class TrialKilled(TrialFailed):
    """A trial was ended from outside, and nothing says that memory was why."""


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
    """What a trial came to: ``status``, ``reason``, ``machine``, ``commit``, and where it is ok what it returned.

    A finished one is not run again on the same kind of machine with the same torch; one that failed or was killed is.

    Args:
        work: What is to be done.
        folder: Of the trial.
        data: Folder of the shards and of the tokenizer.
        digest: Of all that these depend on.
        observer: Is told of beginning and end.
    """
    here = measures_on(bool(work.run.cluster.gpus_per_worker))
    before = _known(folder)
    stage = Stage(
        name=work.name,
        folder=folder,
        run=lambda attempt: {"started_on": here, **_found_by(here), **_run(work, data, attempt)},
        parts=_parts(work, digest, here),
        says=_moved(before, here),
    )
    result = run_graph([stage], 0, observer)
    failure = result.failures.get(stage.name)
    if failure is not None:
        status = KILLED if isinstance(failure.error, TrialKilled) else FAILED
        return {"status": status, "reason": failure.message, **_found_by(here)}
    outputs: dict[str, Any] = read_status(folder)["outputs"]
    return outputs


def _found_by(here: Mapping[str, Any]) -> dict[str, Any]:
    """What a result is marked with; the worker's own word for its machine goes before the launcher's."""
    return {"machine": dict(here), "commit": git_commit()}


def _known(folder: Path) -> Mapping[str, Any]:
    """What an earlier start found; a result that is not whole is forgotten, so that the trial is run again."""
    status = read_status(folder)
    if status.get("state") != "done":
        return {}
    outputs = status.get("outputs")
    if isinstance(outputs, dict) and outputs.get("status") in _FINDINGS:
        return outputs
    (folder / STATUS).unlink()
    return {}


def _moved(before: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What is told of a trial that has a result already, from another machine."""
    there = before.get("started_on")
    return f"measured before on {machine_in_words(there)}" if there and there != here else ""


def machine_in_words(machine: Mapping[str, Any]) -> str:
    """A machine that measured, in a line: `NVIDIA H100 80GB HBM3, AMD EPYC, 16 CPUs, torch 2.11.0`."""
    gpu = [] if machine["device"] == CPU else [machine["device"]]
    return ", ".join([*gpu, machine["processor"], f"{machine['cpus']} CPUs", f"torch {machine['torch']}"])


def _parts(work: Work, digest: str, here: Mapping[str, Any]) -> dict[str, Any]:
    """All that a trial's result depends on: the machine too, for times and memory are its own."""
    run = as_json(work.run)
    sections = ("launcher", "cluster", "loader", "model", "engine", "pretrain", "seed")
    plan = {name: value for name, value in asdict(work.plan).items() if name != "evaluation_split"}
    named = {"evaluation_split": Path(work.plan.evaluation_split).name}  # not where the experiment's folder lies
    named["peak_tflops"] = run["tracking"]["peak_tflops"]
    more = {"seconds": work.seconds, "function": work.function, "exact_memory": work.exact_memory}
    return {"run": {name: run[name] for name in sections}, "plan": plan | named, "data": digest, "on": here, **more}


def _run(work: Work, data: Path, attempt: Attempt) -> Mapping[str, Any]:
    folder = attempt.folder
    clear_over(folder)
    (folder / METRICS).unlink(missing_ok=True)  # a trial begins anew, whatever an earlier start has left
    write_atomic(folder / CONFIG, dump_config(work.run))
    job = {
        "stage": work.name, "folder": str(folder), "function": f"{_WORK}:{work.function}", "run": as_json(work.run),
        "data": str(data / "data"), "tokenizer": str(data / "tokenizer"), "plan": asdict(work.plan),
        "threads": _threads(work.run), "fingerprint": attempt.fingerprint,
    }  # fmt: skip
    write_json(folder / JOB, job)
    command = [sys.executable, "-m", "launch.scaling.child", str(folder)]
    ended = run_limited(command, folder / _LOG, work.seconds, _environment(work))
    resident = None if work.run.cluster.gpus_per_worker else work.plan.memory_bytes
    found = outcome(folder, ended, work.seconds, resident)
    return {**found, "lines": _lines(folder)} if found["status"] == OK else found


def _lines(folder: Path) -> list[dict[str, float | None]]:
    """What a row needs of the training's log, so that it hangs on no other file."""
    return [{name: line.get(name) for name in LOGGED} for line in read_metrics(folder / METRICS)]


def outcome(folder: Path, ended: Ended, seconds: float, resident: int | None = None) -> dict[str, Any]:
    """How a process ended, in words.

    Args:
        folder: Where it wrote.
        ended: What was seen from outside.
        seconds: Its time.
        resident: The most of main memory that it might have; None for no limit.

    Raises:
        TrialFailed: It ended by an error that is neither of its memory nor of its time.
        TrialKilled: It was ended by a signal, and nothing says that memory was why.
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
    reason = words if _MEMORY_WORDS.search(words) else _memory_killed(ended, words, resident)
    if reason:
        return {"status": OUT_OF_MEMORY, "reason": reason, "peak_bytes": ended.peak_bytes, "step": None}
    if -ended.code in _ENDING:
        raise TrialKilled(_killed_in_words(ended))
    if ended.code < 0:
        raise TrialFailed(f"its process crashed ({signal.Signals(-ended.code).name}){words and f': {words}'}")
    raise TrialFailed(words or f"its process ended with code {ended.code}")


def _memory_killed(ended: Ended, words: str, resident: int | None) -> str:
    """Why a process that was killed was killed for its memory; nothing where it was not, or nobody can say so."""
    if ended.code != -signal.SIGKILL and not _LOST_WORDS.search(words):
        return ""
    if ended.oom_kills:
        count = "a process" if ended.oom_kills == 1 else f"{ended.oom_kills} processes"
        return f"it was killed while the kernel killed {count} for want of memory{_held(ended)}"
    if resident is not None and ended.peak_bytes is not None and ended.peak_bytes > resident:
        return f"it was killed above the {resident / _GIB:g} GiB that it may have{_held(ended)}"
    return ""


def _killed_in_words(ended: Ended) -> str:
    kernel = "; the kernel killed nothing for want of memory" if ended.oom_kills == 0 else ""
    name = signal.Signals(-ended.code).name
    return f"ended from outside by {name}{_held(ended)}{kernel}; the same command tries it again"


def _held(ended: Ended) -> str:
    return "" if ended.peak_bytes is None else f"; it had held {ended.peak_bytes / _GIB:.3f} GiB"


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
