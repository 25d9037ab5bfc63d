"""What the commands do; each gives an exit code, a JSON object, and a text for people."""

import contextlib
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

from data_prep.errors import UserError
from data_prep.exclusion import write_exclusions
from data_prep.executors import Executor
from data_prep.sources import SOURCES, SourceConfig, prepare
from launch.answers import INTERNAL, USER_MISTAKE, Answer
from launch.graph import Failure
from launch.reading import dump_config, read_config
from launch.recipes import find_recipe

if TYPE_CHECKING:  # torch comes with it
    from launch.run import RunResult


@dataclass(frozen=True, kw_only=True)
class ShardConfig(SourceConfig):
    """A data set and where its shards go.

    Attributes:
        out: Folder for the splits, or a URL such as s3://bucket/folder.
        workers: Processes to write with, or CPUs of a Ray cluster; by default all.
        executor: Who writes: processes of this machine, or a Ray cluster.
        address: The Ray cluster; without it one is started on this machine.
    """

    out: str
    workers: int | None = None
    executor: Literal["processes", "ray"] = "processes"
    address: str | None = None

    def __post_init__(self) -> None:
        """Refuses numbers that no shards can be made of."""
        super().__post_init__()
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers={self.workers} must be at least 1; leave it out for all cores")


def run_command(
    files: Sequence[str],
    overrides: Sequence[str],
    *,
    until: str | None,
    fresh: bool,
    take_from: Path | None,
    print_config: bool,
) -> Answer:
    """`trimline run` and the single stages.

    Raises:
        UserError: for a mistake found before the stages start.
    """
    if not files:
        raise UserError("no configuration given; name one, such as configs/runs/demo.yaml")
    paths = [find_recipe(name) for name in files]
    from launch.given import read_run  # torch comes with it

    config = read_run(paths, overrides)
    if print_config:
        return 0, {"config": dump_config(config)}, dump_config(config).rstrip()
    from launch.run import execute

    result = execute(config, until=until, fresh=fresh, take_from=take_from)
    if result is None:
        return 0, None, ""
    return _exit_code(result.failures.values()), result.as_json(), summary(result)


def compare_command(files: Sequence[str], overrides: Sequence[str]) -> Answer:
    """`trimline compare`.

    Raises:
        UserError: for a mistake in any of the runs, before the first one starts.
    """
    from launch.compare import CompareConfig, compare
    from launch.compare_table import comparison_text, lines_of, paired_lines

    config = read_config(CompareConfig, [find_recipe(name) for name in files], overrides)
    data = compare(config, lambda line: print(line, file=sys.stderr))
    code = INTERNAL if data["failures"] else 0
    told = {"lines": lines_of(data), "paired": paired_lines(data), "unpaired": data["unpaired"]}
    return code, {"out": config.out, **told, "failures": data["failures"]}, comparison_text(data)


def scale_command(files: Sequence[str], overrides: Sequence[str]) -> Answer:
    """`trimline scale`.

    Raises:
        UserError: for a mistake found before the first trial starts, or where no trial fits its limits.
    """
    from launch.report.scale import scale_text
    from launch.scaling.config import ScaleConfig
    from launch.scaling.experiment import scale

    config = read_config(ScaleConfig, [find_recipe(name) for name in files], overrides)
    data = scale(config)
    report = Path(config.out) / "report.html"
    without_curves = {name: value for name, value in data.items() if name != "curves"}
    return 0, {"out": config.out, "report": str(report), **without_curves}, f"{scale_text(data)}\nlook at {report}"


def shard_command(source: str, overrides: Sequence[str]) -> Answer:
    """`trimline shard`.

    Raises:
        UserError: for a setting that does not fit, missing raw files, or a target that cannot be written to.
    """
    config = read_config(ShardConfig, [], ["--name", source, *overrides])
    plain = SourceConfig(**{field.name: getattr(config, field.name) for field in fields(SourceConfig)})
    with (
        _executor(config) as executor,
        tqdm(desc=source, unit=" samples", file=sys.stderr, disable=not sys.stderr.isatty()) as bar,
    ):

        def show(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        account = prepare(plain, config.out, show, config.workers, executor)
    lines = [f"{config.out}: {account['written']} of {account['asked']} samples written"]
    lines += [f"  {split}: {of['written']} of {of['asked']}" for split, of in account["splits"].items()]
    lines += [f"  skipped {count}: {reason}" for reason, count in account["skipped"].items()]
    lines += [f"  captions {reason}: {count}" for reason, count in account["captions"].items()]
    return 0, {"out": config.out, **account}, "\n".join(lines)


@contextlib.contextmanager
def _executor(config: ShardConfig) -> Iterator[Executor | None]:
    """The Ray cluster, where one is wanted; it ends with the command."""
    if config.executor == "processes":
        if config.address is not None:
            raise UserError(f"address={config.address} is a Ray cluster's; add --executor ray")
        yield None
        return
    from launch.ray_executor import ray_executor  # torch and Ray come with it

    with ray_executor(config.address, config.workers) as executor:
        yield executor


def exclusions_command(folders: Sequence[Path], out: Path) -> Answer:
    """`trimline exclusions`: folders of splits, or of several splits each."""
    splits = [split for folder in folders for split in _splits_in(folder)]
    counts = write_exclusions(splits, out)
    text = f"{out}: {counts['checksums']} checksums and {counts['ids']} ids of {counts['samples']} samples"
    return 0, {"out": str(out), "folders": [str(split) for split in splits], **counts}, text


def _splits_in(folder: Path) -> list[Path]:
    if any(folder.glob("*.tar")):
        return [folder]
    return sorted({path.parent for path in folder.glob("*/*.tar")}) or [folder]


def shard_help(source: str | None) -> str:
    """The help of a source, or the list of all.

    Raises:
        UserError: there is no such source.
    """
    from launch.shard_help import source_text, sources_text

    if source is not None and source not in SOURCES:
        raise UserError(f"source {source!r} is not known; use one of {', '.join(SOURCES)}")
    return sources_text() if source is None else source_text(source, ShardConfig)


def report_command(run: Path) -> Answer:
    """`trimline report`: of a run, of a comparison, or of a scale experiment."""
    from launch.compare_table import COMPARISON
    from launch.report import write_report
    from launch.report.comparison import write_comparison
    from launch.report.scale import rewrite_scale_report
    from launch.scaling.config import SCALE

    if (run / COMPARISON).is_file():
        report = write_comparison(run)
    elif any((run / name).is_file() for name in (SCALE, "scale.yaml")):
        report = rewrite_scale_report(run)
    else:
        report = write_report(run)
    return 0, {"report": str(report)}, str(report)


def status_command(run: Path, follow: bool, as_json: bool) -> Answer:
    """`trimline status`, once or (`follow`) until the run ends."""
    from launch.status import read_state
    from launch.status_text import state_text, watch

    state = watch(run, as_json) if follow else read_state(run)
    return 0, state, state_text(state)


def import_command(path: Path, kind: str, out: Path, **hints: int | None) -> Answer:
    """`trimline import`; `hints` are those of `pipeline.weights.loaded.Hints`."""
    from pipeline.weights.folders import import_weights
    from pipeline.weights.loaded import Hints

    path, out = path.expanduser(), out.expanduser()
    loaded = import_weights(path, kind, out, Hints(**hints))
    count = len(loaded.model.state_dict())
    lines = [f"{out}: {loaded.kind} of {loaded.config.backbone}, {count} tensors", *_left_out(loaded.dropped)]
    if loaded.lacking:
        lines.append(f"  not in the file, so as drawn: {', '.join(loaded.lacking)}")
    told = {"left_out": list(loaded.dropped), "lacking": list(loaded.lacking)}
    data = {"out": str(out), "kind": loaded.kind, "tensors": count, **told}
    return 0, data, "\n".join(lines)


def export_command(folder: Path, out: Path) -> Answer:
    """`trimline export`."""
    from pipeline.weights.folders import export_to_hf

    folder, out = folder.expanduser(), out.expanduser()
    written = export_to_hf(folder, out)
    name = written.config["architectures"][0]
    lines = [f"{out}: for transformers.{name}.from_pretrained", *_left_out(written.left_out)]
    return 0, {"out": str(out), "class": name, "left_out": list(written.left_out)}, "\n".join(lines)


def _left_out(names: Sequence[str]) -> list[str]:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return [f"  left out {len(names)} that have no place there (--json lists them): {shown}"] if names else []


def summary(result: "RunResult") -> str:
    """The end of a run: a table of the results, what failed, and where to look."""
    from launch.progress import clock
    from launch.report.table import paired_text, results_table

    lines = ["", results_table(result.rows), ""] if result.rows else []
    if told := paired_text(result.paired):
        lines += [*told, ""]
    for name, failure in result.failures.items():
        lines.append(f"failed: {name}: {failure.message}")
    blocked = [name for name, outcome in result.outcomes.items() if outcome == "blocked"]
    if blocked:
        lines.append(f"not run, for they need what failed: {', '.join(blocked)}")
    if result.failures:
        lines.append("run the same command again once it is mended: finished stages are kept")
    lines.append(f"{clock(result.seconds)} in all; look at {result.report or result.out}")
    return "\n".join(lines)


def _exit_code(failures: Collection[Failure]) -> int:
    if not failures:
        return 0
    return USER_MISTAKE if all(failure.by_user for failure in failures) else INTERNAL
