"""Differences on the same test instances: who is held against whom, over which seeds, and what is not there."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.compare_table import comparison_text, paired_lines
from launch.paired import FULL, JudgedRun, own_differences, paired_differences, points
from launch.report.comparison import write_comparison
from launch.report.table import paired_text
from tests.launch.report.folders import outcomes, save

RIGHT = {1.0: [1.0, 1.0, 1.0, 0.0], 2.0: [1.0, 0.0, 1.0, 0.0], "0.1 GMACs": [1.0, 0.0, 0.0, 0.0]}


def judged(
    folder: Path, variant: str, seed: int, right: Mapping[Any, Sequence[float]] = RIGHT, data: str = "", **more: Any
) -> JudgedRun:
    """A run of which everything is kept; each seed has its own data unless `data` is given."""
    rows, place = [], folder / f"{variant}-samples-{seed}"
    for target, values in right.items():
        stage = f"trim-{target}"
        rows.append({"stage": stage, "task": "statement", "target": target, "split": "test", "metric": "accuracy"})
        rows[-1] |= {"value": 100 * sum(values) / len(values), **more}
        outcomes(place, stage, "test", {"accuracy": values}, data or f"d{seed}")
    return JudgedRun(variant=variant, budget="samples", seed=seed, folder=place, rows=rows)


def test_targets_are_held_against_the_untrimmed_model_of_their_run(tmp_path: Path) -> None:
    found = paired_differences([judged(tmp_path, "smarttrim", 0)])
    two, gmacs = found.rows
    assert (two["score"], two["against"], two["seeds"]) == ("statement 2x test accuracy", FULL, [0])
    assert gmacs["score"] == "statement 0.1 GMACs test accuracy"
    # Of the two groups one loses an instance of two: -50, -25 or 0 points.
    assert (two["difference"], two["low"], two["high"], two["by_seed"]) == (-25, -50, 0, [-25])
    assert (two["instances"], two["groups"], found.missing) == (4, 2, [])
    assert points(two) == "-25.00 (-50.00 to +0.00)"


def test_variants_are_held_against_the_reference_of_their_seed(tmp_path: Path) -> None:
    worse = {1.0: RIGHT[1.0], 2.0: [0.0, 0.0, 1.0, 0.0]}
    runs = [judged(tmp_path, "smarttrim", seed) for seed in (0, 1)]
    runs += [judged(tmp_path, "local", 0, worse), judged(tmp_path, "local", 1), judged(tmp_path, "local", 2)]
    rows = {(row["variant"], row["score"], row["against"]): row for row in paired_differences(runs, "smarttrim").rows}
    full = rows["local", "statement 1x test accuracy", "smarttrim"]
    assert (full["difference"], full["low"], full["high"]) == (0, 0, 0)
    two = rows["local", "statement 2x test accuracy", "smarttrim"]
    assert (two["difference"], two["by_seed"], two["seeds"]) == (-12.5, [-25, 0], [0, 1])
    assert (two["instances"], two["groups"]) == (8, 4)
    assert rows["local", "statement 2x test accuracy", FULL]["seeds"] == [0, 1, 2]
    assert {against for variant, _, against in rows if variant == "smarttrim"} == {FULL}


def test_test_pictures_that_seeds_share_are_drawn_together(tmp_path: Path) -> None:
    (row, _) = paired_differences([judged(tmp_path, "smarttrim", seed, data="nlvr") for seed in (0, 1)]).rows
    assert (row["instances"], row["groups"], row["low"], row["high"]) == (8, 2, -50, 0)


def test_a_reference_of_one_target_is_what_all_are_held_against(tmp_path: Path) -> None:
    runs = [judged(tmp_path, "full_64", 0, {1.0: RIGHT[1.0]}), judged(tmp_path, "96", 0, {"0.1 GMACs": RIGHT[2.0]})]
    (row,) = paired_differences(runs, "full_64").rows
    assert (row["score"], row["against"]) == ("statement 0.1 GMACs test accuracy", "full_64 1x")
    assert row["difference"] == -25


def test_older_runs_have_none_and_that_is_said(tmp_path: Path) -> None:
    old, new = judged(tmp_path, "smarttrim", 0), judged(tmp_path, "smarttrim", 1)
    for path in old.folder.glob("stages/*/outcomes/*.npz"):
        path.unlink()
    found = paired_differences([old])
    assert found.rows == [] and len(found.missing) == 1
    assert found.missing[0].startswith("2 of 2 differences have no paired interval")
    assert (
        "smarttrim-samples-0: trim-2.0 on test" in found.missing[0] and "remove stages/evaluate-*" in found.missing[0]
    )
    partly = paired_differences([old, new])
    assert [row["seeds"] for row in partly.rows] == [[1], [1]] and partly.missing[0].startswith("0 of 2")
    assert paired_differences([]).missing == []


def test_models_of_other_instances_are_named_and_the_rest_is_compared(tmp_path: Path) -> None:
    run = judged(tmp_path, "smarttrim", 0)
    outcomes(run.folder, "trim-2.0", "test", {"accuracy": [1.0, 0.0]}, "d0")
    found = paired_differences([run])
    assert [row["score"] for row in found.rows] == ["statement 0.1 GMACs test accuracy"]
    assert found.missing == [
        "smarttrim-samples-0: no paired interval of smarttrim statement 2x test accuracy from own 1.0x: two models "
        "were not judged on the same instances: 2 are only there (k2, k3); evaluate both on one split."
    ]
    both = paired_differences([run, judged(tmp_path, "smarttrim", 1)])
    assert [row["seeds"] for row in both.rows] == [[1], [0, 1]] and both.missing == found.missing
    outcomes(run.folder, "trim-2.0", "test", {"accuracy": RIGHT[2.0]}, "other")
    assert "other data: k0 belongs to other/g0 here and to d0/g0 there" in paired_differences([run]).missing[0]


def test_captions_have_those_of_scores_that_are_means_over_pictures(tmp_path: Path) -> None:
    rows, place = [], tmp_path / "captions"
    for target, values in {1.0: [1.0, 2.0, 0.5, 1.5], 2.0: [0.5, 2.0, 0.5, 0.5]}.items():
        about = {"stage": f"trim-{target}", "task": "captioning", "target": target, "split": "nocaps/val out-domain"}
        rows += [{**about, "metric": metric} for metric in ("BLEU@4", "METEOR", "CIDEr")]
        outcomes(place, f"trim-{target}", "nocaps/val out-domain", {"CIDEr": values})
    found = own_differences(place, 3, rows)
    (row,) = found.rows
    assert (row["model"], row["split"], row["metric"]) == ("captioning 2x", "nocaps/val out-domain", "CIDEr")
    assert (row["difference"], row["seeds"], row["groups"]) == (-37.5, [3], 2)
    assert found.missing == ["No paired intervals of BLEU and METEOR: they are scores of all captions together."]


def test_a_metric_that_an_older_evaluation_has_not_kept_is_told_as_lacking(tmp_path: Path) -> None:
    run = judged(tmp_path, "smarttrim", 0)
    extra = [{**row, "metric": "TR R@1"} for row in run.rows]
    found = paired_differences([replace(run, rows=[*run.rows, *extra])])
    assert [row["metric"] for row in found.rows] == ["accuracy", "accuracy"]
    assert len(found.missing) == 1 and found.missing[0].startswith("2 of 4 differences have no paired interval")


@pytest.mark.parametrize("odd", ["fast", [2.0], -1, True, float("nan")])
def test_a_target_that_cannot_be_read_costs_its_own_row_alone(tmp_path: Path, odd: Any) -> None:
    run = judged(tmp_path, "smarttrim", 0)
    rows = [{**row, "target": odd} if row["target"] == 2.0 else row for row in run.rows]
    found = paired_differences([replace(run, rows=rows)])
    assert [row["model"] for row in found.rows] == ["statement 0.1 GMACs"]
    assert found.missing == [
        f"smarttrim-samples-0: no paired interval of what has no target that can be read: trim-2.0 has {odd!r}."
    ]


def test_a_run_ends_with_a_line_for_each_trimmed_model(tmp_path: Path) -> None:
    run = judged(tmp_path, "smarttrim", 0)
    more = [{**row, "split": "unseen"} for row in run.rows] + [{**row, "metric": "consistency"} for row in run.rows]
    for target, values in RIGHT.items():
        outcomes(run.folder, f"trim-{target}", "unseen", {"accuracy": values})
        outcomes(run.folder, f"trim-{target}", "test", {"accuracy": values, "consistency": values})
    found = own_differences(run.folder, 0, [*run.rows, *more]).rows
    assert len(found) == 6
    _, two, gmacs = paired_text(found)
    lost = "-25.00 (-50.00 to +0.00)"
    assert two == f"  statement 2x from own 1.0x: test accuracy {lost}, unseen accuracy {lost}"
    assert gmacs.startswith("  statement 0.1 GMACs from own 1.0x: test accuracy -50.0")
    assert paired_text([]) == []


@pytest.fixture
def compared(tmp_path: Path) -> dict[str, Any]:
    """A comparison of two variants and two seeds."""
    runs = [judged(tmp_path, variant, seed) for seed in (0, 1) for variant in ("smarttrim", "local")]
    about = {"budget": "samples", "samples": 64, "step_ms": 10.0, "peak_bytes": 2**30}
    found = paired_differences(runs, "smarttrim")
    told = [{"variant": run.variant, "seed": run.seed, **about, "results": run.rows} for run in runs]
    return {"reference": "smarttrim", "trials": 4, "runs": told, "paired": found.rows, "unpaired": ["No more."],
            "failures": {}, "facts": {}}  # fmt: skip


def test_both_intervals_stand_side_by_side(compared: dict[str, Any], tmp_path: Path) -> None:
    assert {line["half_width"] for line in paired_lines(compared)} == {0.0}
    text = comparison_text(compared)
    line = next(line for line in text.splitlines() if line.startswith("local") and "2x" in line and FULL in line)
    assert "-25.00 (-50.00 to +0.00)" in line and "-25.00 ± 0.00" in line and line.endswith("8 in 4")
    assert "are resampled together" in text and "what other trainings would do" in text and "No more." in text
    save(tmp_path / "comparison.json", compared)
    page = write_comparison(tmp_path).read_text()
    assert "On the same test instances" in page and "-25.00 (-50.00 to +0.00)" in page and "<li>No more.</li>" in page


def test_an_older_comparison_says_that_it_has_none(compared: dict[str, Any], tmp_path: Path) -> None:
    old = {name: each for name, each in compared.items() if name not in ("paired", "unpaired")}
    save(tmp_path / "comparison.json", old)
    page = write_comparison(tmp_path).read_text()
    assert "On the same test instances" not in page and "No differences on the same test instances" in page


def test_a_model_that_was_taken_over_is_not_held_against_itself(tmp_path: Path) -> None:
    reference, other = judged(tmp_path, "smarttrim", 0), judged(tmp_path, "local", 0)
    theirs, own = (run.outcomes_of(run.rows[0]) for run in (reference, other))
    own.unlink()
    own.hardlink_to(theirs)
    found = [(row["score"], row["against"]) for row in paired_differences([reference, other], "smarttrim").rows]
    assert ("statement 2x test accuracy", "smarttrim") in found
    assert ("statement 1x test accuracy", "smarttrim") not in found
