"""Results of tasks that one run fine-tunes for: never in one table, one front, or one figure of instances."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from launch.compare_table import lines_of
from launch.paired import JudgedRun, score_of
from launch.report import results_table, write_report
from launch.report.means import mean_rows
from launch.report.results import group_results
from tests.launch.report.conftest import row
from tests.launch.report.folders import save


def rows_of(name: str | None, accuracy: float) -> list[dict[str, Any]]:
    """Of a full and a trimmed model that judge statements."""
    named = {} if name is None else {"name": name}
    return [
        row(f"trim-{name or 'statement'}-{target}x", "smarttrim", target, "statement", "test", "accuracy", value, cost)
        | named
        for target, value, cost in ((1.0, accuracy, 2.0), (2.0, accuracy - 5, 1.0))
    ]


ROWS = [*rows_of(None, 80.0), *rows_of("other", 70.0)]


def test_two_tasks_that_ask_the_same_have_tables_of_their_own() -> None:
    own, other = group_results(ROWS)
    assert [(table.task, table.kind) for table in (own, other)] == [("statement", "statement"), ("other", "statement")]
    assert [line.cells["accuracy"].value for line in other.lines] == [70.0, 65.0]
    assert "\n\nother (95% intervals in brackets)\n" in results_table(ROWS)


def test_a_comparison_has_a_score_for_each_of_them() -> None:
    runs = [
        {
            "variant": variant,
            "seed": 0,
            "budget": "samples",
            "samples": 8,
            "step_ms": 1.0,
            "peak_bytes": 1,
            "results": ROWS,
        }
        for variant in ("a", "b")
    ]
    names = set(lines_of({"reference": "a", "runs": runs, "failures": {}})[0]["metrics"])
    assert {"statement 1x test accuracy", "other 1x test accuracy", "other 2x test GMACs"} <= names
    assert {table.task for table in group_results(mean_rows(runs, "samples"))} == {"statement", "other"}


@pytest.mark.parametrize("gathered", [True, False])
def test_a_report_draws_each_of_them_apart(finished_run: Path, gathered: bool) -> None:
    """Also while the run's results are those from before a task was added, or from after one was left out."""
    results, more = json.loads((finished_run / "results.json").read_text()), rows_of("other", 70.0)
    save(finished_run / "results.json", [*results, *(more if gathered else [])])
    for kind in ("survivors", "evaluate"):
        shutil.copytree(finished_run / "stages" / kind, finished_run / "stages" / f"{kind}-other")
    for path in (finished_run / "stages/evaluate-other/instances").glob("*.json"):
        save(path, json.loads(path.read_text()) | {"stage": "trim-other-2.0x"})
    save(finished_run / "stages/evaluate-other/results.json", more)
    page = write_report(finished_run).read_text(encoding="utf-8")
    drawn = {path.stem for path in (finished_run / "figures").glob("*.csv")}
    assert {"pareto-statement", *(["pareto-other"] if gathered else [])} <= drawn
    assert {"cost-statement-test", "cost-other-test", "retention-other-test"} <= drawn
    assert "other" not in (finished_run / "figures/pareto-statement.csv").read_text()
    assert page.count("00012.png, untouched") == 1 and page.count("00012.png, of other, untouched") == 1
    assert "Cheapest and dearest: other " in page and "Cheapest and dearest: statement 2.0x" in page


def test_a_model_is_held_against_the_full_one_of_its_own_task(tmp_path: Path) -> None:
    run = JudgedRun(variant="", budget="", seed=0, folder=tmp_path, rows=ROWS)
    assert [run.at(row, 1.0) for row in ROWS] == [ROWS[0], ROWS[0], ROWS[2], ROWS[2]]
    assert score_of(ROWS[3]) == ("other 2x", "test", "accuracy")
