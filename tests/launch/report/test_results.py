import csv
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.report import results_table
from launch.report.pareto import draw_pareto, front
from launch.report.results import group_results, in_percent


def row(**given: Any) -> dict[str, Any]:
    plain = {
        "stage": "evaluate",
        "method": "smarttrim",
        "target": 2.0,
        "task": "statement",
        "split": "test",
        "metric": "accuracy",
        "value": 75.3,
        "low": 72.1,
        "high": 78.2,
        "gmacs": 0.5,
        "seed": 0,
    }
    return {**plain, **given}


ROWS = [
    row(target=1.0, value=80.0, gmacs=1.0),
    row(),
    row(metric="consistency", value=50.0, low=None, high=None),
    row(task="retrieval", method="pretrain", target=None, metric="IR R@10", value=61.2),
]


def test_one_line_per_method_target_and_split_with_its_metrics_side_by_side() -> None:
    assert results_table(ROWS).splitlines() == [
        "statement (95% intervals in brackets)",
        "method          split           accuracy %  consistency %  GMACs  of untrimmed",
        "-" * 78,
        "smarttrim 1.0x  test   80.0 (72.1 to 78.2)              –      1          1.00",  # noqa: RUF001
        "smarttrim 2.0x  test   75.3 (72.1 to 78.2)           50.0    0.5          0.50",
        "",
        "retrieval (95% intervals in brackets)",
        "method    split            IR R@10 %  GMACs  of untrimmed",
        "-" * 57,
        "pretrain  test   61.2 (72.1 to 78.2)    0.5             –",  # noqa: RUF001
    ]


def test_a_narrow_terminal_gets_the_values_without_intervals() -> None:
    text = results_table(ROWS, width=60)
    assert "75.3" in text and "(72.1 to 78.2)" not in text.split("\n\n")[0]
    assert "see report.html" in text


def test_seeds_are_told_apart_only_where_they_differ() -> None:
    assert "seed" not in results_table(ROWS)
    text = results_table([*ROWS, row(seed=1, value=90.0)])
    assert "seed" in text and "90.0" in text and "75.3" in text


def test_no_rows_say_so() -> None:
    assert results_table([]) == "no results"


@pytest.mark.parametrize("metric", ["accuracy", "consistency", "r@1", "text_r@10", "mean_recall", "ir@5"])
def test_shares_are_marked_as_percentages(metric: str) -> None:
    assert in_percent(metric)


@pytest.mark.parametrize("metric", ["loss", "seconds", "bleu", "mean_rank", "inaccuracy_sum"])
def test_other_metrics_stay_as_they_are(metric: str) -> None:
    assert not in_percent(metric)
    assert "0.5" in results_table([row(metric=metric, value=0.5)])


def test_the_ratio_is_to_the_untrimmed_model_of_the_same_split_and_seed() -> None:
    rows = [
        row(target=1.0, gmacs=1.0),
        row(target=1.0, gmacs=2.0, split="unseen"),
        row(target=1.0, gmacs=4.0, seed=1),
        row(target=2.0, gmacs=1.0, split="unseen"),
        row(target=2.0, gmacs=1.0, seed=1),
        row(target=3.0, gmacs=0.5, seed=9),
    ]
    lines = group_results(rows)[0].lines
    assert [line.ratio for line in lines] == [1.0, 1.0, 1.0, 0.5, 0.25, 0.5]


def test_without_an_untrimmed_model_there_is_no_ratio() -> None:
    assert group_results([row()])[0].lines[0].ratio is None


def test_a_value_that_was_not_measured_leaves_its_cell_empty() -> None:
    line = group_results([row(value=None), row(metric="consistency", value=float("nan"))])[0].lines[0]
    assert not line.cells


costs = st.floats(0.01, 100)
points = st.lists(st.tuples(costs, st.floats(0, 1)), min_size=1, max_size=12)


@given(points)
def test_the_front_holds_exactly_what_no_other_point_beats(found: list[tuple[float, float]]) -> None:
    kept = front(found)
    for at, (cost, value) in enumerate(found):
        beaten = any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in found)
        assert (found[at] in [found[other] for other in kept]) == (not beaten)
    assert [found[at][0] for at in kept] == sorted(found[at][0] for at in kept)


def test_the_pareto_figure_has_its_numbers_beside_it() -> None:
    drawing = draw_pareto(group_results(ROWS)[0])
    assert drawing is not None
    lines = drawing.csv.splitlines()
    assert lines[0] == "task,split,method,target,seeds,metric,gmacs,value,low,high,on_front,quoted,asked_gmacs"
    assert lines[1:] == [
        "statement,test,smarttrim,1,0,accuracy,1,80,72.1,78.2,1,0,1",
        "statement,test,smarttrim,2,0,accuracy,0.5,75.3,72.1,78.2,1,0,0.5",
    ]
    assert "smarttrim 2.0x" in drawing.svg


def asked(rows: list[dict[str, Any]]) -> tuple[list[str], list[tuple[str, str, float]], str]:
    """The names of dotted lines, what the CSV says of each point, and the note."""
    drawing = draw_pareto(group_results(rows)[0])
    assert drawing is not None
    numbers = csv.DictReader(drawing.csv.splitlines())
    costs = [(each["method"], each["target"], float(each["asked_gmacs"])) for each in numbers]
    return re.findall(r">(\d\.\dx(?: of [a-z, ]+)?)</text>", drawing.svg), costs, drawing.note


def test_what_one_target_asks_of_all_is_drawn_once() -> None:
    rows = [row(method=name, target=target, gmacs=1.001 / target) for name in "ab" for target in (1.0, 2.0)]
    rows[2]["gmacs"] = 1.004  # within a hundredth
    names, costs, note = asked([*rows, row(method="c", target=3.0, gmacs=0.34)])
    assert sorted(names) == ["1.0x", "2.0x", "3.0x"] and "colour" not in note
    assert costs[-1] == ("c", "3", pytest.approx(1.001 / 3))  # that has no untrimmed model of its own


def test_what_a_target_asks_of_each_is_drawn_with_its_name_where_it_differs() -> None:
    rows = [row(method=n, target=t, gmacs=whole / t) for n, whole in (("a", 1.0), ("b", 0.6)) for t in (1.0, 2.0)]
    names, costs, note = asked([*rows, row(method="c", target=2.0, gmacs=0.31, full_gmacs=0.6)])
    assert sorted(names) == ["1.0x of a", "1.0x of b", "2.0x of a", "2.0x of b, c"] and "in its colour" in note
    assert costs == [("a", "1", 1.0), ("a", "2", 0.5), ("b", "1", 0.6), ("b", "2", 0.3), ("c", "2", 0.3)]


def test_a_single_cost_makes_no_front() -> None:
    assert draw_pareto(group_results(ROWS)[1]) is None


def test_a_split_that_was_not_evaluated_whole_says_so() -> None:
    spoiled = {"task": "statement", "method": "full", "metric": "accuracy", "value": 70.0, "samples": 1997}
    rows = [
        {**spoiled, "split": "test", "target": 1.0, "skipped": 3},
        {**spoiled, "split": "test", "target": 2.0, "skipped": 3},
        {**spoiled, "split": "unseen", "target": 1.0, "skipped": 0},
    ]
    (table,) = group_results(rows)
    assert table.notes == ["test: 3 of 2,000 samples could not be used and count in no figure; see the stage's log"]
    assert results_table(rows).endswith(table.notes[0])


def test_retrieval_among_some_pictures_of_a_split_says_so() -> None:
    ranked = {"task": "retrieval", "metric": "R@10", "value": 70.0, "samples": 511, "skipped": 1}
    rows = [
        {**ranked, "method": "albef", "split": "test", "of": 1000},
        {**ranked, "method": "smarttrim", "split": "test", "target": 2.0, "of": 1000},
        {**ranked, "method": "albef", "split": "all", "skipped": 0},
    ]
    (table,) = group_results(rows)
    said = "test: ranked among 512 of 1,000 pictures (evaluate.retrieval_pairs), which is easier than among all"
    assert [note for note in table.notes if "could not be used" not in note] == [said]


def test_what_was_reached_stands_beside_what_was_wanted() -> None:
    rows = [
        row(target=1.0, gmacs=1.0, wanted=1.0, reached=1.0, unit="x"),
        row(target=2.0, gmacs=0.54, wanted=2.0, reached=1.85, unit="x"),
        row(target="0.4 GMACs", gmacs=0.404, wanted=0.4, reached=0.404, unit="GMACs"),
        row(target="35 ms", wanted=35.0, reached=35.52, unit="ms", reached_low=35.1, reached_high=36.04),
    ]
    (table,) = group_results(rows)
    text = results_table(rows).splitlines()
    assert [line.split("  ")[-1].strip() for line in text[1:2] + text[3:7]] == [
        "reached", "1.00x (+0.0%)", "1.85x (-7.5%)", "0.404 GMACs (+1.0%)", "35.52 ms (+1.5%; 35.1 to 36)",
    ]  # fmt: skip
    assert [re.split(" {2,}", line)[-2] for line in text[4:7]] == ["2.00x", "0.4 GMACs", "35 ms"]
    assert [line.label for line in table.lines][2:] == ["smarttrim 0.4 GMACs", "smarttrim 35 ms"]
    assert table.notes == ["smarttrim 2.0x on test is 7.5% below what was wanted; 3% are allowed"]
    drawing = draw_pareto(table)
    assert drawing is not None and "0.4 GMACs" in drawing.svg and "statement,test,smarttrim,35 ms" in drawing.csv


def test_what_pruning_and_trimming_each_add_is_shown_where_a_backbone_keeps_its_pruning() -> None:
    pruned = row(gmacs=1.0, full_gmacs=2.0, unpruned_gmacs=2.6)
    (shown,) = group_results([pruned])
    assert shown.shows_pruning and (shown.lines[0].by_pruning, shown.lines[0].by_trimming) == (1.3, 2.0)
    assert "by pruning" in results_table([pruned]) and "1.30x" in results_table([pruned])
    assert not group_results([row(gmacs=1.0, full_gmacs=2.0, unpruned_gmacs=2.0)])[0].shows_pruning
    assert "by pruning" not in results_table(ROWS)
