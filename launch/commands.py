"""What the commands do; each gives an exit code, a JSON object, and a text for people."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from data_prep.errors import UserError
from data_prep.sources import SourceConfig, prepare
from launch.cli import INTERNAL, USER_MISTAKE, Answer
from launch.graph import Failure
from launch.reading import dump_config, read_config
from launch.recipes import find_recipe

if TYPE_CHECKING:  # torch comes with it
    from launch.run import RunResult


@dataclass(frozen=True, kw_only=True)
class ShardConfig(SourceConfig):
    """A data set and where its shards go.

    Attributes:
        out: Folder for the splits.
        workers: Processes to write with; by default one a core.
    """

    out: str
    workers: int | None = None


def run_command(
    files: Sequence[str], overrides: Sequence[str], *, until: str | None, fresh: bool, print_config: bool
) -> Answer:
    """`trimline run` and the single stages.

    Raises:
        UserError: for a mistake found before the stages start.
    """
    if not files:
        raise UserError("no configuration given; name one, such as configs/runs/demo.yaml")
    paths = [find_recipe(name) for name in files]
    from launch.config import RunConfig  # torch comes with it

    config = read_config(RunConfig, paths, overrides)
    if print_config:
        return 0, {"config": dump_config(config)}, dump_config(config).rstrip()
    from launch.run import execute

    result = execute(config, until=until, fresh=fresh)
    if result is None:
        return 0, None, ""
    return _exit_code(result.failures.values()), result.as_json(), summary(result)


def compare_command(files: Sequence[str], overrides: Sequence[str]) -> Answer:
    """`trimline compare`.

    Raises:
        UserError: for a mistake in any of the runs, before the first one starts.
    """
    from launch.compare import CompareConfig, compare
    from launch.compare_table import comparison_text, lines_of

    config = read_config(CompareConfig, [find_recipe(name) for name in files], overrides)
    data = compare(config, lambda line: print(line, file=sys.stderr))
    code = INTERNAL if data["failures"] else 0
    return code, {"out": config.out, "lines": lines_of(data), "failures": data["failures"]}, comparison_text(data)


def shard_command(source: str, overrides: Sequence[str]) -> Answer:
    """`trimline shard`."""
    config = read_config(ShardConfig, [], ["--name", source, *overrides])
    out = Path(config.out).expanduser()
    plain = SourceConfig(**{field.name: getattr(config, field.name) for field in fields(SourceConfig)})
    with tqdm(desc=source, unit=" samples", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def show(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        account = prepare(plain, out, show, config.workers)
    lines = [f"{out}: {account['written']} of {account['asked']} samples written"]
    lines += [f"  {split}: {of['written']} of {of['asked']}" for split, of in account["splits"].items()]
    lines += [f"  skipped {count}: {reason}" for reason, count in account["skipped"].items()]
    return 0, {"out": str(out), **account}, "\n".join(lines)


def report_command(run: Path) -> Answer:
    """`trimline report`."""
    from launch.report import write_report

    report = write_report(run)
    return 0, {"report": str(report)}, str(report)


def status_command(run: Path) -> Answer:
    """`trimline status`."""
    from launch.status import read_state, state_text

    state = read_state(run)
    return 0, state, state_text(state)


def import_command(path: Path, kind: str, out: Path, **hints: int | None) -> Answer:
    """`trimline import`; `hints` are those of `pipeline.weights.loaded.Hints`."""
    from pipeline.weights.folders import import_weights
    from pipeline.weights.loaded import Hints

    path, out = path.expanduser(), out.expanduser()
    loaded = import_weights(path, kind, out, Hints(**hints))
    count = len(loaded.model.state_dict())
    lines = [f"{out}: {loaded.kind} of {loaded.config.backbone}, {count} tensors", *_left_out(loaded.dropped)]
    data = {"out": str(out), "kind": loaded.kind, "tensors": count, "left_out": list(loaded.dropped)}
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
    from launch.report.table import results_table

    lines = ["", results_table(result.rows), ""] if result.rows else []
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
