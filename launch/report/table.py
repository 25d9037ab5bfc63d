"""The results as a plain text table, for the terminal at the end of a run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launch.paired import points
from launch.report.results import Line, TaskTable, group_results
from launch.report.words import cell_text, cost, metric_name, ratio, reached, times, wanted
from launch.result_rows import COMPARED


def results_table(rows: Iterable[Mapping[str, Any]], width: int = 120) -> str:
    """A table per task, one line per method, target and split, with the metrics side by side.

    Args:
        rows: the rows of results.json.
        width: columns of the terminal; where the intervals do not fit in, the values stand alone.

    Returns:
        Lines of text without a final newline.
    """
    tables = group_results(rows)
    if not tables:
        return "no results"
    return "\n\n".join(_task_text(table, width) for table in tables)


def _task_text(table: TaskTable, width: int) -> str:
    text = _columns(table, interval=True)
    has_intervals = any(cell.has_interval for line in table.lines for cell in line.cells.values())
    title = f"{table.task} (95% intervals in brackets)" if has_intervals else table.task
    if has_intervals and max(map(len, text)) > width:
        text = _columns(table, interval=False)
        title = f"{table.task} (intervals: see report.html)"
    return "\n".join([title, *text, *table.notes])


def _columns(table: TaskTable, interval: bool) -> list[str]:
    head = ["method", "split", *(["seed"] if table.several_seeds else []), *map(metric_name, table.metrics)]
    adds = ["by pruning", "by trimming"] if table.shows_pruning else []
    cells = [[*head, "GMACs", "of untrimmed", *adds, *(["wanted", "reached"] if table.shows_reached else [])]]
    cells += [_cells(line, table, interval) for line in table.lines]
    return aligned(cells, left=2)


def aligned(cells: Sequence[list[str]], left: int) -> list[str]:
    """Rows of cells as lines in columns, the first row as a head.

    Args:
        cells: All rows, each with the same number of cells.
        left: Columns of names, which stand to the left; numbers stand to the right.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [_joined(row, widths, left) for row in cells]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _cells(line: Line, table: TaskTable, interval: bool) -> list[str]:
    seed = [str(line.seed)] if table.several_seeds else []
    values = [cell_text(metric, line.cells.get(metric), interval) for metric in table.metrics]
    target = [wanted(line), reached(line)] if table.shows_reached else []
    adds = [times(line.by_pruning), times(line.by_trimming)] if table.shows_pruning else []
    return [line.label, line.split, *seed, *values, cost(line), ratio(line), *adds, *target]


def _joined(row: list[str], widths: list[int], left: int) -> str:
    pairs = enumerate(zip(row, widths, strict=True))
    padded = [text.ljust(width) if at < left else text.rjust(width) for at, (text, width) in pairs]
    return "  ".join(padded).rstrip()


def paired_text(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What each trimmed model loses on the same test instances, a line for each; nothing where there are none.

    Args:
        rows: Of a run's own `launch.paired.Answers`; the metrics that comparisons show are told, the page has all.
    """
    told: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["metric"] in COMPARED:
            one = f"{row['split']} {row['metric']} {points(row)}"
            told.setdefault((row["model"], row["against"]), []).append(one)
    lines = [f"  {model} from {against}: {', '.join(found)}" for (model, against), found in told.items()]
    return ["differences on the same test instances, in points (95% interval)", *lines] if lines else []
