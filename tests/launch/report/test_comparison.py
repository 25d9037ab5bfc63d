"""The report of a comparison: tables, differences, sweeps and fronts from runs made by hand."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from launch.cli import main
from launch.compare_table import half_width, score_order
from launch.report.comparison import write_comparison
from launch.report.means import mean_rows
from launch.report.pareto import draw_pareto
from launch.report.results import group_results
from launch.report.sweeps import draw_sweep, sweeps_of
from tests.launch.report.compared import WEIGHTS, config
from tests.launch.report.folders import save


def plain(page: str) -> str:
    return re.sub(r"(\s|\|)*\|(\s|\|)*", "|", re.sub(r"<[^>]+>", "|", page))


def numbers(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "figures" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_tables_have_means_and_paired_differences(comparison: Path) -> None:
    page = write_comparison(comparison).read_text(encoding="utf-8")
    text = plain(page)
    assert "|lambda_0|0 1 2|79.0|-2.0 ± 0.0|0.012|+0 ± 0|" in text
    assert "|unpruned|0 1 2|81.0|0.012|" in text  # the reference has no difference from itself
    assert "|prune_only|0 1|80.8|+0.2 ± 0.0 of 0 1|" in text and "not the means" in text
    assert "|A CPU, 2 CPUs|" in text and "17 of 18 finished, 1 failed" in text
    assert "|failed: the disk is &lt;full&gt;|" in text and '<span class="state failed">' in page
    assert "trimline compare pruning.yaml" in page and "|lambda_0|pretrain.pruning.elip.vision_weight|0.0|0.8|" in text
    addresses = {address for address in re.findall(r'href="([^"#]*)"', page) if not address.startswith("data:")}
    assert len(addresses) == 17 and all((comparison / address).is_file() for address in addresses)


def test_the_scores_stand_first_and_costs_have_one_unit(comparison: Path) -> None:
    page = write_comparison(comparison).read_text(encoding="utf-8")
    summary = page[page.index('<section id="summary">') : page.index("</section>")]
    heads = re.findall(r"<h3[^>]*>(.*?)</h3>", summary)
    assert heads == ["retrieval", "statement 1x", "statement 2x", "Time and memory", "What this report lacks"]
    assert "test: GMACs" in summary and "GMACs per instance" in page and "MMACs" not in page


def test_when_it_ran_and_with_which_software_is_told(comparison: Path) -> None:
    text = plain(write_comparison(comparison).read_text(encoding="utf-8"))
    assert "|Started|2026-01-05 10:00:00 UTC|" in text and "|Last run finished|2026-01-05 12:01:00 UTC|" in text
    assert "|Took|17 min 00 s, 17 runs together|" in text and "|Commit|ababababab|" in text
    assert "|torch|2.15.0, 2.16.0|" in text
    (comparison / "query-samples-0/run.json").write_text("[]")
    (comparison / "query-samples-1/run.json").write_text("{")
    (comparison / "query-samples-2/run.json").unlink()
    text = plain(write_comparison(comparison).read_text(encoding="utf-8"))
    assert "14 runs together" in text and text.count("/run.json cannot be read") == 2


def test_the_tables_have_their_numbers_in_a_file(comparison: Path) -> None:
    write_comparison(comparison)
    rows = {(row["variant"], row["split"], row["metric"]): row for row in numbers(comparison, "scores")}
    assert rows["prune_only", "test", "R@10"]["seeds"] == "0 1"
    own = rows["query", "test", "R@10"]
    assert (float(own["mean"]), float(own["difference"])) == (61.0, 1.0) and len(own["values"].split()) == 3
    assert rows["unpruned", "test", "R@10"]["difference"] == "" and rows["unpruned", "test", "R@10"]["mean"] == "60"


def test_targets_are_sorted_as_numbers() -> None:
    tasks = ["retrieval", "statement 1x", "statement 2x", "statement 2.5x", "statement 10x", "statement 30 ms"]
    keys = [(task, "test", "accuracy") for task in tasks]
    assert sorted(sorted(keys), key=score_order) == keys


def test_the_axis_of_differences_says_from_what(comparison: Path) -> None:
    write_comparison(comparison)
    drawn = (comparison / "figures" / "differences-samples.svg").read_text(encoding="utf-8")
    assert ">difference from unpruned, points</text>" in drawn


def test_differences_are_drawn_with_their_numbers(comparison: Path) -> None:
    write_comparison(comparison)
    rows = {(row["variant"], row["metric"]): row for row in numbers(comparison, "differences-samples")}
    gained = rows["query", "retrieval test R@10"]
    assert (float(gained["mean"]), float(gained["difference"]), gained["seeds"]) == (61.0, 1.0, "0 1 2")
    assert float(gained["half_width"]) == pytest.approx(4.303 / 3**0.5)
    assert ("unpruned", "retrieval test R@10") not in rows


def test_what_differs_in_one_number_is_a_sweep(comparison: Path) -> None:
    configs = {name: config(name, 0) for name in ("unpruned", "prune_only", *WEIGHTS)}
    (sweep,) = sweeps_of(configs)
    assert (sweep.key, dict(sweep.values)) == ("pretrain.pruning.elip.vision_weight", WEIGHTS)
    page = write_comparison(comparison).read_text(encoding="utf-8")
    assert "λ (pretrain.pruning.elip.vision_weight), budget samples" in page and "λ is the share of the vision" in page
    rows = numbers(comparison, "sweep-pretrain.pruning.elip.vision_weight-samples")
    own = [(row["variant"], float(row[sweep.key]), row["seed"], float(row["value"]))
           for row in rows if row["metric"] == "statement 2x test accuracy"]  # fmt: skip
    assert own[:4] == [
        ("lambda_0", 0.0, "0", 76.0), ("lambda_0", 0.0, "1", 77.0), ("lambda_0", 0.0, "2", 78.0),
        ("lambda_0.5", 0.5, "0", 78.5),
    ]  # fmt: skip
    two = {name: config(name, 0) for name in ("lambda_0", "query", "unpruned")}
    assert sweeps_of(two) == []  # two points are no sweep


def test_a_sweep_without_scores_is_not_drawn() -> None:
    (sweep,) = sweeps_of({name: config(name, 0) for name in WEIGHTS})
    lines = [{"budget": "samples", "variant": name, "metrics": {}} for name in WEIGHTS]
    assert draw_sweep(sweep, "samples", lines) is None


def without(folder: Path, *names: tuple[str, int]) -> None:
    """Leaves runs out of a comparison."""
    data = json.loads((folder / "comparison.json").read_text())
    runs = [each for each in data["runs"] if (each["variant"], each["seed"]) not in names]
    save(folder / "comparison.json", {**data, "runs": runs})


def test_the_front_is_over_means_of_seeds(comparison: Path) -> None:
    without(comparison, ("prune_only", 0), ("prune_only", 1))
    write_comparison(comparison)
    rows = [row for row in numbers(comparison, "pareto-statement") if row["method"] == "query"]
    assert [(row["target"], float(row["value"]), float(row["gmacs"])) for row in rows] == [
        ("1", 82.0, 0.012), ("2", 80.0, 0.006),
    ]  # fmt: skip
    half = half_width([81.0, 82.0, 83.0])
    assert half is not None
    assert (float(rows[0]["low"]), float(rows[0]["high"])) == pytest.approx((82.0 - half, 82.0 + half))
    assert {row["on_front"] for row in rows} == {"1"} and {row["seeds"] for row in rows} == {"0 1 2"}
    drawn = (comparison / "figures" / "pareto-statement.svg").read_text()
    assert ">query</text>" in drawn and "query 2.0x" not in drawn  # of twelve points those of a variant look alike


def test_a_front_is_over_the_seeds_that_all_variants_have(comparison: Path) -> None:
    page = write_comparison(comparison).read_text()
    rows = numbers(comparison, "pareto-statement")
    assert {(row["seeds"], row["low"]) for row in rows} == {("0 1", "")}  # one run failed; two seeds have no interval
    assert {row["value"] for row in rows if row["method"] == "query"} == {"81.5", "79.5"}
    assert "Means over seeds 0 1. Left out, for not all have them: unpruned 2; query 2;" in page


def test_who_has_no_seed_of_the_others_is_hollow_and_beats_nobody(comparison: Path) -> None:
    one, two = (("query", seed) for seed in (0, 1))
    without(comparison, one, two, ("prune_only", 1), *((name, 2) for name in WEIGHTS if name != "query"))
    page = write_comparison(comparison).read_text()
    rows = {row["method"]: row for row in numbers(comparison, "pareto-statement")}
    assert {name: row["seeds"] for name, row in rows.items()} == {
        "unpruned": "0", "query": "2", "lambda_0": "0", "lambda_0.5": "0", "lambda_1": "0", "prune_only": "0"
    }  # fmt: skip
    assert rows["query"]["value"] > rows["lambda_0.5"]["value"]
    assert (rows["query"]["on_front"], rows["lambda_0.5"]["on_front"]) == ("0", "1")
    assert "no part of the front, are means over other seeds: query 2." in page


def test_percentages_end_at_0_and_100() -> None:
    def row(variant: str, seed: int, value: float, gmacs: float) -> dict[str, Any]:
        one = {"task": "vqa", "split": "dev", "metric": "accuracy", "target": 1.0, "value": value, "gmacs": gmacs}
        return {"variant": variant, "seed": seed, "budget": "b", "results": [one]}

    runs = [row(name, seed, value, gmacs) for name, gmacs in (("a", 1.0), ("b", 2.0))
            for seed, value in enumerate((60.0, 80.0, 100.0))]  # fmt: skip
    found = mean_rows(runs, "b")
    half = half_width([60.0, 80.0, 100.0])
    assert half is not None and half > 20.0
    assert [(each["value"], each["low"], each["high"]) for each in found] == [(80.0, 80.0 - half, 100.0)] * 2
    drawing = draw_pareto(group_results(found)[0])
    assert drawing is not None and not re.search(r">1[1-9]0</text>|>-\d", drawing.svg)


def test_a_comparison_that_has_just_begun_says_what_it_lacks(
    comparison: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads((comparison / "comparison.json").read_text())
    one = [each for each in data["runs"] if each["variant"] == "query" and each["seed"] == 0]
    save(comparison / "comparison.json", {**data, "runs": one, "failures": {}})
    (comparison / "query-samples-0" / "config.yaml").unlink()
    assert main(["report", str(comparison)]) == 0
    page = (comparison / "report.html").read_text()
    assert capsys.readouterr().out.strip() == str(comparison / "report.html")
    for said in ("no run of the reference, unpruned, is finished", "every variant has a single seed",
                 "query-samples-0/config.yaml cannot be read", 'class="state unfinished"'):  # fmt: skip
        assert said in page
    save(comparison / "comparison.json", {**data, "runs": [], "failures": {}})
    assert "no run is finished" in write_comparison(comparison).read_text()
    with pytest.raises(UserError, match=r"has no comparison\.json"):
        write_comparison(comparison / "query-samples-0")
    save(comparison / "comparison.json", {"runs": []})
    with pytest.raises(UserError, match="is not as `trimline compare` writes it"):
        write_comparison(comparison)
