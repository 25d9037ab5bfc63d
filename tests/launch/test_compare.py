"""`trimline compare`: its runs, its table, and going on where it stopped."""

import json
import logging
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data_prep.errors import UserError
from data_prep.shapes import ShapesSplit
from launch.compare import CompareConfig, Trial, check_full_models, overrides_of, settled, trials
from launch.compare_table import COMPARISON, comparison_text, lines_of, student_interval
from launch.config import RunConfig
from launch.reading import read_config
from launch.recipes import find_recipe, recipes
from launch.result_rows import RECALLS
from pipeline.data.text import Tokenizer
from pipeline.models.build import build_model
from pipeline.setup import sized_model
from pipeline.tasks.classification import ClassificationModel
from pipeline.trimming.cost import units_of
from pipeline.trimming.target import Target

TINY = Path(__file__).parent / "tiny.yaml"


def config(**more: Any) -> CompareConfig:
    variants = {"unpruned": {"pretrain.pruning.method": "none"}, "query": {}}
    return CompareConfig(**{"out": "cmp", "base": (str(TINY),), "reference": "unpruned", "variants": variants, **more})


def run(variant: str, seed: int, accuracy: float, budget: str = "samples") -> dict[str, Any]:
    row = {"task": "statement", "target": 1.0, "split": "test", "metric": "accuracy", "value": accuracy}
    other = {"task": "retrieval", "target": None, "split": "test", "metric": "TR R@1", "value": 5.0}
    return {
        "variant": variant, "seed": seed, "budget": budget, "samples": 64, "step_ms": 10.0 + seed,
        "peak_bytes": 2**30, "results": [row, other],
    }  # fmt: skip


def test_trials_come_seed_by_seed_with_the_variants_overrides(tmp_path: Path) -> None:
    asked = config(seeds=(3, 4), budgets=("samples", "minutes"), minutes=2.0, shared={"trim.targets": [1.0]})
    found = trials(asked)
    assert [t.name for t in found[:5]] == [
        "unpruned-samples-3", "query-samples-3", "unpruned-minutes-3", "query-minutes-3", "unpruned-samples-4",
    ]  # fmt: skip
    words = overrides_of(asked, Trial(variant="unpruned", budget="minutes", seed=3))
    assert {"--pretrain.pruning.method=none", "--seed=3", "--data.seed=3", "--budget.minutes=2.0"} <= set(words)
    assert {"--trim.targets=[1.0]", "--out=cmp/unpruned-minutes-3"} <= set(words)
    read = read_config(RunConfig, [TINY], words)
    assert (read.pretrain.pruning.method, read.seed, read.budget.minutes) == ("none", 3, 2.0)
    assert read.pretrain.loop.samples == read.trim.loop.samples == 10**9  # only the time ends it
    words = overrides_of(asked, Trial(variant="query", budget="samples", seed=3))
    timed = tmp_path / "timed.yaml"
    timed.write_text("budget: {minutes: 60}")
    read = read_config(RunConfig, [TINY, timed], words)
    assert (read.budget.minutes, read.pretrain.loop.samples) == (None, 64)  # only the samples end it


METER = {"model.backbone": "meter", "model.text.fusion_layers": 1, "model.fusion.width": 16, "model.fusion.heads": 2}


@pytest.mark.parametrize(
    ("shared", "method", "refused"),
    [
        ({}, "evit", True),
        ({}, "local", False),
        ({"trim.keep_pruning": False}, "evit", False),
        ({"trim.targets": [1.0, "0.001 GFLOPs"]}, "evit", False),
        ({"model.backbone": "albef"}, "evit", False),
    ],
)
def test_speed_ups_from_different_full_models_are_not_compared(
    shared: dict[str, Any], method: str, refused: bool, tmp_path: Path
) -> None:
    asked = config(shared={**METER, **shared}, variants={"unpruned": {}, "other": {"trim.method": method}})
    runs = {t.variant: read_config(RunConfig, [TINY], overrides_of(asked, t)) for t in trials(asked)}
    if refused:
        with pytest.raises(UserError, match=r"speed-ups of unpruned .* those of other .*trim\.keep_pruning=false"):
            check_full_models(runs, tmp_path)
    else:
        check_full_models(runs, tmp_path)


def test_a_comparison_that_has_results_goes_on_and_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / COMPARISON).write_text("{}")
    asked = config(shared=METER, variants={"unpruned": {}, "other": {"trim.method": "evit"}})
    runs = {t.variant: read_config(RunConfig, [TINY], overrides_of(asked, t)) for t in trials(asked)}
    with caplog.at_level(logging.WARNING):
        check_full_models(runs, tmp_path)
    assert "speed-ups of unpruned" in caplog.text and "those of other" in caplog.text
    caplog.clear()
    check_full_models({"unpruned": runs["unpruned"]}, tmp_path)
    assert not caplog.text


def test_the_variant_that_is_to_keep_what_it_cannot_is_named(tmp_path: Path) -> None:
    more = {"trim.method": "evit", "trim.keep_pruning": True}
    asked = config(shared=METER, variants={"unpruned": {}, "other": more})
    runs = {t.variant: read_config(RunConfig, [TINY], overrides_of(asked, t)) for t in trials(asked)}
    with pytest.raises(UserError, match=r"^variant other: trim\.keep_pruning=true"):
        check_full_models(runs, tmp_path)


def test_each_trial_has_a_place_of_its_own_for_checkpoints_that_go_elsewhere() -> None:
    asked = config(shared={"checkpoint.path": "s3://bucket/cmp/"}, seeds=(0,))
    read = [read_config(RunConfig, [TINY], settled([TINY], overrides_of(asked, t), t)) for t in trials(asked)]
    assert [one.checkpoint.path for one in read] == [
        "s3://bucket/cmp/unpruned-samples-0", "s3://bucket/cmp/query-samples-0",
    ]  # fmt: skip
    plain = trials(config())[0]
    assert settled([TINY], overrides_of(config(), plain), plain) == overrides_of(config(), plain)


def test_references_that_the_others_take_from_are_ahead_of_them() -> None:
    asked = config(seeds=(0, 1, 2), parallel=2, share=True, reference="query")
    assert [t.name for t in trials(asked)] == [
        "query-samples-0", "query-samples-1", "unpruned-samples-0",
        "query-samples-2", "unpruned-samples-1", "unpruned-samples-2",
    ]  # fmt: skip


def test_what_a_target_costs_stands_beside_its_accuracy() -> None:
    one = run("unpruned", 0, 70.0)
    one["results"][0]["gmacs"] = 0.0123
    (line,) = lines_of({"reference": "unpruned", "runs": [one], "failures": {}})
    assert line["metrics"]["statement 1x test GMACs"]["mean"] == 0.0123


def test_costs_have_four_digits_and_their_differences_as_many_decimals() -> None:
    runs = [run("unpruned", 0, 70.0), run("query", 0, 70.0), run("query", 1, 70.0)]
    for one, cost in zip(runs, (0.029461, 0.0294612, 0.02), strict=True):
        one["results"][0]["gmacs"] = cost
    text = comparison_text({"reference": "unpruned", "runs": runs, "failures": {}})
    assert "0.02473 (+0 of 0)" in text and " 0.02946" in text


def test_the_interval_is_students_over_pairs() -> None:
    difference, half = student_interval([3.0, 4.0, 8.0], [1.0, 3.0, 5.0])
    assert (difference, half) == (2.0, pytest.approx(4.303 * 1.0 / 3**0.5))
    assert student_interval([3.0], [1.0]) == (2.0, None)


def test_only_seeds_that_both_finished_are_compared() -> None:
    runs = [run("unpruned", 0, 70.0), run("unpruned", 1, 72.0), run("query", 0, 71.0), run("query", 2, 99.0)]
    data = {"reference": "unpruned", "runs": runs, "failures": {"query-samples-1": "it broke"}}
    lines = {line["variant"]: line for line in lines_of(data)}
    cell = lines["query"]["metrics"]["statement 1x test accuracy"]
    assert (cell["mean"], cell["difference"], cell["half_width"]) == (85.0, 1.0, None)
    assert list(lines["query"]["metrics"]) == ["statement 1x test accuracy"]
    text = comparison_text(data)
    assert re.search(r"query +0 2 ", text) and "85.0 (+1.0 of 0)" in text and "not the means" in text
    assert "failed: query-samples-1: it broke" in text
    assert comparison_text({"reference": "unpruned", "runs": [], "failures": {}}) == "no run is finished"


def test_budgets_are_compared_apart() -> None:
    runs = [run(v, s, 70.0 + s, b) for v in ("unpruned", "query") for s in (0, 1) for b in ("samples", "minutes")]
    lines = lines_of({"reference": "unpruned", "runs": runs, "failures": {}})
    assert [(line["budget"], line["variant"]) for line in lines] == [
        ("samples", "unpruned"), ("samples", "query"), ("minutes", "unpruned"), ("minutes", "query"),
    ]  # fmt: skip
    assert all(line["metrics"]["statement 1x test accuracy"]["half_width"] == 0 for line in lines)
    assert "not the means" not in comparison_text({"reference": "unpruned", "runs": runs, "failures": {}})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"reference": "none"}, "reference='none' is none of the variants unpruned, query"),
        ({"seeds": (1, 1)}, "different seeds"),
        ({"parallel": 0}, "compare.parallel=0"),
        ({"minutes": 0.0}, "compare.minutes=0"),
    ],
)
def test_what_cannot_be_compared_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**more)


def test_every_variant_of_every_experiment_reads() -> None:
    known = {name for name in recipes() if name.startswith("configs/experiments/")}
    first = "configs/experiments/pruning.yaml"
    variants = {first: 11, "configs/experiments/pruning_minutes.yaml": 6, "configs/experiments/pruning_leak.yaml": 7}
    whole = {first, "configs/experiments/trimming.yaml", "configs/experiments/resolution.yaml"}
    variants |= {"configs/experiments/pruning_minutes_more.yaml": 7, "configs/experiments/trimming.yaml": 9}
    variants["configs/experiments/resolution.yaml"] = 3
    assert known == set(variants)
    for name in variants:
        layers = [name] if name in whole else [first, name]
        asked = read_config(CompareConfig, [find_recipe(layer) for layer in layers], [])
        assert len(asked.variants) == variants[name]
        base = [find_recipe(name) for name in asked.base]
        for trial in [trial for trial in trials(asked) if trial.seed == asked.seeds[0]]:
            read = read_config(RunConfig, base, overrides_of(asked, trial))
            read.pretrain.pruning.check(read.model.vision.depth, read.model.vision.patches)


def test_resolutions_are_compared_at_equal_cost() -> None:
    """The trimmed model's target is what the full one takes at 64 px, with statements of the length that they have."""
    asked = read_config(CompareConfig, [find_recipe("configs/experiments/resolution.yaml")], [])
    base, named = [find_recipe(name) for name in asked.base], ("full_64", "trimmed_96")
    runs = [overrides_of(asked, Trial(variant=variant, budget="samples", seed=0)) for variant in named]
    full, trimmed = (read_config(RunConfig, base, words) for words in runs)
    drawn = list(ShapesSplit(name="train", size=300, image_size=16, seed=0).records(0, 300))
    texts = [statement["text"] for record in drawn for statement in record.statements]
    captions = [caption for record in drawn for caption in record.captions]
    tokenizer = Tokenizer.train([*texts, *captions], full.tokenizer)
    read = full.trim.exported_loader(full.loader)
    with torch.device("meta"):
        model = ClassificationModel(build_model(sized_model(full.model, tokenizer, read)), None)
    _, mask_BL = tokenizer.encode(texts, read.max_tokens)
    cost = float(model.full_macs(units_of(model.backbone, mask_BL)).mean()) / 1e9
    assert [Target.parse(each) for each in trimmed.trim.targets] == [Target(pytest.approx(cost, rel=0.005), "GMACs")]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_comparison_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    asked = {
        "out": str(tmp_path / "cmp"), "base": [str(TINY)], "shared": {"pretrain.loop.samples": 10**6},
        "reference": "query", "variants": {"query": {}}, "seeds": [0, 1, 2], "parallel": 2,
    }  # fmt: skip
    (tmp_path / "cmp.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
    command = [sys.executable, "-m", "launch", "compare", str(tmp_path / "cmp.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = [tmp_path / "cmp" / f"query-samples-{seed}" / "stages" / "pretrain" / "metrics.jsonl" for seed in (0, 1)]
    while not all(path.exists() for path in metrics):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _bytes(path)]
    assert not left
    assert not (tmp_path / "cmp" / "query-samples-2").exists()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just ended
        return b""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_comparison_runs_reports_and_goes_on(tmp_path: Path) -> None:
    asked = {
        "out": str(tmp_path / "cmp"), "base": [str(TINY)], "shared": {"trim.targets": [1.0], "evaluate.pictures": 0},
        "reference": "unpruned", "variants": {"unpruned": {"pretrain.pruning.method": "none"}, "query": {}},
        "seeds": [0, 1], "parallel": 2, "share": True,
    }  # fmt: skip
    (tmp_path / "cmp.yaml").write_text(yaml.safe_dump(asked, sort_keys=False))
    command = [sys.executable, "-m", "launch", "compare", str(tmp_path / "cmp.yaml"), "--json"]
    first, again = (subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    told = json.loads(first.stdout)
    lines = told["lines"]
    assert lines == json.loads(again.stdout)["lines"]
    assert [(line["variant"], line["seeds"]) for line in lines] == [("unpruned", [0, 1]), ("query", [0, 1])]
    scores = {(row["variant"], row["score"], row["against"]): row["seeds"] for row in told["paired"]}
    held = ("statement 1x test accuracy", *(f"retrieval test {metric}" for metric in ("R@10", *RECALLS)))
    assert scores == {("query", score, "unpruned"): [0, 1] for score in held} and told["unpaired"] == []
    assert "On the same test instances" in (tmp_path / "cmp" / "report.html").read_text()
    shards = [tmp_path / "cmp" / f"{name}-samples-0" / "data/test/index.json" for name in ("unpruned", "query")]
    assert shards[0].stat().st_ino == shards[1].stat().st_ino  # the same file, made once
    assert all(line["peak_bytes"] > 2**27 and line["step_ms"] > 0 for line in lines)
    wrong = subprocess.run([*command, "--variants", "{query: {pretrain.nothing: 1}}", "--reference", "query"],
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert wrong.returncode == 2 and "nothing" in wrong.stderr and "Traceback" not in wrong.stderr
