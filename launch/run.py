"""One run from its configuration to its report: lock, checks, stages, summary."""

import contextlib
import json
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import is_disk_full, read_json, remove_folder, write_atomic, write_json
from data_prep.lock import LOCK, FolderLock
from launch import machine, preflight
from launch.backend import Backend
from launch.config import RunConfig
from launch.graph import Failure, GraphResult, Stage, all_finished, one_line, read_status, run_graph
from launch.kept import check_kept
from launch.paired import own_differences
from launch.progress import ProgressDisplay
from launch.reading import dump_config
from launch.relaunch import is_relaunch, launch_names
from launch.run_log import LOG, log_file, printed
from launch.signals import stopped_by_sigterm, uninterrupted
from launch.spent import SINCE, spent
from launch.stages import RESULTS, build_stages
from launch.takeover import aside_of, take_over
from launch.tasks import training_stages
from pipeline.checkpoint_places import forget_all
from pipeline.lease import Lease
from pipeline.progress import read_metrics

log = logging.getLogger(__name__)

RUN = "run.json"
METRICS = "metrics.jsonl"
REPORT = "report.html"
_FOLDERS = ("data", "tokenizer", "stages", "ray", "ray_logs", "figures", "analyses")
_FILES = (RUN, "config.yaml", METRICS, RESULTS, REPORT, LOG)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run came to.

    Attributes:
        out: The run folder.
        outcomes: How each stage ended.
        failures: Why stages failed.
        rows: All results, as in results.json.
        paired: By how much each target differs from the untrimmed model on the same instances (`launch.paired`).
        report: The report's file; None where it could not be written.
        seconds: Time that this call took.
    """

    out: Path
    outcomes: dict[str, str]
    failures: dict[str, Failure]
    rows: list[dict[str, Any]]
    paired: list[dict[str, Any]]
    report: Path | None
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every stage is finished and the report written."""
        return not self.failures and self.report is not None

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values, for ``--json``."""
        return {
            "out": str(self.out),
            "report": str(self.report) if self.report else None,
            "seconds": round(self.seconds, 1),
            "stages": self.outcomes,
            "failures": {name: failure.message for name, failure in self.failures.items()},
            "results": self.rows,
            "paired": self.paired,
        }


def execute(
    config: RunConfig, *, until: str | None = None, fresh: bool = False, take_from: Path | None = None
) -> RunResult | None:
    """Runs what is not finished of a run.

    Args:
        config: The run's configuration.
        until: The last kind of stage wanted: pretrain, trim (its models are evaluated) or evaluate; None for all.
        fresh: Starts over: what an earlier run left in the folder is removed; once, however often torchrun or Slurm
            starts this very command.
        take_from: Folder of another run, of which finished stages are taken over that would be made just so here.

    Returns:
        What came of it; None in a process of torchrun's that only helped the first one.

    Raises:
        UserError: for a mistake found before the stages start; one found by a stage is in the result.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once all processes are stopped; with SIGTERM a training saves first.
    """
    began = time.monotonic()
    out = Path(config.out).expanduser().resolve()
    backend = make_backend(config, out)
    if not backend.is_leader:
        backend.follow()
        return None
    check_folder(out)
    preflight.check(config, out, until)
    make_folder(out)
    notice = config.cluster.notice_seconds
    with (
        FolderLock(out),
        stopped_by_sigterm(backend.ask_to_leave, notice),
        log_file(out / LOG),
        contextlib.ExitStack() as held,
    ):
        fresh = fresh and not _is_started_over(out)
        run_id = _id_of(out, fresh)
        lease = _lease_of(config, out, run_id, backend)
        if fresh:
            _start_over(config, out, run_id, lease, held)
        session = None if lease is None else lease.session
        stages = build_stages(config, out, backend, until, f"{config.name}-{run_id}", session)
        if lease is not None and not fresh and not all_finished(stages):
            held.enter_context(lease)
        check_kept(stages)  # of a run that is refused not even the configuration may be replaced
        facts = _begin(config, out, run_id, stages)
        if take_from is not None:
            take_over(stages, out, take_from.expanduser().resolve())
        try:
            result = _run_stages(config, stages, backend, out, facts)
        except KeyboardInterrupt:
            if lease is not None:
                lease.check()  # it may be why they left
            raise
        return _finish(out, stages, result, facts, time.monotonic() - began)


def make_backend(config: RunConfig, out: Path) -> Backend:
    """The launcher that the configuration asks for."""
    cluster = config.cluster
    if config.launcher == "local":
        from launch.local_backend import LocalBackend

        return LocalBackend(cluster.gpus_per_worker, max(1, int(cluster.cpus_per_worker)))
    from launch.ray_backend import RayBackend

    return RayBackend(cluster, out / "ray")


def _earlier(out: Path) -> dict[str, Any]:
    """What run.json says of an earlier start; nothing where there was none."""
    try:
        facts: dict[str, Any] = read_json(out / RUN)
    except (FileNotFoundError, UserError):
        return {}
    return facts


def _is_started_over(out: Path) -> bool:
    """Whether `--fresh` was done already when torchrun or Slurm first started this very command.

    This start is noted then, so that `--fresh` given once more within the same requeued job is a person's.
    """
    facts = _earlier(out)
    over = is_relaunch(facts.get("started_over", {}))
    if over:
        write_json(out / RUN, facts | {"started_over": launch_names()})
        log.info(
            "--fresh is not repeated: the same launch started this run over before; to start over once more, give "
            "another --rdzv-id to torchrun, or the command again within Slurm's job"
        )
    return over


def _id_of(out: Path, fresh: bool) -> str:
    """What tells a run from others, also where it goes on."""
    earlier = {} if fresh else _earlier(out)
    return str(earlier.get("id") or secrets.token_hex(3))


def _lease_of(config: RunConfig, out: Path, run_id: str, backend: Backend) -> Lease | None:
    """Of the place of the checkpoints, where other runs can know it; not taken yet."""
    path = config.checkpoint.path
    # Should another run take the place nevertheless, training ends at the save that it is then refused.
    return None if path is None else Lease(path, run_id, str(out), backend.ask_to_leave)


def _start_over(config: RunConfig, out: Path, run_id: str, lease: Lease | None, held: contextlib.ExitStack) -> None:
    """Removes what an earlier run left: checkpoints too, once their place is held."""
    if lease is not None:
        held.enter_context(lease)
        forget_all(str(config.checkpoint.path), training_stages(config))
    facts = {"name": config.name, "id": run_id}
    write_json(out / RUN, facts)  # whenever this is stopped, the folder stays a run's
    remove_run(out, keep=RUN)
    write_json(out / RUN, {**facts, "started_over": launch_names()})  # only now, for until then it is to be done again


def remove_run(out: Path, keep: str | None = None) -> None:
    """Removes what a run wrote into its folder, and nothing else.

    Args:
        out: The run folder.
        keep: Name of a file in it that stays.
    """
    for name in _FOLDERS:
        remove_folder(out / name)
        remove_folder(aside_of(out / name))
    for name in (name for name in _FILES if name != keep):
        (out / name).unlink(missing_ok=True)


def _cpus(config: RunConfig, backend: Backend) -> float:
    return backend.slots * config.cluster.cpus_per_worker


def check_folder(out: Path, mark: str = RUN, kind: str = "run") -> None:
    """Refuses to mix a run with somebody's files.

    Args:
        out: Where it is to be written.
        mark: File by which an earlier one is known.
        kind: What is written, in a word.

    Raises:
        UserError: It cannot be written there.
    """
    try:
        there = next(path for path in (out, *out.parents) if path.exists())
    except OSError as error:
        raise _unusable(out, error) from error
    if not there.is_dir():
        raise UserError(f"out={out}: {there} is a file; give a folder with --out DIR")
    if out.is_dir() and not (out / mark).exists():
        others = sorted(path.name for path in out.iterdir() if path.name not in (LOCK, LOG))
        if others:
            raise UserError(
                f"out={out} holds other files ({', '.join(others[:3])}) and no {kind}; give a new folder with --out DIR"
            )


def make_folder(out: Path) -> None:
    """Makes a folder with those above it.

    Raises:
        UserError: It cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(out, error) from error


def _unusable(out: Path, error: OSError) -> UserError:
    return UserError(f"out={out} cannot be used ({error.strerror}); give another folder with --out DIR")


def _begin(config: RunConfig, out: Path, run_id: str, stages: Sequence[Stage]) -> dict[str, Any]:
    """Writes run.json and config.yaml; a run that goes on keeps its first start and its seconds."""
    earlier = _earlier(out)
    facts = {
        "name": config.name,
        "id": run_id,
        "started_over": earlier.get("started_over", {}),
        "command": machine.command(),
        "started": earlier.get("started", _now()),
        "finished": earlier.get("finished"),
        "seconds": round(spent(earlier, out.glob("stages/*/*")), 1),
        "versions": machine.versions(),
        "commit": machine.git_commit(),
        "hardware": machine.hardware(),
        "seed": config.seed,
        "stages": {stage.name: list(stage.inputs) for stage in stages},
    }
    write_json(out / RUN, facts)
    write_atomic(out / "config.yaml", dump_config(config))
    return facts


def _run_stages(
    config: RunConfig, stages: Sequence[Stage], backend: Backend, out: Path, facts: dict[str, Any]
) -> GraphResult:
    def prepare() -> None:
        facts["finished"] = None  # there is something to do
        write_json(out / RUN, facts | {SINCE: time.time()})
        backend.start()

    crashed, cpus = True, _cpus(config, backend)
    with ProgressDisplay() as display:
        try:
            result = run_graph(stages, cpus, display, meanwhile=prepare)
            crashed = any(not failure.by_user for failure in result.failures.values())
        finally:
            with uninterrupted():
                if crashed:
                    _keep_logs(backend, out / "ray_logs")
                backend.stop()
    return result


def _keep_logs(backend: Backend, folder: Path) -> None:
    """Keeps what may explain a failure, and tells no other one in its place, such as that of a full disk."""
    try:
        backend.keep_logs(folder)
    except OSError as error:
        log.debug("Ray's logs could not be kept", exc_info=error)
        log.warning("Ray's logs could not be kept in %s", folder)


def _finish(
    out: Path, stages: Sequence[Stage], result: GraphResult, facts: dict[str, Any], seconds: float
) -> RunResult:
    """Gathers what the stages wrote, and reports on it, whether or not all of them succeeded."""
    rows = [row for stage in stages if _is_done(stage) for row in _rows(stage.folder)]
    failures, report, paired = dict(result.failures), None, list[dict[str, Any]]()
    try:
        _gather(out, stages, rows)
        if facts["finished"] is None:
            times = {"finished": _now() if result.complete else None, "seconds": round(facts["seconds"] + seconds, 1)}
            write_json(out / RUN, facts | times)
        paired = own_differences(out, facts["seed"], rows).rows
        from launch.report import write_report  # matplotlib comes with it, which the start need not wait for

        report = write_report(out)
    except Exception as error:
        by_user = isinstance(error, UserError) or (isinstance(error, OSError) and is_disk_full(error))
        if not by_user:
            printed.error("the report could not be written", exc_info=error)
        failures["report"] = Failure(message=one_line(error), by_user=by_user)
    return RunResult(
        out=out,
        outcomes=dict(result.outcomes),
        failures=failures,
        rows=rows,
        paired=paired,
        report=report,
        seconds=seconds,
    )


def _gather(out: Path, stages: Sequence[Stage], rows: list[dict[str, Any]]) -> None:
    """Writes results and metrics of all stages into one file each."""
    write_json(out / RESULTS, rows)
    write_atomic(out / METRICS, "".join(_metrics(stages)))


def _is_done(stage: Stage) -> bool:
    return read_status(stage.folder).get("state") == "done"


def _rows(folder: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = read_json(folder / RESULTS)
    except FileNotFoundError:
        return []
    return rows


def _metrics(stages: Sequence[Stage]) -> Iterator[str]:
    """The lines of every stage's metrics, each with its stage's name."""
    for stage in stages:
        for line in read_metrics(stage.folder / METRICS):
            yield json.dumps({"stage": stage.name, **line}) + "\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
